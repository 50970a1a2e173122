"""The heads on a feature pyramid: boxes from convolutions and linear layers, and masks.

As StandardROIHeads and FastRCNNConvFCHead of detectron2/modeling/roi_heads/.
"""

from typing import Any

import torch
from fvcore.nn import weight_init
from torch import nn

from benchmarks.torchvision_engine.boxes import Detections, MaskDetections, Target
from benchmarks.torchvision_engine.fpn import pool
from benchmarks.torchvision_engine.layers import ConvNorm
from benchmarks.torchvision_engine.masks import MaskHead
from benchmarks.torchvision_engine.roi_heads import BoxPredictor, ROIHeads
from benchmarks.torchvision_engine.rpn import Size


class BoxHead(nn.Sequential):
    """Pooled features (N,C,P,P) → (N,FC_DIM), by NUM_CONV convolutions and NUM_FC layers."""

    def __init__(self, channels: int, settings: Any) -> None:
        super().__init__()
        for number in range(1, settings.NUM_CONV + 1):
            conv = ConvNorm(channels, settings.CONV_DIM, 3, settings.NORM, padding=1)
            self.add_module(f"conv{number}", conv)
            self.add_module(f"conv_relu{number}", nn.ReLU(inplace=True))
            channels = settings.CONV_DIM
        self.add_module("flatten", nn.Flatten())
        channels *= settings.POOLER_RESOLUTION**2
        for number in range(1, settings.NUM_FC + 1):
            self.add_module(f"fc{number}", nn.Linear(channels, settings.FC_DIM))
            self.add_module(f"fc_relu{number}", nn.ReLU(inplace=True))
            channels = settings.FC_DIM
        self.out_channels = channels
        for layer in self:
            if isinstance(layer, ConvNorm):
                weight_init.c2_msra_fill(layer)
            elif isinstance(layer, nn.Linear):
                weight_init.c2_xavier_fill(layer)


class StandardHeads(ROIHeads):
    """Classifies proposals, refines their boxes, and outlines what was found if MASK_ON."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        model, classes = config.MODEL, self.settings.NUM_CLASSES
        channels = model.FPN.OUT_CHANNELS
        self.mask_settings = model.ROI_MASK_HEAD
        self.box_head = BoxHead(channels, self.box_settings)
        self.box_predictor = BoxPredictor(self.box_head.out_channels, classes)
        self.mask_head = MaskHead(channels, self.mask_settings, classes) if model.MASK_ON else None

    def forward(
        self,
        features: list[torch.Tensor],
        proposals: list[torch.Tensor],
        sizes: list[Size],
        targets: list[Target] | None,
    ) -> tuple[list[Detections] | list[MaskDetections], dict[str, torch.Tensor]]:
        """p2 to p5, each (B,C,·,·), and B × proposals (P,4) → detections, or the losses."""
        if targets is not None:
            samples = [self.sample(p, t) for p, t in zip(proposals, targets, strict=True)]
            predictions = self.predict(features, [sample.boxes for sample in samples])
            losses = self.losses(*predictions, samples)
            if self.mask_head is not None:
                boxes = [sample.boxes[: sample.objects] for sample in samples]
                logits = self.mask_head(self.pool(features, boxes, self.mask_settings))
                losses["loss_mask"] = self.mask_loss(logits, samples, targets)
            return [], losses
        found = self.detect(*self.predict(features, proposals), proposals, sizes)
        if self.mask_head is None:
            return found, {}
        pooled = self.pool(features, [image.boxes for image in found], self.mask_settings)
        return self.with_masks(found, self.mask_head(pooled)), {}

    def predict(
        self, features: list[torch.Tensor], boxes: list[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Class logits (N,K+1) and deltas (N,4K) of all images' boxes, N in total."""
        return self.box_predictor(self.box_head(self.pool(features, boxes, self.box_settings)))

    def pool(
        self, features: list[torch.Tensor], boxes: list[torch.Tensor], head: Any
    ) -> torch.Tensor:
        """RoIAlign at the resolution P that a head's settings ask for: (N,C,P,P)."""
        return pool(features, boxes, head.POOLER_RESOLUTION, head.POOLER_SAMPLING_RATIO)
