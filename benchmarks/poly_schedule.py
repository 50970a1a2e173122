"""The learning rate of the segmentation runs, the same for both engines."""

from typing import Any

from fvcore.common.param_scheduler import ParamScheduler

NAME = "PolyLR"  # of SOLVER.LR_SCHEDULER_NAME


class PolySchedule(ParamScheduler):
    """Fraction of the run done (0 to 1) → factor of BASE_LR, from 1 down to POLY_LR_MIN.

    (BASE_LR - POLY_LR_MIN) (1 - done)^POLY_LR_POWER + POLY_LR_MIN, by iteration and without
    warm-up, as PolyLrUpdaterHook of mmcv (runner/hooks/lr_updater.py).
    """

    def __init__(self, solver: Any) -> None:
        self.power = solver.POLY_LR_POWER
        self.lowest = solver.POLY_LR_MIN / solver.BASE_LR

    def __call__(self, where: float) -> float:
        return (1 - self.lowest) * (1 - where) ** self.power + self.lowest
