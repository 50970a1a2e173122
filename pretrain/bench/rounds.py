"""Several ways of doing one thing, timed in turn."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from common.spread import middle_half

Way = Callable[[], Any]
Row = dict[str, Any]  # a line of a table: column → value


def compare(ways: dict[str, Way], images: int, rounds: int, device: torch.device) -> list[Row]:
    """A row for each way: its median time, images/s and how many times as fast as the first.

    One call of each in turn, round after round, so that whatever else the machine does falls on
    all alike. low and high are the ends of the middle half of the rounds. One thread of a CPU is
    timed by its own clock, which stands still while the machine does something else.
    """
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(-1, rounds):
        for name, run in ways.items():
            wait_for(device)
            started = clock()
            run()
            wait_for(device)
            if number >= 0:  # the first round warms up
                seconds[name].append(clock() - started)
    first = next(iter(seconds.values()))
    return [_row(name, values, first, images) for name, values in seconds.items()]


def _row(name: str, seconds: list[float], first: list[float], images: int) -> Row:
    own = middle_half([1000 * value for value in seconds])
    ratio = middle_half([theirs / ours for theirs, ours in zip(first, seconds)])
    return {
        "way": name,
        "ms": own["median"],
        "low": own["low"],
        "high": own["high"],
        "images/s": images / statistics.median(seconds),
        "times as fast": ratio["median"],
        "from": ratio["low"],
        "to": ratio["high"],
    }


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
