"""SimCLR: both views of every image against all other images of the step.

Source: arXiv:2002.05709 section 2; the head and τ of WXinlong/DenseCL
configs/selfsup/simclr/r50_bs256_ep200.py (facts).
"""

from typing import Any

import torch
from torch import nn

from common import distributed
from pretrain.config import Model, PretrainConfig
from pretrain.encoder import build_trunk, initialise, initialise_linear, mlp, unit_length
from pretrain.group_bn import norm_layer
from pretrain.inputs import Inputs
from pretrain.loss import Losses, mean_cosine, nt_xent
from pretrain.method import Method, Network


class SimCLREncoder(Network):
    """Images (B,3,H,W) → (B,D) of unit length: a hidden layer and two batch norms in the head."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.backbone = build_trunk(config)
        norm = norm_layer(config.hidden, config.bn_group)
        self.global_head = mlp(self.backbone.out_channels, config.hidden, config.embedding, norm)
        self.global_head.append(norm_layer(config.embedding, config.bn_group))
        initialise(self.backbone, config)
        initialise_linear(self.global_head)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        feature = self.backbone(images)
        return unit_length(self.global_head(feature.mean((2, 3))))


class SimCLR(Method):
    """One encoder; nothing is remembered between steps."""

    def __init__(self, config: PretrainConfig) -> None:
        super().__init__()
        self.config = config
        self.query = SimCLREncoder(config.model)

    def losses(self, query_encoder: nn.Module, inputs: Inputs, targets: Any) -> Losses:
        """NT-Xent over the images of all processes."""
        views = query_encoder(torch.cat([inputs.images(view) for view in (0, 1)]))  # (2B,D)
        with torch.autocast(views.device.type, enabled=False):
            everyone = distributed.gather_with_gradient(views)
            first = distributed.rank() * len(views)
            loss, top1 = nt_xent(views, everyone, first, self.config.loss.temperature)
        values = {"loss_global": loss, "top1_global": top1, "cosine_global": mean_cosine(views)}
        return Losses(loss, values)
