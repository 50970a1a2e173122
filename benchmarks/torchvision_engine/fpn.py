"""The feature pyramid, and RoIAlign on its levels.

As detectron2/modeling/backbone/fpn.py and detectron2/modeling/poolers.py. Level pk has stride 2^k.
torchvision's MultiScaleRoIAlign neither aligns to half pixels nor assigns levels this way.
"""

from typing import Any

import torch
import torch.nn.functional as F
from fvcore.nn import weight_init
from torch import nn
from torchvision.ops import roi_align

from benchmarks.torchvision_engine.layers import ConvNorm, ResNet

STAGES = ["res2", "res3", "res4", "res5"]
LEVELS = ["p2", "p3", "p4", "p5", "p6"]
POOLED_LEVELS = LEVELS[:4]
STRIDES = [4, 8, 16, 32, 64]  # of LEVELS
DIVISIBILITY = 32  # image sides are padded to multiples of it, for levels that fit each other

_CANONICAL_SIZE, _CANONICAL_LEVEL = 224, 4  # an object of 224 × 224 pixels belongs to p4


class FPN(nn.Module):
    """ResNet and pyramid: images (B,3,H,W) → {"p2": (B,C,H/4,W/4), ..., "p6": (B,C,H/64,W/64)}."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        # Drawn first and registered last, as in Detectron2.
        bottom_up = ResNet(model.RESNETS, model.BACKBONE.FREEZE_AT)
        channels, norm = model.FPN.OUT_CHANNELS, model.FPN.NORM
        for level in range(2, 6):
            in_channels = model.RESNETS.RES2_OUT_CHANNELS * 2 ** (level - 2)
            lateral = ConvNorm(in_channels, channels, 1, norm)
            output = ConvNorm(channels, channels, 3, norm, padding=1)
            weight_init.c2_xavier_fill(lateral)
            weight_init.c2_xavier_fill(output)
            self.add_module(f"fpn_lateral{level}", lateral)
            self.add_module(f"fpn_output{level}", output)
        self.bottom_up = bottom_up

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.bottom_up(images)
        merged, pyramid = None, {}
        for level in (5, 4, 3, 2):
            lateral, output = (
                getattr(self, f"fpn_{kind}{level}") for kind in ("lateral", "output")
            )
            feature = features[f"res{level}"]
            if merged is None:
                merged = lateral(feature)
            else:
                upsampled = F.interpolate(merged, scale_factor=2.0, mode="nearest")
                merged = lateral(feature).add_(upsampled)
            pyramid[f"p{level}"] = output(merged)
        pyramid["p6"] = F.max_pool2d(pyramid["p5"], kernel_size=1, stride=2)
        return {name: pyramid[name] for name in LEVELS}


def assign_levels(boxes: torch.Tensor) -> torch.Tensor:
    """For boxes (N,4) the index into POOLED_LEVELS (N,) of the level that fits their size."""
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    # torchvision adds its epsilon to the logarithm: boxes just below a boundary would move up.
    steps = torch.log2(torch.sqrt(area) / _CANONICAL_SIZE + 1e-8)
    level = torch.floor(_CANONICAL_LEVEL + steps)
    return level.clamp(min=2, max=1 + len(POOLED_LEVELS)).to(torch.int64) - 2


def pool(
    features: list[torch.Tensor], boxes: list[torch.Tensor], resolution: int, sampling_ratio: int
) -> torch.Tensor:
    """RoIAlign of B × boxes (P,4) on the POOLED_LEVELS, each (B,C,·,·): (N,C,resolution,²)."""
    rois = torch.cat([F.pad(b, (1, 0), value=number) for number, b in enumerate(boxes)])
    levels = assign_levels(rois[:, 1:])
    # By level, each level's in the order given, in a single wait for the device.
    order = levels.argsort(stable=True)
    counts = (levels[:, None] == torch.arange(len(features), device=levels.device)).sum(0).tolist()
    pooled = [
        roi_align(feature, part, resolution, 1.0 / stride, sampling_ratio, aligned=True)
        for feature, part, stride in zip(features, rois[order].split(counts), STRIDES)
    ]
    return torch.cat(pooled).index_select(0, order.argsort())
