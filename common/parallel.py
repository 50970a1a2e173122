"""Independent work on several cores of this machine."""

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from common.errors import UserError
from common.shutdown import set_up_worker

Item = TypeVar("Item")
Result = TypeVar("Result")

_KILLED = (
    "a worker process was killed, perhaps for want of memory: run the same command again with "
    "more memory, or with fewer workers or cores"
)

_work: Callable[[Any], Any]  # of this worker


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0))


def in_order(
    work: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Iterator[Result]:
    """`work` on each item by so many processes; the results in the items' order, as they come.

    Workers are forks: they see what `work` refers to without a copy; items and results are pickled.
    Raises what `work` raises, and UserError when a worker is killed.
    """
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, fork, _start, (work,)) as pool:
        try:
            yield from pool.map(_call, items)
        except BrokenProcessPool:
            raise UserError(_KILLED) from None


@contextmanager
def data_loading() -> Iterator[None]:
    """What a data loader's killed worker raises in here, anywhere, becomes a UserError."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" in str(error):
            raise UserError(_KILLED) from None
        raise


def _start(work: Callable[[Any], Any]) -> None:
    global _work  # noqa: PLW0603
    _work = work
    set_up_worker()


def _call(item: Any) -> Any:
    return _work(item)
