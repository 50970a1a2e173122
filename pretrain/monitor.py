"""What a run shows while it trains: metrics.jsonl, TensorBoard, a console line, a progress bar."""

import logging
import resource
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import torch
from rich.progress import Progress
from torch.utils.data import DataLoader

from common import distributed
from common.logs import Metrics
from pretrain.data import Batch
from pretrain.loss import Losses
from pretrain.run import Run

log = logging.getLogger(__name__)


class Monitor:
    """Counts time and images between log lines; only the main process writes."""

    def __init__(self, folder: Path, first_step: int, total_steps: int) -> None:
        self.metrics = Metrics(folder, first_step) if distributed.is_main() else None
        show_bar = distributed.is_main() and sys.stdout.isatty()
        self.progress = Progress(disable=not show_bar)
        self.bar = self.progress.add_task("pre-training", total=total_steps, completed=first_step)
        self._restart_clock()

    def __enter__(self) -> "Monitor":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()
        if self.metrics:
            self.metrics.close()

    def timed(self, loader: DataLoader) -> Iterator[Batch]:
        """The loader's batches, with the time spent waiting for each counted."""
        batches = iter(loader)
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    def after_step(self, run: Run, losses: Losses) -> None:
        """Advance the bar; every `log_every` steps, write the numbers."""
        self.steps += 1
        self.progress.update(self.bar, completed=run.step)
        if not run.logs(run.step):
            return
        if self.metrics:
            values = self._values(run, losses)
            self.metrics.write(run.step, values)
            log.info("%s", console_line(run, values))
        self._restart_clock()

    def _values(self, run: Run, losses: Losses) -> dict[str, float]:
        """Of the last step: losses and heads; since the last line: speed and waiting."""
        seconds = time.perf_counter() - self.started
        gradients = [p.grad for p in run.model.query.parameters() if p.grad is not None]
        return {
            "epoch": (run.step - 1) // run.steps_per_epoch,
            "loss": losses.total.item(),
            **{name: value.item() for name, value in losses.values.items()},
            "gradient_norm": torch.nn.utils.get_total_norm(gradients).item(),
            "lr": run.optimizer.param_groups[0]["lr"],
            "images_per_second": self.steps * run.config.optim.batch_size / seconds,
            "data_wait_share": self.waited / seconds,
            "eta_seconds": (run.total_steps - run.step) * seconds / self.steps,
            "memory_gib": _peak_memory(run.device) / 2**30,
        }

    def _restart_clock(self) -> None:
        self.started, self.waited, self.steps = time.perf_counter(), 0.0, 0


def console_line(run: Run, values: dict[str, float]) -> str:
    """The logged numbers that a person follows."""
    eta = timedelta(seconds=round(values["eta_seconds"]))
    parts, top1, cosine = (_each(values, kind) for kind in ("loss", "top1", "cosine"))
    return (
        f"step {run.step}/{run.total_steps} epoch {values['epoch']:.0f}"
        f"  loss {values['loss']:.3f} ({parts}){f'  top1 {top1}' if top1 else ''}"
        f"{f'  cosine {cosine}' if cosine else ''}"
        f"  lr {values['lr']:.4g}  {values['images_per_second']:.0f} img/s"
        f"  wait {values['data_wait_share']:.0%}  eta {eta}"
    )


def _each(values: dict[str, float], kind: str) -> str:
    """global 5.871 dense 5.102: a method's values of one kind, by their terms."""
    digits = 3 if kind == "loss" else 2
    of_kind = {n.partition("_")[2]: v for n, v in values.items() if n.startswith(f"{kind}_")}
    return " ".join(f"{t} {value:.{digits}f}" for t, value in of_kind.items() if "_" not in t)


def _peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU where there is one, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
