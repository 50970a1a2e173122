"""Stages as processes of this machine."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import IO

_POLL_SECONDS = 0.1


class Signals:
    """SIGINT, SIGTERM and SIGUSR2 that arrived, to be passed on to the running stage."""

    def __init__(self) -> None:
        self.waiting: list[int] = []
        self.stop_requested_by: str | None = None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, self._handle)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.stop_requested_by = signal.Signals(number).name
        # Stages take both alike, but torchrun knows SIGTERM only and would die of SIGUSR2.
        self.waiting.append(signal.SIGTERM if number == signal.SIGUSR2 else number)


def command_of(words: Sequence[str], processes: int) -> tuple[str, ...]:
    """The command line of a stage, in `processes` processes where that is more than one."""
    if processes <= 1:
        return (sys.executable, *words)
    torchrun = ("-m", "torch.distributed.run", "--standalone")
    return (sys.executable, *torchrun, f"--nproc-per-node={processes}", *words)


def run_process(command: Sequence[str], log: Path, signals: Signals, lock: int) -> int:
    """Run a command to its end and return its exit code, below 0 when a signal ended it.

    The process writes to `log` itself, and what it writes is copied to the console from there: it
    goes on undisturbed when this one is killed, and holds the `lock` until it ends.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output, log.open("rb") as shown:
        now = datetime.now().isoformat(sep=" ", timespec="seconds")
        output.write(f"--- {now} {shlex.join(command)}\n".encode())
        output.flush()
        shown.seek(0, os.SEEK_END)
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=_environment(),
            pass_fds=(lock,),
            start_new_session=True,  # Ctrl-C reaches it once, through this process
        )
        while process.poll() is None:
            while signals.waiting:
                process.send_signal(signals.waiting.pop(0))
            _copy(shown)
            time.sleep(_POLL_SECONDS)
        _copy(shown)
        return process.returncode


def count_gpus() -> int:
    """GPUs that a stage may use, found without torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
    if shutil.which("nvidia-smi") is None:
        return 0
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return sum(line.startswith("GPU ") for line in listing.stdout.splitlines())


def _environment() -> dict[str, str]:
    # torchrun would kill a process that takes longer than 30 s to save what it has.
    ours = {"PYTHONUNBUFFERED": "1", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "600"}
    return {**os.environ, **ours}


def _copy(shown: IO[bytes]) -> None:
    sys.stdout.buffer.write(shown.read())
    sys.stdout.flush()
