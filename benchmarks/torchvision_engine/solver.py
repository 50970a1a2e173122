"""The optimiser and its learning rate, as detectron2/solver/build.py."""

from typing import Any

import torch
from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    LinearParamScheduler,
    MultiStepParamScheduler,
    ParamScheduler,
)
from torch import nn

from benchmarks import poly_schedule

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


def build_optimizer(solver: Any, model: nn.Module) -> torch.optim.SGD:
    """SGD with WEIGHT_DECAY_NORM for normalisation layers and WEIGHT_DECAY for all else."""
    norms: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for module in model.modules():
        group = norms if isinstance(module, _NORMS) else others
        group += [p for p in module.parameters(recurse=False) if p.requires_grad]
    groups = [
        {"params": others, "weight_decay": solver.WEIGHT_DECAY},
        {"params": norms, "weight_decay": solver.WEIGHT_DECAY_NORM},
    ]
    return torch.optim.SGD(
        [group for group in groups if group["params"]],
        lr=solver.BASE_LR,
        momentum=solver.MOMENTUM,
        nesterov=solver.NESTEROV,
        foreach=True,
    )


def build_schedule(solver: Any) -> ParamScheduler:
    """Fraction of the run done (0 to 1) → factor of BASE_LR: warm-up, then steps; or a PolyLR.

    Steps beyond MAX_ITER are left out, so that a shortened run needs no other change.
    """
    # Configurations without this key have Detectron2's default.
    if solver.get("LR_SCHEDULER_NAME") == poly_schedule.NAME:
        return poly_schedule.PolySchedule(solver)
    steps = [step for step in solver.STEPS if step <= solver.MAX_ITER]
    multi_step = MultiStepParamScheduler(
        values=[solver.GAMMA**k for k in range(len(steps) + 1)],
        milestones=steps,
        num_updates=solver.MAX_ITER,
    )
    warmup = min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0)
    if warmup == 0:
        return multi_step
    linear = LinearParamScheduler(solver.WARMUP_FACTOR * multi_step(0.0), multi_step(warmup))
    return CompositeParamScheduler(
        [linear, multi_step],
        lengths=[warmup, 1 - warmup],
        interval_scaling=["rescaled", "fixed"],
    )


def set_learning_rate(
    optimizer: torch.optim.Optimizer, solver: Any, schedule: ParamScheduler, iteration: int
) -> float:
    """Give every group the learning rate of `iteration` (0-based), and return it."""
    rate = solver.BASE_LR * schedule(iteration / solver.MAX_ITER)
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate
