"""SLURM as this program uses it: one job per stage through submitit, and what is known of jobs."""

import getpass
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from common.errors import UserError
from pipeline.cluster import Profile
from pipeline.job import NOTHING_TO_DO, Task
from pipeline.stage import Stage

JOBS = Path("logs", "jobs", "%j")  # below the run folder; %j: the job's number
_DEAF = "trap '' USR2 TERM; exec \"$@\""


@dataclass(frozen=True)
class Job:
    """What the queue or the accounting says of a job."""

    state: str  # SLURM's word: PENDING, RUNNING, COMPLETED, FAILED, TIMEOUT, ...
    reason: str = ""  # why it waits
    node: str = ""
    start: str = ""  # when it began, or will at the earliest


def is_available() -> bool:
    """Whether jobs can be submitted from here."""
    return shutil.which("sbatch") is not None and shutil.which("srun") is not None


@dataclass(frozen=True)
class Submission:
    """How the stages of one run become jobs."""

    folder: Path
    profile: Profile
    code: Path  # the copy of the code that the jobs run

    def parameters(self, stage: Stage, dependency: str | None = None) -> dict[str, Any]:
        """What submitit makes the stage's batch script from."""
        profile, resources = self.profile, self.profile.resources(stage)
        gpus = f"{profile.gpu_type}:{resources.gpus}" if profile.gpu_type else resources.gpus
        memory = resources.memory_gb
        # Since 22.05 srun no longer takes over what sbatch was told of CPUs.
        srun = [f"--cpus-per-task={resources.cpus}", "--kill-on-bad-exit=1", *profile.srun]
        given = {
            "job_name": f"{self.folder.name}/{stage.name}",
            "partition": profile.partition,
            "account": profile.account,
            "qos": profile.qos,
            "constraint": profile.constraint,
            "time": resources.minutes,
            "nodes": resources.nodes,
            "ntasks_per_node": resources.processes,
            "cpus_per_task": resources.cpus,
            "gpus_per_node": gpus if resources.gpus else None,
            "mem": None if memory is None else f"{round(memory * 1024)}M" if memory else "0",
            "signal_delay_s": profile.signal_lead,
            "stderr_to_stdout": True,
            "dependency": dependency,
            "setup": self._before(stage),
            "srun_args": srun,
            "teardown": [self._job_command("end", stage, '"$?"'), "exit $?"],
            "additional_parameters": {"kill-on-invalid-dep": "yes", "requeue": True}
            | dict(profile.sbatch),
        }
        return {key: value for key, value in given.items() if value is not None}

    def script(self, stage: Stage, dependency: str | None = None) -> str:
        """The text that sbatch is given."""
        from submitit.slurm.slurm import _make_sbatch_string  # planning does without

        jobs = self.folder.absolute() / JOBS
        command = f"{self._task_python()} -u -m submitit.core._submit {shlex.quote(str(jobs))}"
        given = self.parameters(stage, dependency)
        return str(_make_sbatch_string(command=command, folder=jobs, **given))

    def submit(self, stage: Stage, dependency: str | None = None) -> str:
        """Submit the stage's job; returns its number. Raises UserError with SLURM's reason."""
        from submitit import SlurmExecutor
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        executor = SlurmExecutor(self.folder / JOBS, python=self._task_python())
        executor.update_parameters(**self.parameters(stage, dependency))
        task = Task(stage.name, self.words(stage), stage.resumes)
        try:
            with redirect_stderr(StringIO()):  # submitit prints what it raises as well
                job = executor.submit(task).job_id
        except (FailedJobError, FailedSubmissionError) as error:
            raise UserError(f"{stage.name}: SLURM refuses the job: {_reason(str(error))}") from None
        _link_log(self.folder, stage.name, job)
        return str(job)

    def words(self, stage: Stage) -> tuple[str, ...]:
        """The stage's words, its configurations being those of the copy."""
        configs = {str(path): str(self.code / path) for path in stage.configs}
        return tuple(configs.get(word, word) for word in stage.words)

    def _before(self, stage: Stage) -> list[str]:
        return [
            *self.profile.setup,
            f"export PYTHONPATH={shlex.quote(str(self.code))} PYTHONSAFEPATH=1",
            "trap : USR2 TERM  # this shell outlives the step, to say what became of it",
            self._job_command("begin", stage, self.profile.restarts),
            f"case $? in 0) ;; {NOTHING_TO_DO}) exit 0 ;; *) exit 1 ;; esac",
        ]

    def _job_command(self, verb: str, stage: Stage, number: int | str) -> str:
        words = (*self._python(), "-m", "pipeline.job", verb, str(self.folder), stage.name)
        return f"{shlex.join(words)} {number}"

    def _python(self) -> Sequence[str]:
        return self.profile.python or [sys.executable]

    def _task_python(self) -> str:
        """What starts Python in a task, deaf to the signals until it can take them."""
        return f"sh -c {shlex.quote(_DEAF)} task {shlex.join(self._python())}"


def test_only(script: str) -> None:
    """Raises UserError with SLURM's reason when it would not take this batch script."""
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
        file.write(script)
        file.flush()
        done = _run("sbatch", "--test-only", file.name)
    if done.returncode:
        raise UserError(f"SLURM refuses the job: {_reason(done.stderr)}")


def cancel(jobs: Collection[str]) -> None:
    """Cancel these jobs, those that have ended already left aside."""
    if jobs:
        _run("scancel", *jobs)


def queue() -> dict[str, Job]:
    """This user's jobs that have not ended, by number. Raises UserError without a controller."""
    done = _run("squeue", "--noheader", f"--user={getpass.getuser()}", "--format=%i|%T|%r|%N|%S")
    if done.returncode:
        raise UserError(
            f"squeue: {_reason(done.stderr)}: SLURM does not answer; --cluster local does without"
        )
    jobs = {}
    for line in done.stdout.splitlines():
        number, state, reason, node, start = line.strip().split("|")
        jobs[number] = Job(state, "" if reason == "None" else reason, node, start)
    return jobs


def ended(numbers: Collection[str]) -> dict[str, Job]:
    """Those of these jobs that SLURM still knows of, from its accounting or the controller."""
    if not numbers:
        return {}
    fields = "JobIDRaw,State,NodeList,Start"
    words = ("sacct", "-X", "--noheader", "--parsable2", f"--format={fields}")
    done = _run(*words, f"--jobs={','.join(numbers)}")
    if done.returncode == 0 and done.stdout.strip():
        rows = (line.split("|") for line in done.stdout.splitlines())
        found = {n: Job(state.split()[0], "", node, start) for n, state, node, start in rows}
    else:
        found = {}
        for values in _shown("job"):
            state = values.get("JobState", "")
            node = values.get("NodeList", "").replace("(null)", "")
            job = Job(state, values.get("Reason", ""), node, values.get("StartTime", ""))
            found[values.get("JobId", "")] = job
    return {number: found[number] for number in numbers if number in found}


def settings() -> dict[str, str]:
    """SLURM's configuration; empty where it cannot be asked."""
    shown = _run("scontrol", "show", "config").stdout
    pairs = (line.partition("=") for line in shown.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def longest(partition: str | None) -> float:
    """The minutes that a partition lets a job run, the default one's for None; inf without limit.

    Raises UserError for one that there is not.
    """
    for values in _shown("partition", *([partition] if partition else [])):
        if partition or values.get("Default") == "YES":
            return _minutes(values.get("MaxTime", "UNLIMITED"))
    raise UserError(f"partition {partition or '(default)'}: SLURM has none of that name")


def _minutes(text: str) -> float:
    """SLURM's [days-]hours:minutes:seconds."""
    if ":" not in text:
        return float("inf")
    days, _, clock = text.rpartition("-")
    hours, minutes, seconds = map(int, clock.split(":"))
    return int(days or 0) * 1440 + hours * 60 + minutes + seconds / 60


def _link_log(folder: Path, name: str, job: str) -> None:
    """logs/STAGE.log shows what the job's first task prints, as it does without SLURM."""
    log = folder / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists() and not log.is_symlink():
        log.rename(log.with_suffix(".before.log"))
    log.unlink(missing_ok=True)
    depth = len(log.relative_to(folder / "logs").parts) - 1
    log.symlink_to(Path(*[".."] * depth, "jobs", job, f"{job}_0_log.out"))


def _shown(*what: str) -> list[dict[str, str]]:
    """What scontrol shows of jobs or partitions, one mapping for each."""
    lines = _run("scontrol", "--oneliner", "show", *what).stdout.splitlines()
    return [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in lines]


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(words, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return subprocess.CompletedProcess(words, 127, "", f"{words[0]}: not installed")


def _reason(text: str) -> str:
    """What SLURM said, without the traceback that submitit puts around it."""
    lines = [line for line in text.splitlines() if "error" in line.lower()] or text.splitlines()
    return " ".join(line.partition("error: ")[2] or line for line in lines[-2:]).strip()
