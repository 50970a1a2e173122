"""Runs the stages in their order, skips what is done, and keeps graph.json up to date."""

import secrets
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline import graph
from pipeline.graph import Record, Records, load_graph, save_graph
from pipeline.local import Signals, command_of
from pipeline.stage import Stage, stage_fingerprint

# Runs one stage's command to its end and returns its exit code, below 0 when a signal ended it.
Launch = Callable[[Stage, tuple[str, ...]], int]


def is_current(stage: Stage, fingerprint: str, record: Record | None) -> bool:
    """Whether what the stage leaves is there, made from what it would read now."""
    known = record is not None and record.fingerprint == fingerprint
    return known and stage.has_outputs and not stage.always


class Execution:
    """One pass over the stages of a run folder, which this process holds locked."""

    def __init__(
        self, stages: Sequence[Stage], folder: Path, gpus: int, launch: Launch, signals: Signals
    ) -> None:
        self.stages = {stage.name: stage for stage in stages}
        self.folder = folder
        self.gpus = gpus
        self.launch = launch
        self.signals = signals
        self.records = load_graph(folder)

    def run(self) -> Records:
        """Run what is not done, one after another, until the end or until a stop is requested.

        A failed stage holds up those that need it, and no others. Returns the stages' records.
        """
        for stage in self.stages.values():
            old = self.records.get(stage.name, Record((), ()))
            state = graph.DONE if old.state == graph.DONE else graph.PENDING
            command = command_of(stage.words, self.gpus if stage.on_every_gpu else 1)
            self.records[stage.name] = replace(
                old, needs=stage.needs, command=command, state=state, note=""
            )
        save_graph(self.folder, self.records)
        for number, stage in enumerate(self.stages.values(), start=1):
            self._advance(stage, f"[{number}/{len(self.stages)}] {stage.name}")
            stopped = self.records[stage.name].state == graph.INTERRUPTED
            if stopped or self.signals.stop_requested_by:
                break
        return {name: self.records[name] for name in self.stages}

    def _advance(self, stage: Stage, title: str) -> None:
        missing = [name for name in stage.needs if self.records[name].state != graph.DONE]
        if missing and not stage.always:
            note = f"needs {missing[0]}, which is {self.records[missing[0]].state}"
            self._note(stage, state=graph.BLOCKED, note=note)
            print(f"{title}: not run, {note}", flush=True)
            return
        fingerprint = stage_fingerprint(stage, self.stages, self.folder)
        if is_current(stage, fingerprint, self.records[stage.name]):
            self._note(stage, state=graph.DONE, note="done before")
            print(f"{title}: done before", flush=True)
        else:
            self._run(stage, title, fingerprint)

    def _run(self, stage: Stage, title: str, fingerprint: str) -> None:
        record = self.records[stage.name]
        there = any(path.exists() for path in stage.owns)
        if there and stage.replaceable and record.fingerprint not in (None, fingerprint):
            _set_aside(stage, self.folder, title)
            there = False
        # What is there may stem from other inputs, until the stage itself has accepted it.
        made_from = record.fingerprint if there else fingerprint
        earlier = record.seconds if there and made_from == fingerprint else 0.0
        self._note(
            stage,
            state=graph.RUNNING,
            fingerprint=made_from,
            seconds=earlier,
            started=_now(),
            ended=None,
        )
        print(f"{title}: started", flush=True)
        started = time.monotonic()
        state, note = self._judge(stage, self.launch(stage, record.command))
        seconds = time.monotonic() - started
        if state == graph.DONE:
            made_from = fingerprint
        # A refusal took no part in making what is there.
        total = earlier + seconds if made_from == fingerprint else record.seconds
        self._note(
            stage,
            state=state,
            note=note,
            fingerprint=made_from,
            seconds=round(total, 3),
            ended=_now(),
        )
        reason = f" ({note})" if note else ""
        print(f"{title}: {state}{reason} after {seconds:.1f} s", flush=True)

    def _judge(self, stage: Stage, code: int) -> tuple[str, str]:
        """The state that an exit code means, and why."""
        if code == 0 and (stage.has_outputs or not stage.outputs):
            return graph.DONE, ""
        if self.signals.stop_requested_by:
            return graph.INTERRUPTED, f"by {self.signals.stop_requested_by}"
        if code == 0:  # as a stage ends that was itself asked to stop
            return graph.INTERRUPTED, "left before it was done"
        reason = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return graph.FAILED, reason

    def _note(self, stage: Stage, **changes: Any) -> None:
        self.records[stage.name] = replace(self.records[stage.name], **changes)
        save_graph(self.folder, self.records)


def _set_aside(stage: Stage, folder: Path, title: str) -> None:
    """Move what the stage owns to old-XXXXXXXX/, where nothing takes it for a result."""
    aside = folder / f"old-{secrets.token_hex(4)}"
    for path in stage.owns:
        if path.exists():
            target = aside / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
            print(f"{title}: {path} was made from other inputs and is now {target}", flush=True)


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
