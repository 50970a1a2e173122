"""What a run tells about its progress: metrics.jsonl, TensorBoard and a console line."""

import logging
import time
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from common import distributed
from common.logs import Metrics

log = logging.getLogger(__name__)

EVERY = 20  # iterations between records


class Progress:
    """Averages over the iterations since the last record, written by the main process."""

    def __init__(self, folder: Path, first: int, last: int, batch_size: int) -> None:
        """Iterations `first` to `last` - 1 will follow, with `batch_size` images in all."""
        self.sums: torch.Tensor | None = None
        self.metrics = Metrics(folder, first) if distributed.is_main() else None
        self.last, self.batch_size = last, batch_size
        self._start_window()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.metrics:
            self.metrics.close()

    def after_step(
        self, done: int, losses: dict[str, torch.Tensor], rate: float, waited: float
    ) -> None:
        """Count one iteration, of which `waited` seconds went by waiting for data."""
        values = torch.stack([value.detach() for value in losses.values()])
        self.sums = values if self.sums is None else self.sums + values
        self.count += 1
        self.waited += waited
        if done % EVERY and done != self.last:
            return
        seconds = time.perf_counter() - self.started
        shares = distributed.sum_over_processes(self.sums / self.count)
        means = (shares / distributed.world_size()).tolist()
        self._record(done, dict(zip(losses, means)), rate, seconds)
        self._start_window()

    def evaluated(self, done: int, metrics: dict[str, float]) -> None:
        """Record an evaluation after `done` iterations."""
        if self.metrics:
            self.metrics.write(done, metrics)
        summary = "  ".join(f"{name} {v:.2f}" for name, v in metrics.items() if "-" not in name)
        log.info("evaluation after %d iterations: %s", done, summary)
        self._start_window()

    def _record(self, done: int, losses: dict[str, float], rate: float, seconds: float) -> None:
        total = sum(losses.values())
        per_iteration = seconds / self.count
        speed = self.batch_size / per_iteration
        wait_share = self.waited / seconds
        remaining = per_iteration * (self.last - done)
        if self.metrics:
            values = {"total_loss": total, **losses, "lr": rate, "images_per_second": speed}
            values |= {"data_wait_share": wait_share, "eta_seconds": remaining}
            self.metrics.write(done, values)
        log.info(
            "iteration %d/%d  loss %.4f  %s  lr %.2g  %.1f images/s  waiting %.0f %%  left %s",
            done,
            self.last,
            total,
            "  ".join(f"{name.removeprefix('loss_')} {v:.4f}" for name, v in losses.items()),
            rate,
            speed,
            100 * wait_share,
            timedelta(seconds=round(remaining)),
        )

    def _start_window(self) -> None:
        self.sums = None
        self.count, self.waited = 0, 0.0
        self.started = time.perf_counter()
