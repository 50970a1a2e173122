"""Leaving cleanly: SIGTERM, SIGINT and SIGUSR2 ask for a stop at the next step boundary."""

import signal
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


class StopRequest:
    """False until one of the signals arrives. A second Ctrl-C ends the program at once.

    SLURM sends SIGUSR2 ahead of the time limit (`--signal=USR2@90`) and SIGTERM at preemption.
    """

    def __init__(self) -> None:
        self.requested_by: str | None = None
        for number in _SIGNALS:
            signal.signal(number, self._handle)

    def __bool__(self) -> bool:
        return self.requested_by is not None

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.requested_by == "SIGINT":
            raise KeyboardInterrupt
        self.requested_by = signal.Signals(number).name


def restore_default_signals(_worker: int = 0) -> None:
    """For data-loader workers: they end with their parent and must not swallow its signals."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
