"""Instance masks: the head, its targets and loss, and masks in the image.

As detectron2/modeling/roi_heads/mask_head.py, structures/masks.py and layers/mask_ops.py.
"""

import math
from typing import Any

import numpy as np
import pycocotools.mask
import torch
import torch.nn.functional as F
from fvcore.nn import weight_init
from torch import nn

from benchmarks.torchvision_engine.boxes import Polygons
from benchmarks.torchvision_engine.layers import ConvNorm


class MaskHead(nn.Sequential):
    """Pooled features (N,C,P,P) → mask logits of each class (N,K,2P,2P)."""

    def __init__(self, channels: int, settings: Any, classes: int) -> None:
        super().__init__()
        width = settings.CONV_DIM
        for number in range(1, settings.NUM_CONV + 1):
            conv = ConvNorm(channels, width, 3, settings.NORM, padding=1)
            self.add_module(f"mask_fcn{number}", conv)
            self.add_module(f"mask_fcn_relu{number}", nn.ReLU(inplace=True))
            channels = width
        self.deconv = nn.ConvTranspose2d(channels, width, 2, stride=2)
        self.deconv_relu = nn.ReLU(inplace=True)
        self.predictor = nn.Conv2d(width, classes, 1)
        for layer in self:
            if isinstance(layer, ConvNorm | nn.ConvTranspose2d):
                weight_init.c2_msra_fill(layer)
        nn.init.normal_(self.predictor.weight, std=0.001)
        nn.init.constant_(self.predictor.bias, 0)  # type: ignore[arg-type]


def of_class(values: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Of values (N,K,...) those of each one's class (N,): (N,...)."""
    return values[torch.arange(len(values), device=values.device), classes]


def mask_loss(
    logits: torch.Tensor, classes: torch.Tensor, targets: list[torch.Tensor]
) -> torch.Tensor:
    """Mean cross-entropy of logits (N,K,M,M), for objects of `classes` (N,), to N × (M,M) bool."""
    if not targets:
        return logits.sum() * 0
    chosen = of_class(logits, classes).float()
    return F.binary_cross_entropy_with_logits(chosen, torch.stack(targets).to(chosen))


def rasterize(polygons: Polygons, box: np.ndarray, size: int) -> torch.Tensor:
    """The part of an object's outlines within `box` (4,) float32, as a (size,size) bool mask."""
    x0, y0, x1, y1 = box
    # In the box's float32, as Detectron2 has it.
    scale = size / max(x1 - x0, 0.1), size / max(y1 - y0, 0.1)
    moved = [(p.reshape(-1, 2) - box[:2]) * np.array(scale) for p in polygons]
    runs = pycocotools.mask.frPyObjects([p.ravel() for p in moved], size, size)
    return torch.from_numpy(pycocotools.mask.decode(pycocotools.mask.merge(runs)).astype(bool))


def paste(
    masks: torch.Tensor, boxes: torch.Tensor, height: int, width: int, threshold: float = 0.5
) -> torch.Tensor:
    """Probabilities (D,M,M) in boxes (D,4) → masks (D,height,width) bool of the image."""
    pasted = torch.zeros(len(masks), height, width, dtype=torch.bool, device=masks.device)
    for number, (left, top, right, bottom) in enumerate(boxes.tolist()):
        # Only where the box is, with a margin for rounding.
        rows = slice(max(math.floor(top) - 1, 0), min(math.ceil(bottom) + 1, height))
        columns = slice(max(math.floor(left) - 1, 0), min(math.ceil(right) + 1, width))
        x0, y0, x1, y1 = boxes[number]
        y = (_centres(rows, boxes) - y0) / (y1 - y0) * 2 - 1
        x = (_centres(columns, boxes) - x0) / (x1 - x0) * 2 - 1
        grid = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], dim=-1)
        sampled = F.grid_sample(masks[number, None, None], grid[None], align_corners=False)
        pasted[number, rows, columns] = sampled[0, 0] >= threshold
    return pasted


def _centres(pixels: slice, like: torch.Tensor) -> torch.Tensor:
    """The coordinates of the pixels' centres."""
    return torch.arange(pixels.start, pixels.stop, dtype=torch.float32, device=like.device) + 0.5
