"""Work on several cores: in order, with its errors, and not waiting for who was killed."""

import os
import signal
import time

import pytest

from common.errors import UserError
from common.parallel import in_order


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_the_items_order_from_other_processes(workers):
    held = {"a": lambda x: x * x}  # cannot be pickled

    def work(number):
        time.sleep(0.01 * (5 - number))
        return held["a"](number), os.getpid()

    found = list(in_order(work, range(5), workers))
    assert [value for value, _ in found] == [0, 1, 4, 9, 16]
    assert os.getpid() not in {process for _, process in found}


def test_errors_of_the_work_are_raised():
    def work(number):
        if number == 2:
            raise UserError("the third is wrong")
        return number

    found = in_order(work, range(5), 2)
    assert [next(found), next(found)] == [0, 1]
    with pytest.raises(UserError, match="the third is wrong"):
        next(found)


def test_a_killed_worker_is_told_of():
    def work(number):
        if number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    with pytest.raises(UserError, match="a worker process was killed"):
        list(in_order(work, range(3), 1))
