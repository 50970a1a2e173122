"""BYOL: predict the slow copy's projection of the other view; no negatives.

Source: arXiv:2006.07733 section 3 and appendix J; widths as in WXinlong/DenseCL
configs/selfsup/byol/r50_bs4096_ep200.py (facts).
"""

import math
from typing import Any, NamedTuple

import torch
from torch import nn

from pretrain.config import Model, PretrainConfig
from pretrain.encoder import build_trunk, initialise, mlp, unit_length
from pretrain.group_bn import norm_layer
from pretrain.inputs import Inputs
from pretrain.loss import Losses, mean_cosine
from pretrain.method import Method, Network


class Compared(NamedTuple):
    """Both views (B,3,H,W) as images, and their projections (B,D) of unit length."""

    view: torch.Tensor
    other_view: torch.Tensor
    projection: torch.Tensor
    other_projection: torch.Tensor


class Target(Network):
    """Images (B,3,H,W) → projections (B,D): trunk and projector."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.backbone = build_trunk(config)
        norm = norm_layer(config.hidden, config.bn_group)
        self.global_head = mlp(self.backbone.out_channels, config.hidden, config.embedding, norm)
        initialise(self.backbone, config)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.global_head(self.backbone(images).mean((2, 3)))


class Online(Target):
    """Views V × (B,3,H,W) → predictions V × (B,D) of unit length, each view by itself."""

    def __init__(self, config: Model) -> None:
        super().__init__(config)
        norm = norm_layer(config.hidden, config.bn_group)
        self.predictor = mlp(config.embedding, config.hidden, config.embedding, norm)

    def forward(self, views: list[torch.Tensor]) -> list[torch.Tensor]:  # type: ignore[override]
        return [unit_length(self.predictor(Target.forward(self, view))) for view in views]


class BYOL(Method):
    """The online network and its slow copy."""

    def __init__(self, config: PretrainConfig, total_steps: int) -> None:
        super().__init__()
        self.config, self.total_steps = config, total_steps
        self.query = Online(config.model)
        self.key = Target(config.model).requires_grad_(False)
        self.key.load_state_dict(self.query.state_dict(), strict=False)  # all but the predictor

    @torch.no_grad()
    def targets(self, inputs: Inputs) -> Compared:
        """Projections by the copy that has just followed the online network."""
        self.update_target(inputs.step)
        views = [inputs.images(view) for view in (0, 1)]
        return Compared(*views, *(unit_length(self.key(view)) for view in views))

    def losses(self, query_encoder: nn.Module, inputs: Inputs, targets: Any) -> Losses:
        """2 - 2·cos of each view's prediction and the other's projection, both added."""
        predictions = query_encoder([targets.view, targets.other_view])
        projections = targets.other_projection, targets.projection
        with torch.autocast(predictions[0].device.type, enabled=False):
            cosines = [
                (prediction * projection).sum(1).mean()
                for prediction, projection in zip(predictions, projections)
            ]
            loss = 4 - 2 * (cosines[0] + cosines[1])
        return Losses(loss, {"loss_global": loss, "cosine_global": mean_cosine(targets.projection)})

    @torch.no_grad()
    def update_target(self, step: int) -> None:
        """target ← m·target + (1-m)·online, parameters only; m rises from `key_momentum` to 1."""
        share = 1 - self.config.model.key_momentum
        share *= (math.cos(math.pi * step / self.total_steps) + 1) / 2
        online = dict(self.query.named_parameters())
        target = dict(self.key.named_parameters())
        torch._foreach_lerp_(list(target.values()), [online[name] for name in target], share)
