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
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        change = parameter.grad
        assert change is not None
        if parameter.ndim > 1:
            change = change.add(parameter, alpha=group["weight_decay"])
            weight, gradient = parameter.norm(), change.norm()
            scale = group["eta"] * weight / gradient
            change = change * torch.where((weight > 0) & (gradient > 0), scale, 1.0)
        state = self.state[parameter]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(parameter)
        state["velocity"].mul_(group["momentum"]).add_(change, alpha=group["lr"])
        velocity = state["velocity"]
        if self.found_inf is not None:
            velocity = torch.where(self.found_inf > 0, 0.0, velocity)
        parameter.sub_(velocity)
