"""The training loop.

FOLDER/
  config.yaml  env.json  precision.json  log.txt  metrics.jsonl  tensorboard/
  checkpoints/step_*.pth   the whole model (encoders, queues, ...), optimiser, step, config
  unreadable.txt           images that could not be read, if any
  DONE                     the last checkpoint and its hash
"""

import logging
import math
from contextlib import nullcontext
from typing import Any

import torch
from torch.utils.data import DataLoader

from common import distributed
from common.checkpoint import latest_good
from common.errors import UserError
from common.files import replacing, write_text
from common.shutdown import StopRequest
from pretrain.config import Optim
from pretrain.data import Batch, most_unreadable
from pretrain.group_bn import average_running_statistics
from pretrain.inputs import Inputs
from pretrain.loss import Losses
from pretrain.monitor import Monitor
from pretrain.run import Later, Notice, Run, save

log = logging.getLogger(__name__)


def train(run: Run, loader: DataLoader, monitor: Monitor, stop: StopRequest) -> bool:
    """Train from `run.step` on. Returns whether the end was reached (False: asked to stop)."""
    launch = run.config.launch
    for batch in monitor.timed(loader):
        losses, notice = train_step(run, batch, stop)
        run.step += 1
        run.notices.append(notice)
        finished = run.step == run.total_steps
        saving = finished or run.step % launch.save_every == 0
        # The step before is asked after while this one runs; all of them where numbers are due.
        settle(run, pending=0 if saving or run.logs(run.step) else 1)
        monitor.after_step(run, losses)
        if saving or run.stopping:
            settle(run, pending=0)
            save(run)
        if run.stopping and not finished:
            return False
    return True


def train_step(run: Run, batch: Batch, stop: StopRequest | bool) -> tuple[Losses, Notice]:
    """One update by whatever method the run is of. The host waits for nothing on the device."""
    lr = learning_rate(run.config.optim, run.step, run.steps_per_epoch)
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    inputs = on_device(run, batch)
    run.optimizer.zero_grad()
    with run.autocast():
        targets = run.model.targets(inputs)
    losses = backward(run, inputs, targets)
    run.model.remember(targets)
    notice = tell(run, batch, losses, stop)
    run.optimizer.step()
    average_running_statistics(run.model)
    return losses, notice


def on_device(run: Run, batch: Batch) -> Inputs:
    """The batch where it is trained on, under way while the host goes on."""

    def move(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(run.device, non_blocking=True)

    return Inputs(
        crops=move(batch.views),
        drawn=None if batch.drawn is None else move(batch.drawn),
        corners=batch.corners,
        labels=move(batch.labels),
        recipe=run.config.data.augmentation,
        step=run.step,
        logged=run.logs(run.step + 1),
    )


def backward(run: Run, inputs: Inputs, targets: Any) -> Losses:
    """Gradients of the mean loss, `micro_batch` images at a time; and the mean values.

    Between parts of a batch neither weights, key encoder nor queues change.
    """
    at_once = run.config.optim.micro_batch or inputs.count
    starts = range(0, inputs.count, at_once)
    parts = []
    for start in starts:
        rows = slice(start, start + at_once)
        of_rows = type(targets)(*(target[rows] for target in targets))
        last = start == starts[-1]
        with nullcontext() if last else run.without_exchange():
            with run.autocast():
                part = run.model.losses(run.query_encoder, inputs.part(rows), of_rows)
            (part.total / len(starts)).backward()
        parts.append(part)
    if len(parts) == 1:
        return parts[0]
    values = {n: torch.stack([p.values[n].detach() for p in parts]).mean() for n in parts[0].values}
    return Losses(torch.stack([part.total.detach() for part in parts]).mean(), values)


def tell(run: Run, batch: Batch, losses: Losses, stop: StopRequest | bool) -> Notice:
    """Tell all processes of a loss that is not finite, a stop signal, unreadable images.

    From the first broken loss on no process updates its weights: the optimiser looks at the device.
    """
    own = torch.tensor([0.0, float(bool(stop)), float(len(batch.unreadable))])
    flags = own.to(run.device, non_blocking=True)
    flags[0] = ~losses.total.detach().isfinite()
    flags = distributed.sum_over_processes(flags)
    run.broken = torch.maximum(run.broken, flags[0].clamp(max=1))
    run.optimizer.found_inf = run.broken  # type: ignore[attr-defined]
    return Notice(run.step, Later(flags), batch, losses)


def settle(run: Run, pending: int) -> None:
    """Act on what was told in all steps but the last `pending`.

    Raises UserError in all processes for too many unreadable images or a broken loss.
    """
    while len(run.notices) > pending:
        notice = run.notices.popleft()
        broken, stopping, unreadable = notice.flags.tolist()
        run.stopping |= stopping > 0
        if unreadable:
            record_unreadable(run, notice.batch.unreadable)
        if broken:
            raise UserError(describe_broken_loss(run, notice))


def record_unreadable(run: Run, paths: list[str]) -> None:
    """List every process's unreadable images in unreadable.txt; end the run at too many."""
    new = set(distributed.gather_objects(paths)) - run.unreadable
    run.unreadable |= new
    listed = run.folder / "unreadable.txt"
    if distributed.is_main():
        for path in sorted(new):
            log.warning("cannot read %s: the next image takes its place", path)
        write_text(listed, "".join(f"{path}\n" for path in sorted(run.unreadable)))
    if len(run.unreadable) > most_unreadable(len(run.images)):
        raise UserError(
            f"{run.config.data.root}: {len(run.unreadable)} of its {len(run.images)} images cannot "
            f"be read: {listed} names them; repair or remove them"
        )


def describe_broken_loss(run: Run, notice: Notice) -> str:
    """Write what produced the loss; return the sentence that says so. No weight was updated."""
    step, batch = notice.step, notice.batch
    path = run.folder / f"not_finite_step_{step}_rank_{distributed.rank()}.pth"
    named = notice.losses.values.items()
    values = {name: value.item() for name, value in named if "loss" in name}
    evidence = {
        "losses": values,
        "views": batch.views,
        "drawn": batch.drawn,
        "model": run.model.state_dict(),
    }
    with replacing(path) as temporary:
        torch.save({"step": step, **evidence}, temporary)
    good = latest_good(run.folder / "checkpoints")
    return (
        f"step {step}: the loss is not finite ({values}); nothing was updated; batch and "
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
