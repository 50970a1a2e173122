"""The training loop.

FOLDER/
  config.yaml  env.json  precision.json  log.txt  metrics.jsonl  tensorboard/
  checkpoints/step_*.pth   the whole model (encoders, queues, ...), optimiser, step, config
  unreadable.txt           images that could not be read, if any
  DONE                     the last checkpoint and its hash
"""

import logging
import math

import torch
from torch.utils.data import DataLoader

from common import distributed
from common.checkpoint import latest_good
from common.errors import UserError
from common.files import replacing, write_text
from common.shutdown import StopRequest
from pretrain.config import Optim
from pretrain.data import Batch, Inputs, most_unreadable
from pretrain.device_views import augment
from pretrain.group_bn import average_running_statistics
from pretrain.loss import Losses
from pretrain.monitor import Monitor
from pretrain.run import Run, save
from pretrain.views import RECIPES, normalise

log = logging.getLogger(__name__)


def train(run: Run, loader: DataLoader, monitor: Monitor, stop: StopRequest) -> bool:
    """Train from `run.step` on. Returns whether the end was reached (False: asked to stop)."""
    for batch in monitor.timed(loader):
        losses = train_step(run, batch, stop)
        run.step += 1
        monitor.after_step(run, losses)
        finished = run.step == run.total_steps
        if finished or run.stopping or run.step % run.config.launch.save_every == 0:
            save(run)
        if run.stopping and not finished:
            return False
    return True


def train_step(run: Run, batch: Batch, stop: StopRequest) -> Losses:
    """One update by whatever method the run is of."""
    lr = learning_rate(run.config.optim, run.step, run.steps_per_epoch)
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    inputs = Inputs(
        views=views_on_device(run, batch),
        corners=batch.corners.to(run.device),
        labels=batch.labels.to(run.device),
        step=run.step,
    )
    with torch.autocast(run.device.type, torch.bfloat16, enabled=run.precision == "bf16"):
        losses: Losses = run.model.losses(run.query_encoder, inputs)
    agree(run, batch, losses, stop)

    run.optimizer.zero_grad()
    losses.total.backward()
    run.optimizer.step()
    average_running_statistics(run.model)
    return losses


def views_on_device(run: Run, batch: Batch) -> list[torch.Tensor]:
    """The views, normalised; where that was left to the device, with their changes."""
    views = [view.to(run.device, non_blocking=True) for view in batch.views]
    if batch.drawn is None:
        return [normalise(view) for view in views]
    recipe = RECIPES[run.config.data.augmentation]
    drawn = batch.drawn.to(run.device, non_blocking=True)
    return [
        augment(view, changes, colours.grey_first)
        for view, changes, colours in zip(views, drawn, recipe.views)
    ]


def agree(run: Run, batch: Batch, losses: Losses, stop: StopRequest) -> None:
    """Let all processes know of a stop signal, unreadable images, or a loss that is not finite.

    Raises UserError in all of them, before the update, for too many images or a broken loss.
    """
    broken = not math.isfinite(losses.total.item())
    flags = torch.tensor([broken, bool(stop), len(batch.unreadable)], device=run.device)
    broken_processes, stopping, unreadable = distributed.sum_over_processes(flags).tolist()
    run.stopping = stopping > 0
    if unreadable:
        record_unreadable(run, batch.unreadable)
    if broken_processes:
        raise UserError(describe_broken_loss(run, batch, losses))


def record_unreadable(run: Run, paths: list[str]) -> None:
    """List every process's unreadable images in unreadable.txt; end the run at too many."""
    new = set(distributed.gather_objects(paths)) - run.unreadable
    run.unreadable |= new
    listed = run.folder / "unreadable.txt"
    if distributed.is_main():
        for path in sorted(new):
            log.warning("cannot read %s: the next image takes its place", path)
        write_text(listed, "".join(f"{path}\n" for path in sorted(run.unreadable)))
    if len(run.unreadable) > most_unreadable(len(run.files)):
        raise UserError(
            f"{run.config.data.root}: {len(run.unreadable)} of its {len(run.files)} images cannot "
            f"be read: {listed} names them; repair or remove them"
        )


def describe_broken_loss(run: Run, batch: Batch, losses: Losses) -> str:
    """Write what produced the loss; return the sentence that says so. No weight was updated."""
    path = run.folder / f"not_finite_step_{run.step}_rank_{distributed.rank()}.pth"
    values = {name: value.item() for name, value in losses.values.items() if "loss" in name}
    evidence = {
        "losses": values,
        "views": batch.views,
        "drawn": batch.drawn,
        "model": run.model.state_dict(),
    }
    with replacing(path) as temporary:
        torch.save({"step": run.step, **evidence}, temporary)
    good = latest_good(run.folder / "checkpoints")
    return (
        f"step {run.step}: the loss is not finite ({values}); nothing was updated; batch and "
        f"weights are in {path}; the last good checkpoint is {good}: look at gradient_norm in "
        "metrics.jsonl and try a lower optim.lr in a new output folder"
    )


def learning_rate(optim: Optim, step: int, steps_per_epoch: int) -> float:
    """Cosine from `lr` to 0, or drops to a tenth; constant within an epoch but in the warm-up."""
    epoch, warmup = step // steps_per_epoch, optim.warmup_epochs
    if epoch < warmup:
        return optim.lr * (step + 1) / (warmup * steps_per_epoch)
    if optim.drop_at:
        return optim.lr * 0.1 ** sum(epoch >= drop for drop in optim.drop_at)
    return optim.lr * (1 + math.cos(math.pi * (epoch - warmup) / (optim.epochs - warmup))) / 2
