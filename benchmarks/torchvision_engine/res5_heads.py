"""The heads of C4: RoIAlign on res4, then res5 of each RoI for classes, boxes and masks.

As Res5ROIHeads of detectron2/modeling/roi_heads/roi_heads.py.
"""

from typing import Any

import torch
from torchvision.ops import roi_align

from benchmarks.torchvision_engine.boxes import Detections, MaskDetections, Target
from benchmarks.torchvision_engine.layers import NORMS, build_stage
from benchmarks.torchvision_engine.masks import MaskHead
from benchmarks.torchvision_engine.roi_heads import BoxPredictor, ROIHeads, objects_of
from benchmarks.torchvision_engine.rpn import Size


class Res5Heads(ROIHeads):
    """Classifies proposals, refines their boxes and outlines objects, all on res5 of the RoIs."""

    def __init__(self, config: Any, stride: int) -> None:
        super().__init__(config)
        resnets = config.MODEL.RESNETS
        self.stride = stride
        channels = resnets.RES2_OUT_CHANNELS * 8
        self.res5 = build_stage(resnets, 5)
        if self.settings.NAME == "Res5ROIHeadsExtraNorm":
            self.res5.add_module("norm", NORMS[resnets.NORM](channels))
        classes, model = self.settings.NUM_CLASSES, config.MODEL
        self.box_predictor = BoxPredictor(channels, classes)
        self.mask_head = None
        if model.MASK_ON:
            self.mask_head = MaskHead(channels, model.ROI_MASK_HEAD, classes)

    def forward(
        self,
        feature: torch.Tensor,
        proposals: list[torch.Tensor],
        sizes: list[Size],
        targets: list[Target] | None,
    ) -> tuple[list[Detections] | list[MaskDetections], dict[str, torch.Tensor]]:
        """Feature (B,C,H,W) and B × proposals (P,4) → detections, or with targets the losses."""
        if targets is not None:
            samples = [self.sample(p, t) for p, t in zip(proposals, targets, strict=True)]
            x = self.res5(self.pool(feature, [sample.boxes for sample in samples]))
            losses = self.losses(*self.predict(x), samples)
            if self.mask_head is not None:
                parts = x.split([len(sample.boxes) for sample in samples])
                logits = self.mask_head(objects_of(parts, samples))
                losses["loss_mask"] = self.mask_loss(logits, samples, targets)
            return [], losses
        predictions = self.predict(self.res5(self.pool(feature, proposals)))
        found = self.detect(*predictions, proposals, sizes)
        if self.mask_head is None:
            return found, {}
        x = self.res5(self.pool(feature, [image.boxes for image in found]))
        return self.with_masks(found, self.mask_head(x)), {}

    def predict(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """res5 of all images' boxes (N,C,P,P) → class logits (N,K+1) and deltas (N,4K)."""
        return self.box_predictor(x.mean(dim=[2, 3]))

    def pool(self, feature: torch.Tensor, boxes: list[torch.Tensor]) -> torch.Tensor:
        """RoIAlign with half-pixel-exact coordinates: (N,C,P,P)."""
        settings = self.box_settings
        return roi_align(
            feature,
            boxes,
            settings.POOLER_RESOLUTION,
            1.0 / self.stride,
            settings.POOLER_SAMPLING_RATIO,
            aligned=True,
        )
