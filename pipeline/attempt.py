"""One attempt at a stage, on this machine or in a job: what happens before it, and after.

begin → the stage's own process → finish
"""

import secrets
import signal
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from pipeline import graph
from pipeline.graph import Record, load_record, save_record
from pipeline.stage import Stage, stage_fingerprint


def is_current(stage: Stage, fingerprint: str, record: Record) -> bool:
    """Whether what the stage leaves is there, made from what it would read now."""
    return record.fingerprint == fingerprint and stage.has_outputs


def begin(
    folder: Path, stage: Stage, stages: Mapping[str, Stage], job: str | None = None
) -> Record | None:
    """Note that the stage runs; None when there is nothing to do, because it is done.

    Its output made from other inputs is moved aside first, where it may be replaced.
    """
    record = load_record(folder, stage.name)
    fingerprint = stage_fingerprint(stage, stages, folder)
    if is_current(stage, fingerprint, record) and not stage.always:
        save_record(
            folder, stage.name, replace(record, state=graph.DONE, note="done before", job=job)
        )
        return None
    there = any(path.exists() for path in stage.owns)
    if there and stage.replaceable and record.fingerprint not in (None, fingerprint):
        set_aside(stage, folder, "was made from other inputs")
        there = False
    record = replace(
        record,
        state=graph.RUNNING,
        # What is there may stem from other inputs, until the stage itself has accepted it.
        fingerprint=record.fingerprint if there else fingerprint,
        target=fingerprint,
        seconds=record.seconds if there else 0.0,
        started=_now(),
        ended=None,
        note="",
        job=job,
    )
    save_record(folder, stage.name, record)
    return record


def finish(folder: Path, stage: Stage, code: int, stopped_by: str | None = None) -> Record:
    """Note what became of the attempt, from its exit code (below 0: the signal that ended it)."""
    record = load_record(folder, stage.name)
    ended = _now()
    state, note = _judge(stage, code, stopped_by)
    seconds = record.seconds
    took = datetime.fromisoformat(ended) - datetime.fromisoformat(record.started or ended)
    if record.fingerprint == record.target:
        seconds += took.total_seconds()
    elif state == graph.DONE:
        seconds = took.total_seconds()  # else a refusal, which took no part in making what is there
    made_from = record.target if state == graph.DONE else record.fingerprint
    record = replace(
        record,
        state=state,
        note=note,
        fingerprint=made_from,
        seconds=round(seconds, 3),
        ended=ended,
    )
    save_record(folder, stage.name, record)
    return record


def _judge(stage: Stage, code: int, stopped_by: str | None) -> tuple[str, str]:
    """The state that an exit code means, and why."""
    if code == 0 and (stage.has_outputs or not stage.outputs):
        return graph.DONE, ""
    if stopped_by:
        return graph.INTERRUPTED, f"by {stopped_by}"
    if code == 0:  # as a stage ends that was itself asked to stop
        return graph.INTERRUPTED, "left before it was done"
    return graph.FAILED, killed_by(-code) if code < 0 else f"exit code {code}"


def killed_by(number: int) -> str:
    """What a person calls the end by a signal."""
    hint = " (out of memory?)" if number == signal.SIGKILL else ""
    return f"killed by {signal.Signals(number).name}{hint}"


def set_aside(stage: Stage, folder: Path, why: str) -> None:
    """Move what the stage owns to old-XXXXXXXX/, where nothing takes it for a result."""
    aside = folder / f"old-{secrets.token_hex(4)}"
    for path in stage.owns:
        if path.exists():
            target = aside / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
            print(f"{stage.name}: {path} {why} and is now {target}", flush=True)


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="milliseconds")
