"""The state of a pre-training run: built from a configuration, saved and resumed whole."""

import logging
import warnings
from collections import deque
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from common import distributed
from common.checkpoint import latest_good, load_checkpoint, save_checkpoint
from pretrain.config import PretrainConfig
from pretrain.data import Batch
from pretrain.images import Images
from pretrain.lars import LARS
from pretrain.loss import Losses
from pretrain.method import Method
from pretrain.methods import build_method

log = logging.getLogger(__name__)

FORMAT = "densecl-pipeline"


class Later:
    """Numbers of the device, fetched while it goes on."""

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values.to("cpu", non_blocking=True)
        self.arrived = torch.cuda.Event() if values.is_cuda else None
        if self.arrived:
            self.arrived.record()

    def tolist(self) -> list[float]:
        """Them, once they are there."""
        if self.arrived:
            self.arrived.synchronize()
        return self.values.tolist()


class Notice(NamedTuple):
    """What all processes have to know of a step. flags: how many of them had a broken loss, how
    many were asked to stop, how many images could not be read. The rest is this process's own."""

    step: int
    flags: Later
    batch: Batch
    losses: Losses


@dataclass
class Run:
    """What one process holds while it trains."""

    config: PretrainConfig
    folder: Path
    device: torch.device
    model: Method
    query_encoder: nn.Module  # model.query, wrapped by DDP where there are several processes
    optimizer: torch.optim.Optimizer
    images: Images
    steps_per_epoch: int
    precision: str = "fp32"
    step: int = 0  # steps finished
    unreadable: set[str] = field(default_factory=set)  # images some process could not read
    stopping: bool = False  # some process was asked to stop
    notices: deque[Notice] = field(default_factory=deque)  # of steps not asked after yet
    broken: torch.Tensor = field(init=False)  # 1 on the device from the first broken loss on

    def __post_init__(self) -> None:
        self.broken = torch.zeros((), dtype=torch.float32, device=self.device)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.config.optim.epochs * self.steps_per_epoch

    def logs(self, step: int) -> bool:
        """Whether numbers are due after so many steps."""
        return step % self.config.launch.log_every == 0 or step == self.total_steps

    def autocast(self) -> torch.autocast:
        """The precision that the networks compute in."""
        bf16 = self.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=bf16)

    def without_exchange(self) -> AbstractContextManager[None]:
        """Gradients stay this process's own until a backward pass outside of this."""
        encoder = self.query_encoder
        return encoder.no_sync() if isinstance(encoder, DistributedDataParallel) else nullcontext()


def build_run(config: PretrainConfig, folder: Path, device: torch.device, images: Images) -> Run:
    """A new run, its weights and queues drawn from the seed."""
    torch.manual_seed(config.seed)
    steps_per_epoch = len(images) // config.optim.batch_size
    total_steps = config.optim.epochs * steps_per_epoch
    model = build_method(config, len(images.classes), total_steps).to(device)
    model = model.to(memory_format=torch.channels_last)
    encoder: nn.Module = model.query
    if distributed.world_size() > 1:
        with warnings.catch_warnings():  # torch 2.15 renames the argument, 2.11 knows this one
            warnings.simplefilter("ignore", FutureWarning)
            encoder = DistributedDataParallel(
                model.query, broadcast_buffers=False, gradient_as_bucket_view=True
            )
    optimizer = build_optimizer(config, model.query.parameters())
    return Run(config, folder, device, model, encoder, optimizer, images, steps_per_epoch)


def build_optimizer(
    config: PretrainConfig, parameters: Iterable[nn.Parameter]
) -> torch.optim.Optimizer:
    """The configured optimiser over all parameters that are trained."""
    optim = config.optim
    if optim.optimizer == "lars":
        return LARS(parameters, optim.lr, optim.momentum, optim.weight_decay)
    if optim.optimizer == "adamw":
        return torch.optim.AdamW(
            parameters, lr=optim.lr, weight_decay=optim.weight_decay, fused=True
        )
    return torch.optim.SGD(
        parameters,
        lr=optim.lr,
        momentum=optim.momentum,
        weight_decay=optim.weight_decay,
        fused=True,
    )


def save(run: Run) -> None:
    """Checkpoint everything that the next step depends on; every process waits for it."""
    state = {
        "format": FORMAT,
        "step": run.step,
        "unreadable": sorted(run.unreadable),
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "config": run.config.identity(),
    }
    folder, keep = run.folder / "checkpoints", run.config.launch.keep
    path = distributed.on_main(lambda: save_checkpoint(folder, run.step, state, keep))
    log.info("saved %s", path)


def resume(run: Run) -> None:
    """Continue from the newest good checkpoint, if there is one."""
    path = distributed.on_main(lambda: latest_good(run.folder / "checkpoints"))
    if path is None:
        return
    state = load_checkpoint(path)
    run.model.load_state_dict(state["model"])
    run.optimizer.load_state_dict(state["optimizer"])
    run.step, run.unreadable = state["step"], set(state["unreadable"])
    log.info("continuing after step %d of %d from %s", run.step, run.total_steps, path)
