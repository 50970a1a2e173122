"""Runs the stages on this machine, one after another, and skips what is done."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline import graph
from pipeline.attempt import begin, finish
from pipeline.graph import (
    Entry,
    Record,
    Records,
    load_graph,
    load_record,
    load_records,
    save_graph,
    save_record,
    with_blocked,
)
from pipeline.local import Signals, command_of
from pipeline.stage import Stage, plan_fingerprint

# Runs one stage's command to its end and returns its exit code, below 0 when a signal ended it.
Launch = Callable[[Stage, tuple[str, ...]], int]


class Execution:
    """One pass over the stages of a run folder, which this process holds locked."""

    def __init__(
        self, stages: Sequence[Stage], folder: Path, gpus: int, launch: Launch, signals: Signals
    ) -> None:
        self.stages = {stage.name: stage for stage in stages}
        self.folder = folder
        self.launch = launch
        self.signals = signals
        self.entries = {
            stage.name: Entry(
                stage,
                command_of(stage.words, gpus if stage.on_every_gpu else 1),
                plan_fingerprint(stage, folder),
            )
            for stage in stages
        }

    def run(self) -> Records:
        """Run what is not done, one after another, until the end or until a stop is requested.

        A failed stage holds up those that need it, and no others. Returns the stages' records.
        """
        save_graph(self.folder, load_graph(self.folder) | self.entries)
        for name in self.stages:
            record = load_record(self.folder, name)
            if record.state != graph.DONE:
                save_record(self.folder, name, replace(record, state=graph.PENDING, note=""))
        for number, stage in enumerate(self.stages.values(), start=1):
            record = self._advance(stage, f"[{number}/{len(self.stages)}] {stage.name}")
            if record.state == graph.INTERRUPTED or self.signals.stop_requested_by:
                break
        return self.records()

    def records(self) -> Records:
        """What became of the stages."""
        return with_blocked(self.entries, load_records(self.folder, self.stages))

    def _advance(self, stage: Stage, title: str) -> Record:
        record = self.records()[stage.name]
        if record.state == graph.BLOCKED:
            print(f"{title}: not run, {record.note}", flush=True)
            return record
        if begin(self.folder, stage, self.stages) is None:
            print(f"{title}: done before", flush=True)
            return record
        print(f"{title}: started", flush=True)
        started = time.monotonic()
        code = self.launch(stage, self.entries[stage.name].command)
        record = finish(self.folder, stage, code, self.signals.stop_requested_by)
        reason = f" ({record.note})" if record.note else ""
        seconds = time.monotonic() - started
        print(f"{title}: {record.state}{reason} after {seconds:.1f} s", flush=True)
        return record
