"""Leaving cleanly: SIGTERM, SIGINT and SIGUSR2 ask for a stop at the next step boundary."""

import ctypes
import signal
import sys
from types import FrameType

HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class StopRequest:
    """False until one of the signals arrives. A second Ctrl-C ends the program at once.

    SLURM sends SIGUSR2 ahead of the time limit (`--signal=USR2@90`) and SIGTERM at preemption. Who
    starts a process may block the signals until it can take them: here they are let through.
    """

    def __init__(self) -> None:
        self.requested_by: str | None = None
        for number in HANDLED:
            signal.signal(number, self._handle)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)

    def __bool__(self) -> bool:
        return self.requested_by is not None

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.requested_by == "SIGINT":
            raise KeyboardInterrupt
        self.requested_by = signal.Signals(number).name


def set_up_worker(_worker: int = 0) -> None:
    """For data-loader workers: leave the signals to the training process, and end with it.

    Without the last line a worker whose parent was killed waits for ever for its batches to be
    fetched (its siblings hold the pipe open).
    """
    for number in HANDLED:  # they often go to a whole process group
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
