"""LARS: SGD with momentum whose step is scaled per tensor (arXiv:1708.03888)."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn


class LARS(torch.optim.Optimizer):
    """v ← m·v + lr·η·|w|/|g + wd·w|·(g + wd·w);  w ← w - v.

    Biases and batch norms (tensors of one dimension) have neither weight decay nor the scaling,
    as in SimCLR (arXiv:2002.05709 section 2.2 and appendix B.6) and BYOL.

    found_inf: as of PyTorch's fused optimisers, where it is 1 nothing is updated.
    """

    found_inf: torch.Tensor | None = None

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        momentum: float,
        weight_decay: float,
        eta: float = 0.001,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eta": eta}
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient, each operation on all of them at once."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            changes = _scaled_changes(parameters, group["weight_decay"], group["eta"])
            velocities = [self._velocity(parameter) for parameter in parameters]
            torch._foreach_mul_(velocities, group["momentum"])
            torch._foreach_add_(velocities, changes, alpha=group["lr"])
            if self.found_inf is not None:
                broken = self.found_inf > 0
                velocities = [torch.where(broken, 0.0, velocity) for velocity in velocities]
            torch._foreach_sub_(parameters, velocities)

    def _velocity(self, parameter: torch.Tensor) -> torch.Tensor:
        state = self.state[parameter]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(parameter)
        return state["velocity"]


def _scaled_changes(
    parameters: list[torch.Tensor], weight_decay: float, eta: float
) -> list[torch.Tensor]:
    """Each gradient; a weight's with decay, and scaled to η times the length of the weight."""
    changes: list[Any] = [parameter.grad for parameter in parameters]
    scaled = [number for number, p in enumerate(parameters) if p.ndim > 1]
    weights = [parameters[number] for number in scaled]
    decayed = torch._foreach_add([changes[n] for n in scaled], weights, alpha=weight_decay)
    lengths = [torch.stack(torch._foreach_norm(of)) for of in (weights, decayed)]
    usual = (lengths[0] > 0) & (lengths[1] > 0)
    scales = torch.where(usual, eta * lengths[0] / lengths[1], 1.0)
    for number, change in zip(scaled, torch._foreach_mul(decayed, list(scales.unbind()))):
        changes[number] = change
    return changes
