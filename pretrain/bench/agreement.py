"""Whether the step as it is trains as the plain step does."""

from dataclasses import replace

import numpy as np
import torch

from common.errors import UserError
from pretrain.bench.reference import PlainStep
from pretrain.bench.rounds import Row
from pretrain.bench.steps import loaded, runs, stepping
from pretrain.config import PretrainConfig
from pretrain.data import images_of
from pretrain.methods.densecl import DenseCL
from pretrain.train import learning_rate

STEPS, _WINDOW = 200, 20
TOLERANCE = 0.05  # of the mean loss of a window: what rounding grows to in so many steps


def agreement(config: PretrainConfig, device: torch.device, steps: int = STEPS) -> list[Row]:
    """A row for each 20 steps: mean losses of both from the same weights, images and draws.

    The one as configured (precision, colours, attention), the other in float32, NCHW, views by
    PIL, whole logits and loops. On the images of `data`.
    """
    images = images_of(config.data)
    steps_per_epoch = len(images) // config.optim.batch_size
    if steps > steps_per_epoch * config.optim.epochs or config.method != "densecl":
        raise UserError(f"agreement: needs method = densecl and optim.epochs of {steps} steps")
    with runs({"run": config}, device) as found:
        run = found["run"]
        run.steps_per_epoch = steps_per_epoch
        assert isinstance(run.model, DenseCL)
        plain, step = PlainStep(run.config, run.model, device), stepping(run)
        by_pil = replace(run.config, data=replace(run.config.data, colours="cpu"))
        ours, theirs = [], []
        batches = zip(loaded(run.config, images), loaded(by_pil, images))
        for number, (batch, same_by_pil) in zip(range(steps), batches):
            ours.append(step(batch).item())
            rate = learning_rate(config.optim, number, steps_per_epoch)
            plain.optimizer.param_groups[0]["lr"] = rate
            theirs.append(plain(same_by_pil))
    means = [np.reshape(losses, (-1, _WINDOW)).mean(1).tolist() for losses in (theirs, ours)]
    name = f"{run.precision}, colours by the {run.config.data.colours}"
    return [
        {
            "steps": f"{_WINDOW * number + 1} to {_WINDOW * (number + 1)}",
            "plain": reference,
            name: loss,
            "difference": loss / reference - 1,
        }
        for number, (reference, loss) in enumerate(zip(*means))
    ]
