"""The graph as SLURM jobs: one per stage, each waiting for those that it needs.

What is done is skipped, what is queued or running is left alone, and the rest is submitted.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from common.errors import UserError
from pipeline import graph, slurm
from pipeline.attempt import is_current
from pipeline.cluster import Profile
from pipeline.graph import Entries, Entry, load_graph, load_record, locked, save_graph, save_record
from pipeline.slurm import Job, Submission
from pipeline.snapshot import take_snapshot
from pipeline.stage import Stage, plan_fingerprint, stage_fingerprint

_LOCAL_FILE_SYSTEMS = ("tmpfs", "ramfs", "devtmpfs")
_LOCAL_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm", "/run")


@dataclass
class Decision:
    """What is to become of each stage, by name."""

    done: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)  # queued or running
    renewed: list[str] = field(default_factory=list)  # queued, but to wait for new jobs
    submitted: list[str] = field(default_factory=list)  # with those renewed


def submit_graph(stages: Sequence[Stage], folder: Path, profile: Profile) -> Decision:
    """Submit what is neither done nor on its way. All of it is, or nothing.

    Raises UserError, with no new job left in the queue, for what SLURM would refuse.
    """
    check_shared(folder)
    slurm.queue()  # where SLURM does not answer, nothing is written
    with locked(folder):
        entries, jobs = load_graph(folder), slurm.queue()
        stages = [_wider(stage, entries) for stage in stages]
        decision = decide(stages, folder, entries, jobs)
        chosen = [stage for stage in stages if stage.name in decision.submitted]
        submission = Submission(folder, profile, folder / "code")
        for stage in {profile.resources(stage): stage for stage in chosen}.values():
            slurm.test_only(submission.script(stage))
        submission = replace(submission, code=take_snapshot(folder))
        slurm.cancel([str(entries[name].job) for name in decision.renewed])
        numbers = {name: str(entries[name].job) for name in entries if entries[name].job in jobs}
        numbers = {n: job for n, job in numbers.items() if n not in decision.renewed}
        save_graph(folder, _merged(stages, entries, decision, submission))
        _submit(chosen, submission, numbers, entries)
    return decision


def decide(
    stages: Sequence[Stage], folder: Path, entries: Entries, jobs: dict[str, Job]
) -> Decision:
    """Raises UserError for a job on its way that was submitted with other settings."""
    decision = Decision()
    by_name = {stage.name: stage for stage in stages}
    for stage in stages:
        entry = entries.get(stage.name)
        job = jobs.get(entry.job or "") if entry else None
        waits_for_new = any(need in decision.submitted for need in stage.needs)
        if entry and job:
            if entry.fingerprint != plan_fingerprint(stage, folder):
                raise UserError(
                    f"{stage.name}: job {entry.job} is {job.state} with other settings: wait for "
                    f"it, end it with scancel {entry.job}, or choose another --output"
                )
            never = job.reason == "DependencyNeverSatisfied"
            if never or (waits_for_new and (stage.always or job.state == "PENDING")):
                decision.renewed.append(stage.name)
                decision.submitted.append(stage.name)
            else:
                decision.kept.append(stage.name)
        elif {*decision.kept, *decision.submitted}.isdisjoint(stage.needs) and is_current(
            stage, stage_fingerprint(stage, by_name, folder), load_record(folder, stage.name)
        ):
            decision.done.append(stage.name)
        else:
            decision.submitted.append(stage.name)
    return decision


def check_shared(folder: Path) -> None:
    """Raises UserError where the compute nodes could not see what is written to `folder`."""
    path = folder.resolve()
    kind = _file_system(path)
    if kind in _LOCAL_FILE_SYSTEMS or any(path.is_relative_to(local) for local in _LOCAL_FOLDERS):
        raise UserError(
            f"{folder}: on a disk of this machine only ({kind or 'local'}), which compute nodes do "
            "not see: choose an --output on a shared file system"
        )


def live_jobs(folder: Path) -> dict[str, Job]:
    """The jobs of a run that are queued or running, by stage."""
    entries = load_graph(folder)
    if not any(entry.job for entry in entries.values()) or not slurm.is_available():
        return {}
    jobs = slurm.queue()
    return {name: jobs[e.job] for name, e in entries.items() if e.job in jobs}


def _submit(
    chosen: Sequence[Stage], submission: Submission, numbers: dict[str, str], before: Entries
) -> None:
    """Submit these stages; `numbers` are the jobs on their way. On failure all is as `before`."""
    folder = submission.folder
    entries = load_graph(folder)
    made: list[str] = []
    try:
        for stage in chosen:
            record = load_record(folder, stage.name)
            save_record(folder, stage.name, replace(record, state=graph.PENDING, note=""))
            number = submission.submit(stage, _dependency(stage, numbers))
            made.append(number)
            numbers[stage.name] = number
            entries[stage.name] = replace(entries[stage.name], job=number)
            save_graph(folder, entries)
    except BaseException:
        slurm.cancel(made)
        save_graph(folder, before)
        raise


def _merged(
    stages: Sequence[Stage], entries: Entries, decision: Decision, submission: Submission
) -> Entries:
    """The plan's stages in its order, then those of earlier plans."""
    merged = {}
    for stage in stages:
        if stage.name in decision.kept:
            merged[stage.name] = entries[stage.name]
            continue
        planned = plan_fingerprint(stage, submission.folder)
        entry = Entry(stage, ("python", *submission.words(stage)), planned)
        if stage.name in decision.submitted:
            entry = replace(entry, code=str(submission.code))
        elif stage.name in entries:  # what made it
            entry = replace(entries[stage.name], stage=stage, fingerprint=planned)
        merged[stage.name] = entry
    return merged | {name: entry for name, entry in entries.items() if name not in merged}


def _wider(stage: Stage, entries: Entries) -> Stage:
    """Tables and report tell of all that the run folder has: they wait for earlier plans' too."""
    if not stage.always or stage.name not in entries:
        return stage
    needs = dict.fromkeys((*stage.needs, *entries[stage.name].stage.needs))
    return replace(stage, needs=tuple(needs))


def _dependency(stage: Stage, numbers: dict[str, str]) -> str | None:
    """afterok of the needed jobs; afterany for what runs whatever became of them.

    Needs without a job are done. A number that SLURM has forgotten would count as one that ended
    well, so only those that it knows may stand here.
    """
    waited = [numbers[need] for need in stage.needs if need in numbers]
    return ":".join(["afterany" if stage.always else "afterok", *waited]) if waited else None


def _file_system(path: Path) -> str:
    """The kind of file system that holds `path`, from /proc/mounts; '' where it is not known."""
    best, kind = "", ""
    try:
        mounts = Path("/proc/mounts").read_text().splitlines()
    except OSError:
        return ""
    for line in mounts:
        place, found = line.split()[1:3]
        if path.is_relative_to(place) and len(place) >= len(best):
            best, kind = place, found
    return kind
