"""How a run is doing: `python -m pipeline.status runs/NAME [--watch]`.

What is believed, in this order: a finished stage's files, the live queue, SLURM's accounting, and
what the stage's last attempt noted.
"""

import argparse
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

from common.errors import UserError, run_command
from pipeline import graph, slurm
from pipeline.graph import Entry, Record, load_graph, load_records, with_blocked
from pipeline.progress import Progress, last_line, last_word, progress_of
from pipeline.slurm import Job
from pipeline.stage import Stage

_EVERY = 10  # seconds between looks
_WIDTH = 90  # of a running stage's last line: as much as tells how it goes
_TIMESTAMP = re.compile(r"[\d-]+ [\d:]+ INFO +")

_CAUSES = {
    "TIMEOUT": "reached its time limit before it could save: more minutes or signal_lead",
    "OUT_OF_MEMORY": "out of memory: more memory_gb",
    "NODE_FAIL": "its node failed",
    "PREEMPTED": "preempted, and not requeued",
    "COMPLETED": "ended without leaving what it should",
    "CANCELLED": "cancelled",
}
_COLOURS = {"done": "green", "running": "cyan", "failed": "red", "lost": "red", "blocked": "yellow"}


@dataclass(frozen=True)
class Status:
    """One stage's line."""

    stage: str
    state: str  # done, running, queued, requeued, failed, blocked, interrupted, lost, pending
    job: str = ""
    node: str = ""
    restarts: int = 0
    progress: Progress = field(default_factory=Progress)
    detail: str = ""  # the last line of its log while it runs, why it failed or waits otherwise


def read_status(folder: Path) -> list[Status]:
    """Every stage of a run in the plan's order. Raises UserError where there is no run."""
    entries = load_graph(folder)
    if not entries:
        raise UserError(f"{folder}: no {graph.GRAPH} there: give the folder of a run")
    records = with_blocked(entries, load_records(folder, entries))
    open_jobs = [
        entry.job
        for name, entry in entries.items()
        if entry.job and not _is_done(entry.stage, records[name])
    ]
    queue = slurm.queue() if open_jobs else {}
    ended = slurm.ended([job for job in open_jobs if job not in queue]) if open_jobs else {}
    statuses = []
    for name, entry in entries.items():
        status = _status(folder, entry, records[name], queue, ended)
        if status.detail == "Dependency":
            missing = [n for n in entry.stage.needs if not _is_done(entries[n].stage, records[n])]
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            status = replace(status, detail=f"waits for {(missing or ['its turn'])[0]}{more}")
        statuses.append(status)
    return statuses


def _status(
    folder: Path, entry: Entry, record: Record, queue: Mapping[str, Job], ended: Mapping[str, Job]
) -> Status:
    stage, job = entry.stage, entry.job or ""
    restarts = max(0, len(record.steps) - 1) if record.job == entry.job else 0
    if _is_done(stage, record) and job not in queue:
        return Status(stage.name, graph.DONE, job, restarts=restarts, detail=record.note)
    if job in queue:
        return _alive(folder, stage, queue[job], job, restarts)
    if not job and record.state == graph.RUNNING and not graph.is_locked(folder):
        detail = "its process is gone, or on another machine: the same command continues"
        return Status(stage.name, graph.INTERRUPTED, detail=detail)
    if not job:
        return Status(stage.name, record.state, detail=_why(folder, stage, record))
    return _ended(folder, stage, record, ended.get(job), job, restarts)


def _alive(folder: Path, stage: Stage, live: Job, job: str, restarts: int) -> Status:
    if live.state == "PENDING":
        detail = live.reason
        if live.reason == "BeginTime":
            detail = f"starts at {live.start.replace('T', ' ')}"
        if live.reason == "DependencyNeverSatisfied":
            return Status(stage.name, graph.BLOCKED, job, detail="a stage that it needs failed")
        state = "requeued" if live.reason == "BeginTime" or restarts else "queued"
        return Status(stage.name, state, job, restarts=restarts, detail=detail)
    line = _TIMESTAMP.sub("", last_line(folder, stage.name))[:_WIDTH]
    state = live.state.lower()
    return Status(stage.name, state, job, live.node, restarts, progress_of(stage), line)


def _ended(
    folder: Path, stage: Stage, record: Record, last: Job | None, job: str, restarts: int
) -> Status:
    """A stage that is not done, whose job is not in the queue."""
    if record.state == graph.BLOCKED:
        return Status(stage.name, graph.BLOCKED, job, detail=record.note)
    if record.job == job and record.state == graph.FAILED:
        return Status(
            stage.name, graph.FAILED, job, "", restarts, detail=_why(folder, stage, record)
        )
    if last is None:
        detail = f"SLURM knows nothing of job {job} any more: the same command submits it again"
        return Status(stage.name, "lost", job, restarts=restarts, detail=detail)
    cause = _CAUSES.get(last.state, last.state)
    if last.state == "CANCELLED" and "Dependency" in last.reason:
        return Status(stage.name, graph.BLOCKED, job, detail="a stage that it needs failed")
    line = last_line(folder, stage.name)
    detail = f"{cause}: {line}" if line and last.state != "CANCELLED" else cause
    return Status(stage.name, graph.FAILED, job, last.node, restarts, detail=detail)


def _is_done(stage: Stage, record: Record) -> bool:
    return record.state == graph.DONE and stage.has_outputs


def _why(folder: Path, stage: Stage, record: Record) -> str:
    """Why a stage is in its state: for a failed one with its own last word."""
    words = [record.note]
    if record.state == graph.FAILED and record.note.startswith(("exit code", "killed")):
        words.append(last_word(folder, stage))
    return ": ".join(word for word in words if word)


def table_of(statuses: Sequence[Status]) -> Table:
    """What the terminal shows."""
    table = Table(box=box.SIMPLE, title_justify="left")
    for name in ("stage", "state", "job", "node", "restarts", "step", "speed", "left", "what"):
        right = name in ("restarts", "step", "speed", "left")
        flexible = name == "what"
        table.add_column(
            name,
            justify="right" if right else "left",
            no_wrap=not flexible,
            overflow="fold" if flexible else "ellipsis",
        )
    for status in statuses:
        colour = _COLOURS.get(status.state, "default")
        table.add_row(
            status.stage,
            f"[{colour}]{status.state}[/]",
            status.job,
            status.node,
            str(status.restarts or ""),
            _step_words(status.progress),
            status.progress.rate,
            _left_words(status.progress.seconds_left),
            _plain(status.detail),
        )
    return table


def summary(statuses: Sequence[Status]) -> str:
    """One line: how many stages are in which state."""
    counts: dict[str, int] = {}
    for status in statuses:
        counts[status.state] = counts.get(status.state, 0) + 1
    now = datetime.now().strftime("%H:%M:%S")
    return f"{now}  {', '.join(f'{number} {state}' for state, number in counts.items())}"


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


def _step_words(progress: Progress) -> str:
    if progress.step is None or not progress.steps:
        return str(progress.step or "")
    return f"{progress.step}/{progress.steps} {progress.step / progress.steps:.0%}"


def _left_words(seconds: float | None) -> str:
    return "" if seconds is None else str(timedelta(seconds=round(seconds)))


def main() -> None:
    """Show the table once, or until everything has ended."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.status", description=__doc__)
    parser.add_argument("folder", type=Path, help="a run folder, runs/NAME")
    parser.add_argument("--watch", action="store_true", help=f"look again every {_EVERY} s")
    parser.add_argument("--cancel", action="store_true", help="end all of the run's jobs first")
    arguments = parser.parse_args()
    if arguments.cancel:
        cancel(arguments.folder)
    console = Console(width=None if sys.stdout.isatty() else 200)
    statuses = read_status(arguments.folder)
    if not arguments.watch or not sys.stdout.isatty():
        _print(console, statuses)
    if not arguments.watch:
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while any(status.state in ("queued", "requeued") or status.node for status in statuses):
            if sys.stdout.isatty():
                live.update(table_of(statuses), refresh=True)
            time.sleep(_EVERY)
            statuses = read_status(arguments.folder)
    _print(console, statuses)


def cancel(folder: Path) -> None:
    """End all of a run's jobs that have not ended."""
    jobs = [entry.job for entry in load_graph(folder).values() if entry.job]
    alive = sorted(slurm.queue().keys() & set(jobs), key=int)
    slurm.cancel(alive)
    print(f"{folder}: {len(alive)} jobs cancelled")


def _print(console: Console, statuses: Sequence[Status]) -> None:
    console.print(table_of(statuses))
    print(summary(statuses))


if __name__ == "__main__":
    run_command(main)
