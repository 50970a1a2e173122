"""One process, torchrun, or SLURM tasks: found from the environment, used through functions."""

import os
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from submitit.helpers import TorchDistributedEnvironment

from common.errors import UserError

Result = TypeVar("Result")


def start(device_type: str = "auto") -> torch.device:
    """Join the other processes, if there are any, and return this process's device.

    torchrun sets RANK and WORLD_SIZE. An srun step sets SLURM_STEP_NUM_TASKS (an sbatch script
    without srun does not, so a plain `python` inside a larger allocation stays one process).
    Gloo on CPU, NCCL on GPUs. Raises UserError where a GPU is asked for and there is none.
    """
    if "RANK" not in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        os.environ.setdefault("SUBMITIT_EXECUTOR", "slurm")  # also when srun was called by hand
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        os.environ["MASTER_PORT"] = str(_port())
    use_cuda = device_type == "cuda" or (device_type == "auto" and torch.cuda.is_available())
    device = torch.device("cpu")
    if use_cuda:
        if not torch.cuda.is_available():
            raise UserError(
                f"device cuda: no GPU that PyTorch {torch.__version__} can use is visible: ask for "
                "one, look at its driver, or choose cpu"
            )
        # A task that sees its own GPU alone (srun --gpus-per-task) knows it as number 0.
        number = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
        device = torch.device("cuda", number)
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # The others wait while the main process scores a whole test set: ten minutes and more.
        dist.init_process_group("nccl" if use_cuda else "gloo", timeout=timedelta(hours=1))
    return device


def _port() -> int:
    """Where the tasks of a SLURM job meet: below the ports that systems hand out themselves.

    submitit's is the same again after a requeue, when the old one may still be closing.
    """
    job, restart = os.environ["SLURM_JOB_ID"], os.environ.get("SLURM_RESTART_COUNT", "0")
    return 20_000 + (int(job) * 31 + int(restart) * 7) % 10_000


def stop() -> None:
    """Leave the process group, if one was joined."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """This process's number, 0 to world_size() - 1."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes work together; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes the files."""
    return rank() == 0


def on_main(action: Callable[[], Result]) -> Result:
    """Run `action` in the main process and give its result to every process.

    When it fails there with a UserError or OSError, the others leave with exit code 2: the main
    process says why.
    """
    result, error = None, None
    if is_main():
        try:
            result = action()
        except (UserError, OSError) as raised:
            error = raised
    outcome: list[Any] = [result, error is None]
    if world_size() > 1:
        dist.broadcast_object_list(outcome, src=0)
    if error is not None:
        raise error
    if not outcome[1]:
        sys.exit(2)
    return outcome[0]


def gather(rows: torch.Tensor) -> torch.Tensor:
    """(N, ...) of every process, one after another by rank: (N * world_size, ...). No gradient."""
    if world_size() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def exchange(rows: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """This process's part of all processes' rows in another order: (N, ...) → (N, ...).

    order (N * world_size,) int64 on the CPU, the same everywhere: which row of all comes where.
    Each row travels once, to the process that it belongs to; nobody holds all of them.
    """
    if world_size() == 1:
        return rows[order.to(rows.device, non_blocking=True)]
    count = len(rows)
    parts = order.chunk(world_size())
    leaving = [part[part // count == rank()] - rank() * count for part in parts]
    sources = parts[rank()] // count
    arriving = sources.argsort(stable=True)  # they come by process, in the order asked for
    sent = rows[torch.cat(leaving).to(rows.device, non_blocking=True)].contiguous()
    received = torch.empty_like(sent)
    dist.all_to_all_single(
        received,
        sent,
        sources.bincount(minlength=world_size()).tolist(),
        [len(part) for part in leaving],
    )
    return received[arriving.argsort().to(rows.device, non_blocking=True)]


def gather_with_gradient(rows: torch.Tensor) -> torch.Tensor:
    """`gather`, through which each process's rows get the gradients of all processes' losses."""
    return rows if world_size() == 1 else _Gather.apply(rows)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor) -> torch.Tensor:
        return gather(rows)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return this_process_rows(sum_over_processes(gradient.contiguous()))


def gather_objects(items: list[Result]) -> list[Result]:
    """The items of every process, one after another by rank."""
    if world_size() == 1:
        return items
    parts: list[list[Result]] = [[] for _ in range(world_size())]
    dist.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def sum_over_processes(values: torch.Tensor) -> torch.Tensor:
    """Element-wise sum over the processes, on all of them; `values` itself without others."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def contiguous_share(items: list[Result]) -> list[Result]:
    """This process's part of `items`; gathered by rank, the parts are in order again."""
    size = -(-len(items) // world_size())
    return items[size * rank() : size * (rank() + 1)]


def this_process_rows(rows: torch.Tensor) -> torch.Tensor:
    """Of rows gathered from all processes, the part that belongs to this one."""
    return rows.chunk(world_size())[rank()]
