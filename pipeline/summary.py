"""What the console shows of a run: the plan of a dry run, and at the end what took how long."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from pipeline import graph
from pipeline.attempt import is_current
from pipeline.cluster import Profile, Resources
from pipeline.graph import Records, load_record
from pipeline.local import command_of
from pipeline.slurm import Submission
from pipeline.stage import Stage, stage_fingerprint
from pipeline.submit import Decision


def print_plan(stages: Sequence[Stage], folder: Path, gpus: int) -> None:
    """Each stage with its needs, inputs, outputs and command, and whether it would be skipped."""
    by_name = {stage.name: stage for stage in stages}
    skipped: set[str] = set()
    for number, stage in enumerate(stages, start=1):
        if skipped.issuperset(stage.needs):  # else what it would read is yet to be made
            fingerprint = stage_fingerprint(stage, by_name, folder)
            current = is_current(stage, fingerprint, load_record(folder, stage.name))
            if current and not stage.always:
                skipped.add(stage.name)
        inputs = [*stage.configs, *(path for need in stage.needs for path in by_name[need].outputs)]
        command = command_of(stage.words, gpus if stage.on_every_gpu else 1)
        verdict = "done before, would be skipped" if stage.name in skipped else "would run"
        print(f"[{number}/{len(stages)}] {stage.name}: {verdict}")
        print(f"  needs    {', '.join(stage.needs) or 'nothing'}")
        print(f"  inputs   {', '.join(map(str, inputs)) or 'none'}")
        print(f"  outputs  {', '.join(map(str, stage.outputs)) or 'under ' + str(folder)}")
        print(f"  command  {shlex.join(command)}")


def print_jobs(stages: Sequence[Stage], folder: Path, profile: Profile) -> None:
    """The jobs that would be submitted, and the most GPU time that they could use."""
    submission = Submission(folder, profile, folder / "code" / "COPY")
    hours = 0.0
    for number, stage in enumerate(stages, start=1):
        resources = profile.resources(stage)
        kind = "afterany" if stage.always else "afterok"
        waits = f"{kind}:{':'.join(stage.needs)}" if stage.needs else None
        hours += resources.gpu_hours
        print(f"[{number}/{len(stages)}] {stage.name}: {describe(resources)}")
        for line in submission.script(stage, waits).splitlines():
            print(f"    {line}".rstrip())
    print(f"{len(stages)} jobs; at most {hours:,.0f} GPU hours, if each uses its time limit once")
    print("nothing was submitted")


def describe(resources: Resources) -> str:
    """What a stage gets, in words."""
    gpus = f", {resources.gpus} GPUs" if resources.gpus else ""
    return (
        f"{resources.nodes} x {resources.processes} processes of {resources.cpus} CPUs{gpus}, "
        f"{duration(60 * resources.minutes)}, at most {resources.gpu_hours:,.0f} GPU hours"
    )


def print_submitted(decision: Decision, folder: Path) -> None:
    """What was submitted, and how to follow it."""
    print(
        f"{folder}: {len(decision.submitted)} stages submitted, {len(decision.kept)} on their way, "
        f"{len(decision.done)} done before"
    )
    print(f"follow them with: python -m pipeline.status {shlex.quote(str(folder))} --watch")


def print_summary(records: Records, seconds: float) -> None:
    """A table of stages, states and durations; `seconds` is how long this command took."""
    table = Table(box=box.SIMPLE)
    table.add_column("stage")
    table.add_column("state")
    table.add_column("time", justify="right")
    table.add_column("why")
    for name, record in records.items():
        ran = record.state not in (graph.PENDING, graph.BLOCKED)
        table.add_row(name, record.state, duration(record.seconds) if ran else "", record.note)
    table.add_section()
    table.add_row("this command", "", duration(seconds), "")
    # A file or a pipe has no width of its own: wide enough that no name is cut.
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def verdict(records: Records, folder: Path, command: str) -> str:
    """One line: whether all is done, and otherwise what to do."""
    states = [record.state for record in records.values()]
    if states.count(graph.DONE) == len(states):
        report = folder / "report.html"
        return f"all {len(states)} stages done" + (f": see {report}" if report.exists() else "")
    if graph.FAILED in states:
        failed = [name for name, record in records.items() if record.state == graph.FAILED]
        logs = ", ".join(str(folder / "logs" / f"{name}.log") for name in failed)
        return f"{len(failed)} failed (see {logs}); once mended, continue with: {command}"
    return f"interrupted; the same command continues: {command}"


def duration(seconds: float) -> str:
    """Seconds as a person would say them."""
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02.0f} s" if minutes else f"{rest:.1f} s"
