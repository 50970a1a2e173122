"""How fast a step could be at most on this device, and what share of that it reaches."""

from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from pretrain.bench.rounds import Row, wait_for
from pretrain.bench.steps import make_batch, runs, stepping
from pretrain.config import PretrainConfig
from pretrain.precision import shortest


class ByteCounter(TorchDispatchMode):
    """Bytes that operators read and write, each tensor once for each operator; views are free."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        returns = function._schema.returns
        if not any(r.alias_info is not None and not r.alias_info.is_write for r in returns):
            touched = tree_leaves((args, kwargs, result))
            self.bytes += sum(t.nbytes for t in touched if isinstance(t, torch.Tensor))
        return result


def roofline(config: PretrainConfig, rounds: int, device: torch.device) -> list[Row]:
    """One row: what a step does per image, what the device can do, and the share reached.

    The device's rates are those of a large matrix product in the run's precision and of copying
    a tensor that no cache holds. No step can be faster than its arithmetic at the one rate or,
    without fusing operators, its traffic at the other.
    """
    with runs({"run": config}, device) as found:
        run = found["run"]
        step, batch = stepping(run), make_batch(run.config)
        step(batch)
        with FlopCounterMode(display=False) as flops, ByteCounter() as traffic:
            step(batch)
        seconds = shortest(lambda: step(batch), device, rounds)
        dtype = torch.bfloat16 if run.precision == "bf16" else torch.float32
        size = config.optim.batch_size
        rate, bandwidth = matmul_rate(device, dtype), copy_rate(device)
        bounds = flops.get_total_flops() / rate, traffic.bytes / bandwidth
        return [
            {
                "precision": run.precision,
                "GFLOP per image": flops.get_total_flops() / size / 1e9,
                "MB per image": traffic.bytes / size / 1e6,
                "matmul GFLOP/s": rate / 1e9,
                "copy GB/s": bandwidth / 1e9,
                "images/s by FLOPs": size / bounds[0],
                "images/s by bytes": size / bounds[1],
                "images/s": size / seconds,
                "share reached": max(bounds) / seconds,
                "peak memory, MiB": peak_memory(lambda: step(batch), device) / 2**20,
            }
        ]


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a square matrix product."""
    n = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return 2 * n**3 / shortest(lambda: a @ b, device, 5)


def copy_rate(device: torch.device) -> float:
    """Bytes/s, read and written, of copying 256 MiB."""
    source = torch.zeros(2**28, dtype=torch.uint8, device=device).add_(1)
    target = torch.zeros_like(source)
    return 2 * source.nbytes / shortest(lambda: target.copy_(source), device, 5)


def peak_memory(action: Any, device: torch.device) -> int:
    """Bytes: of a GPU all that is allocated while it runs; of a CPU all that the process holds."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        action()
        wait_for(device)
        return torch.cuda.max_memory_allocated(device)
    Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the highest so far
    action()
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024
