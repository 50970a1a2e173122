"""Supervised classification: the baseline that has labels.

Source: torchvision references/classification (ResNet-50, the recipe of its first weights).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from pretrain.config import Model, PretrainConfig
from pretrain.encoder import build_trunk, initialise
from pretrain.inputs import Inputs
from pretrain.loss import Losses
from pretrain.method import Method, Network


class Classifier(Network):
    """Images (B,3,H,W) → logits (B,classes)."""

    def __init__(self, config: Model, classes: int) -> None:
        super().__init__()
        self.backbone = build_trunk(config)
        self.classifier = nn.Linear(self.backbone.out_channels, classes)
        initialise(self.backbone, config)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.backbone(images).mean((2, 3)))


class Supervised(Method):
    """One classifier; the classes are the folders."""

    def __init__(self, config: PretrainConfig, classes: int) -> None:
        super().__init__()
        self.query = Classifier(config.model, classes)

    def losses(self, query_encoder: nn.Module, inputs: Inputs, targets: Any) -> Losses:
        """Cross-entropy of the one view's class."""
        logits = query_encoder(inputs.images(0)).float()
        loss = F.cross_entropy(logits, inputs.labels)
        top1 = (logits.argmax(1) == inputs.labels).float().mean()
        return Losses(loss, {"loss_class": loss, "top1_class": top1})
