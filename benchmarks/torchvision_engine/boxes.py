"""What the two halves of the detector share: targets, detections and sampling.

Boxes are (x0, y0, x1, y1) in pixels of the image that the network sees.
"""

from typing import NamedTuple

import numpy as np
import torch

Polygons = list[np.ndarray]  # one object's outlines, each (2P,) float64: x0, y0, x1, y1, ...


class Target(NamedTuple):
    """One image's objects."""

    boxes: torch.Tensor  # (G,4) float32
    classes: torch.Tensor  # (G,) int64, 0 to K-1
    polygons: list[Polygons] | None = None  # G, where masks are trained

    def to(self, device: torch.device) -> "Target":
        """The same on `device`; polygons stay in the CPU's memory, where they are rasterised."""
        boxes, classes = (t.to(device, non_blocking=True) for t in (self.boxes, self.classes))
        return Target(boxes, classes, self.polygons)


class Detections(NamedTuple):
    """One image's detections, best first."""

    boxes: torch.Tensor  # (D,4) float32
    scores: torch.Tensor  # (D,) float32
    classes: torch.Tensor  # (D,) int64


class MaskDetections(NamedTuple):
    """Detections with their masks."""

    boxes: torch.Tensor
    scores: torch.Tensor
    classes: torch.Tensor
    masks: torch.Tensor
    """(D,M,M) probabilities within the box; once pasted, (D,H,W) bool in the image."""


def subsample(
    labels: torch.Tensor, count: int, positive_fraction: float, background: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of at most `count` random positives and negatives, in the order drawn.

    labels (N,): -1 is ignored, `background` is negative, everything else positive. The same two
    draws, in the same order, as detectron2/modeling/sampling.py, so that equal random states
    choose equal samples (torchvision's own sampler draws otherwise).
    """
    positive = torch.where((labels != -1) & (labels != background))[0]
    negative = torch.where(labels == background)[0]
    positives = min(len(positive), int(count * positive_fraction))
    negatives = min(len(negative), count - positives)
    chosen_positive = torch.randperm(len(positive), device=labels.device)[:positives]
    chosen_negative = torch.randperm(len(negative), device=labels.device)[:negatives]
    return positive[chosen_positive], negative[chosen_negative]
