"""Fine-tune and evaluate a model with torchvision's components, to Detectron2's numbers.

FOLDER/
  checkpoints/step_*.pth          model, optimiser, iteration: a resumed run ends bit-equal
  metrics.jsonl  tensorboard/     losses, learning rate, speed; evaluations
  model_final.pth                 the evaluated model; Detectron2 loads it too

An iteration is a pure function of the checkpoint before it and of (seed, iteration, process), its
random draws included, so nothing else has to be saved. (On a CPU: a GPU adds up in varying order.)
"""

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.datasets.catalog import read_sets
from benchmarks.datasets.records import LabelledImage
from benchmarks.torchvision_engine.evaluate import evaluate
from benchmarks.torchvision_engine.loader import Sample, training_batches
from benchmarks.torchvision_engine.model import build_model
from benchmarks.torchvision_engine.precise_bn import precise_statistics
from benchmarks.torchvision_engine.progress import Progress
from benchmarks.torchvision_engine.solver import build_optimizer, build_schedule, set_learning_rate
from benchmarks.weights import Backbone, load_backbone, prove_loaded
from common import distributed
from common.checkpoint import latest_good, load_checkpoint, save_checkpoint
from common.errors import UserError
from common.files import replacing
from common.shutdown import StopRequest

log = logging.getLogger(__name__)

_KEEP = 2  # checkpoints
_TRAINING, _PRECISE_BN = 0, 1  # independent random streams of one seed


@dataclass(frozen=True)
class Run:
    """What stays the same through a run."""

    config: Any
    seed: int
    folder: Path
    stop: StopRequest | bool
    images: list[LabelledImage]
    model: nn.Module
    optimizer: torch.optim.Optimizer


def run(
    config: Any,
    backbone: Backbone | None,
    seed: int,
    folder: Path,
    device: torch.device,
    stop: StopRequest,
) -> dict[str, float] | None:
    """Train from the newest checkpoint in `folder`, or from `backbone`, and evaluate.

    Returns the metrics in percent, or None when asked to stop: then a checkpoint is written.
    Raises UserError for unreadable data and for a loss that is not finite.
    """
    trial = build_run(config, backbone, seed, folder, device, stop)
    first, last = _resume(trial), config.SOLVER.MAX_ITER
    with Progress(folder, first, last, config.SOLVER.IMS_PER_BATCH) as progress:
        log.info("%d training images, iterations %d to %d", len(trial.images), first, last)
        if _train(trial, first, progress) < last:
            return None
        return _evaluate(trial, last, progress)


def build_run(
    config: Any,
    backbone: Backbone | None,
    seed: int,
    folder: Path,
    device: torch.device,
    stop: StopRequest | bool,
) -> Run:
    """The images, and the model on `device` with every tensor of its backbone proven.

    Raises UserError for unreadable data, and for a backbone that is not the model's.
    """
    images = read_sets(config.DATASETS.TRAIN)
    torch.manual_seed(seed)
    model = build_model(config)
    if backbone:
        load_backbone(model, backbone)
    model.to(device).train()
    if config.SOLVER.AMP.ENABLED:  # the order in which half precision is fast
        model.to(memory_format=torch.channels_last)
    if backbone:
        prove_loaded(model, backbone)
    optimizer = build_optimizer(config.SOLVER, model)
    return Run(config, seed, folder, stop, images, model, optimizer)


def _train(trial: Run, first: int, progress: Progress) -> int:
    """Iterations `first` to MAX_ITER - 1. Returns how many are done: fewer when asked to stop."""
    solver, period = trial.config.SOLVER, trial.config.TEST.EVAL_PERIOD
    schedule = build_schedule(solver)
    batches = training_batches(trial.images, trial.config, trial.seed, first)
    model = _over_processes(trial.model)
    for iteration in range(first, solver.MAX_ITER):
        started = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - started
        rate = set_learning_rate(trial.optimizer, solver, schedule, iteration)
        torch.manual_seed(_stream(trial.seed, _TRAINING, iteration, distributed.rank()))
        losses, stopping = train_step(trial, model, batch, iteration)
        done = iteration + 1
        progress.after_step(done, losses, rate, waited)

        finished = done == solver.MAX_ITER
        evaluating = period > 0 and done % period == 0 and not finished
        if finished or stopping or evaluating or done % solver.CHECKPOINT_PERIOD == 0:
            _save(trial, done)
        if stopping or (evaluating and _evaluate(trial, done, progress) is None):
            return done
    return solver.MAX_ITER


def train_step(
    trial: Run, model: nn.Module, batch: list[Sample], iteration: int
) -> tuple[dict[str, torch.Tensor], bool]:
    """One update. Returns the losses, and whether some process was asked to stop.

    Raises UserError in every process, before the update, when a loss is not finite in one. The
    one wait for the device comes after the backward pass is handed to it, which so begins at once.
    """
    solver, device = trial.config.SOLVER, trial.config.MODEL.DEVICE
    try:
        with torch.autocast(device, torch.bfloat16, enabled=solver.AMP.ENABLED):
            losses = model(batch)
    except FloatingPointError as error:
        raise _diverged(iteration, str(error)) from None
    total = sum(losses.values())
    trial.optimizer.zero_grad()
    total.backward()
    flags = torch.stack([total.detach(), total.new_full((), float(bool(trial.stop)))])
    sum_of_losses, stopping = distributed.sum_over_processes(flags).tolist()
    if not np.isfinite(sum_of_losses):
        values = ", ".join(f"{name} {value.item():.4g}" for name, value in losses.items())
        raise _diverged(iteration, values)
    trial.optimizer.step()
    return losses, stopping > 0


def _diverged(iteration: int, what: str) -> UserError:
    return UserError(
        f"iteration {iteration}: the loss is not finite ({what}); stopped before the update: "
        "a lower SOLVER.BASE_LR helps, or a longer warm-up; in a new output folder"
    )


def _evaluate(trial: Run, done: int, progress: Progress) -> dict[str, float] | None:
    """The metrics after `done` iterations; None when asked to stop. The last writes the model."""
    # The same in every process: each takes its share of the same batches.
    seed = _stream(trial.seed, _PRECISE_BN, done)
    with precise_statistics(trial.model, trial.images, trial.config, seed):
        if done == trial.config.SOLVER.MAX_ITER and distributed.is_main():
            with replacing(trial.folder / "model_final.pth") as temporary:
                torch.save({"model": trial.model.state_dict()}, temporary)
        metrics = evaluate(trial.model, trial.config, trial.stop)
    if metrics is not None:
        progress.evaluated(done, metrics)
    return metrics


def _over_processes(model: nn.Module) -> nn.Module:
    """The model with gradients averaged over the processes, if there are several."""
    if distributed.world_size() == 1:
        return model
    device = next(model.parameters()).device
    devices = [device] if device.type == "cuda" else None
    return DistributedDataParallel(model, devices, broadcast_buffers=False)


def _resume(trial: Run) -> int:
    """Load the newest good checkpoint, if there is one; returns how many iterations it has."""
    path = distributed.on_main(lambda: latest_good(trial.folder / "checkpoints"))
    if path is None:
        return 0
    state = load_checkpoint(path)
    trial.model.load_state_dict(state["model"])
    trial.optimizer.load_state_dict(state["optimizer"])
    log.info("continuing after iteration %d from %s", state["iteration"], path)
    return state["iteration"]


def _save(trial: Run, done: int) -> None:
    if distributed.is_main():
        state = {
            "model": trial.model.state_dict(),
            "optimizer": trial.optimizer.state_dict(),
            "iteration": done,
        }
        save_checkpoint(trial.folder / "checkpoints", done, state, _KEEP)


def _stream(*numbers: int) -> int:
    """A 63-bit seed from non-negative numbers; different numbers, independent streams."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
