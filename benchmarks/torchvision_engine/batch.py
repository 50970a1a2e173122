"""Single images → one normalised batch, for every model."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class ImageModel(nn.Module):
    """A model that normalises its images by PIXEL_MEAN and PIXEL_STD."""

    pixel_mean: torch.Tensor
    pixel_std: torch.Tensor

    def __init__(self, model: Any) -> None:
        super().__init__()
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (model.PIXEL_MEAN, model.PIXEL_STD))
        self.register_buffer("pixel_mean", mean, persistent=False)
        self.register_buffer("pixel_std", std, persistent=False)

    def normalise(self, image: torch.Tensor) -> torch.Tensor:
        """(3,H,W) uint8 → float32 on the model's device."""
        there = image.to(self.pixel_mean.device, non_blocking=True)
        return (there - self.pixel_mean) / self.pixel_std


def pad_and_stack(
    tensors: Sequence[torch.Tensor], value: float = 0.0, divisibility: int = 1
) -> torch.Tensor:
    """Tensors (...,H,W), padded with `value` at the right and bottom → (B,...).

    To the largest height and width, rounded up to multiples of `divisibility`.
    """
    largest = (max(t.shape[side] for t in tensors) for side in (-2, -1))
    height, width = (-(-side // divisibility) * divisibility for side in largest)
    padding = [(0, width - t.shape[-1], 0, height - t.shape[-2]) for t in tensors]
    return torch.stack([F.pad(t, sides, value=value) for t, sides in zip(tensors, padding)])
