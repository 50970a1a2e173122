"""A stage inside a SLURM job. The batch script runs, on the job's first node:

    python -m pipeline.job begin RUN STAGE RESTARTS     exit code 3: there is nothing to do
    srun ... python -m submitit.core._submit ...        in every task: a `Task`
    python -m pipeline.job end RUN STAGE CODE           puts the job back into the queue, or ends it

The job is requeued from here, outside the step that the requeue kills. Jobs that wait for this one
stay in the queue meanwhile, and start only when it has ended well.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from common.errors import UserError, run_command
from pipeline import graph
from pipeline.attempt import begin, finish
from pipeline.graph import load_graph, load_record, save_record
from pipeline.stage import Stage

NOTHING_TO_DO = 3
_SIGNALS = (signal.SIGUSR2, signal.SIGTERM)
_WAIT_FOR_THE_END = 120  # seconds, after a requeue


@dataclass
class Task:
    """What submitit calls in each task of a job: it becomes the stage's own process.

    From here on the signals wait until the stage can take them. (Before, while Python starts, they
    are ignored: nothing could be lost yet.) A stage that cannot save ignores them to its end.
    """

    name: str
    words: tuple[str, ...]  # what follows the Python interpreter
    resumes: bool

    def __setstate__(self, state: dict[str, object]) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # before submitit would handle them
        self.__dict__.update(state)

    def __call__(self) -> None:
        """Does not return."""
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL if self.resumes else signal.SIG_IGN)
        command = (sys.executable, *self.words)
        where = {name: os.environ.get(f"SLURM_{name}", "?") for name in ("JOB_ID", "PROCID")}
        print(
            f"--- {datetime.now().isoformat(sep=' ', timespec='seconds')} {self.name} "
            f"job={where['JOB_ID']} restart={os.environ.get('SLURM_RESTART_COUNT', '0')} "
            f"node={os.environ.get('SLURMD_NODENAME', '?')} "
            f"task={where['PROCID']}/{os.environ.get('SLURM_NTASKS', '?')} {shlex.join(command)}",
            flush=True,
        )
        os.environ["PYTHONUNBUFFERED"] = "1"
        os.execv(command[0], command)


def begin_job(folder: Path, name: str, most_restarts: int) -> int:
    """The exit code: 0, run the stage; NOTHING_TO_DO, it is done; 1, it cannot run."""
    stages = {n: entry.stage for n, entry in load_graph(folder).items()}
    stage, job = stages[name], os.environ["SLURM_JOB_ID"]
    restart = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    earlier = load_record(folder, name)
    steps = (*(earlier.steps if earlier.job == job else ()), stage.step() if stage.resumes else 0)
    try:
        if reason := _why_not(stage, stages, steps, restart, most_restarts):
            raise UserError(reason)
        record = begin(folder, stage, stages, job)
    except UserError as error:
        record = load_record(folder, name)
        refused = replace(record, state=graph.FAILED, note=str(error), job=job, steps=steps)
        save_record(folder, name, refused)
        print(f"{name}: not run, {error}", flush=True)
        return 1
    if record is None:
        print(f"{name}: done before", flush=True)
        return NOTHING_TO_DO
    save_record(folder, name, replace(record, steps=steps))
    if stage.resumes:
        print(f"{name}: starts from step {steps[-1]}", flush=True)
    return 0


def _why_not(
    stage: Stage, stages: dict[str, Stage], steps: tuple[int, ...], restart: int, most: int
) -> str | None:
    """Why the stage cannot run now, if so."""
    for need in stage.needs:
        if not stages[need].has_outputs and not stage.always:
            return f"needs {need}, which has not left {stages[need].outputs[0]}"
    if restart > most:
        return f"restarted {most} times, the most that the cluster's profile allows (restarts)"
    if stage.resumes and len(steps) > 2 and len(set(steps[-3:])) == 1:
        return (
            f"restarted twice at step {steps[-1]} without a step done in between: its log tells "
            "how it ended, and a longer time limit or more memory may help"
        )
    return None


def end_job(folder: Path, name: str, code: int) -> int:
    """The exit code of the job: 0 when the stage is done, so that those that wait for it start."""
    stage = load_graph(folder)[name].stage
    if code > 128:  # as a shell says it
        code = 128 - code
    asked = signal.Signals(-code).name if -code in _SIGNALS else None
    record = finish(folder, stage, code, asked)
    reason = f" ({record.note})" if record.note else ""
    print(f"{name}: {record.state}{reason}", flush=True)
    if record.state == graph.INTERRUPTED and _is_running():
        done = subprocess.run(
            ["scontrol", "requeue", os.environ["SLURM_JOB_ID"]],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 0:
            time.sleep(_WAIT_FOR_THE_END)
        note = f"cannot be requeued ({done.stderr.strip()}): run the same command again"
        save_record(folder, name, replace(record, state=graph.FAILED, note=note))
        print(f"{name}: {note}", flush=True)
    return 0 if record.state == graph.DONE else 1


def _is_running() -> bool:
    """Whether nobody has ended the job: one that was cancelled must not come back."""
    words = ["squeue", "--noheader", "--format=%T", f"--jobs={os.environ['SLURM_JOB_ID']}"]
    state = subprocess.run(words, capture_output=True, text=True, check=False).stdout
    return state.strip() == "RUNNING"


def main() -> None:
    """Called by the batch script alone."""
    verb, folder, name, number = sys.argv[1:]
    action = {"begin": begin_job, "end": end_job}[verb]
    sys.exit(action(Path(folder), name, int(number)))


if __name__ == "__main__":
    run_command(main)
