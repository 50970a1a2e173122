"""Images → embeddings: the trunk, the heads on it, and how both start.

Letters: B images, C feature channels, D embedding width.
"""

from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from common.backbone_file import load_backbone_file, size_of
from common.errors import UserError
from common.resnet import ResNet
from pretrain.config import Model
from pretrain.group_bn import norm_layer
from pretrain.method import Network


class Encoder(Network):
    """The trunk, and the global head on its last map; MoCo's, and what DenseCL and ReSim share."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.backbone = build_trunk(config)
        channels = self.backbone.out_channels
        if config.head == "linear":
            self.global_head = nn.Sequential(nn.Linear(channels, config.embedding))
        else:
            self.global_head = mlp(channels, config.hidden, config.embedding)
        initialise(self.backbone, config)
        initialise_linear(self.global_head)

    def embed(self, feature: torch.Tensor) -> torch.Tensor:
        """Map (B,C,S,S) → (B,D) of unit length."""
        return unit_length(self.global_head(feature.mean((2, 3))))


def build_trunk(config: Model) -> ResNet:
    """The ResNet, with batch norms as `bn_group` says."""
    return ResNet(config.depth, config.width, partial(norm_layer, group=config.bn_group))


def mlp(channels: int, hidden: int, out: int, norm: nn.Module | None = None) -> nn.Sequential:
    """Linear, [norm,] ReLU, linear: (B,channels) → (B,out)."""
    between = [norm] if norm is not None else []
    return nn.Sequential(nn.Linear(channels, hidden), *between, nn.ReLU(), nn.Linear(hidden, out))


def initialise(backbone: ResNet, config: Model) -> None:
    """Start the trunk as the official DenseCL does, or from `init_backbone`, whole."""
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
    if config.zero_init_residual:
        for name, module in backbone.named_modules():
            if name.endswith(".bn3") and isinstance(module, nn.BatchNorm2d):
                nn.init.zeros_(module.weight)
    if config.init_backbone:
        backbone.load_state_dict(initial_backbone(config.init_backbone, config), strict=False)


def initial_backbone(file: str, config: Model) -> dict[str, torch.Tensor]:
    """The tensors of a converted backbone, all but the batch norms' counters.

    Raises UserError when the file is not a trunk of this depth and width.
    """
    tensors = load_backbone_file(Path(file))
    if size_of(tensors, Path(file)) != (config.depth, config.width):
        raise UserError(
            f"{file}: not a trunk of model.depth = {config.depth} and model.width = {config.width}"
        )
    return tensors


def initialise_linear(head: nn.Module) -> None:
    """The official initialisation of the global head (WXinlong/DenseCL necks.py: facts)."""
    for module in head.modules():
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            nn.init.zeros_(module.bias)


def unit_length(vectors: torch.Tensor) -> torch.Tensor:
    """Vectors along dimension 1 scaled to length 1, in float32 at least."""
    return F.normalize(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=1)
