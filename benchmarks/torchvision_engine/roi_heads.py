"""What the heads share: samples of proposals, classes, boxes and masks, and their losses.

As ROIHeads and FastRCNNOutputLayers of detectron2/modeling/roi_heads/. K classes; label K is the
background. The heads of C4 are in res5_heads.py, those on a pyramid in standard_heads.py.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from fvcore.nn import smooth_l1_loss
from torch import nn
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image

from benchmarks.torchvision_engine.boxes import Detections, MaskDetections, Target, subsample
from benchmarks.torchvision_engine.masks import MaskHead, mask_loss, of_class, rasterize
from benchmarks.torchvision_engine.rpn import Size
from common.errors import UserError


class Sample(NamedTuple):
    """The proposals of one image that are trained on, objects first."""

    boxes: torch.Tensor  # (S,4)
    classes: torch.Tensor  # (S,), K for background
    target_boxes: torch.Tensor  # (S,4), meaningless for background
    target_indices: torch.Tensor  # (S,) of the image's objects, meaningless for background
    objects: int
    """How many of the S, from the first on, hold an object: known without asking the device."""


def objects_of(rows: Sequence[torch.Tensor], samples: list[Sample]) -> torch.Tensor:
    """Of each image's rows (S,...) those whose sample holds an object, of all images: (N,...)."""
    return torch.cat([row[: sample.objects] for row, sample in zip(rows, samples)])


class BoxPredictor(nn.Module):
    """Pooled features (N,C) → class logits (N,K+1) and box deltas (N,4K), in float32."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(channels, classes + 1)
        self.bbox_pred = nn.Linear(channels, classes * 4)
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.normal_(self.bbox_pred.weight, std=0.001)
        for layer in (self.cls_score, self.bbox_pred):
            nn.init.constant_(layer.bias, 0)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.cls_score(x).float(), self.bbox_pred(x).float()


class ROIHeads(nn.Module):
    """The part that is the same for every box head: samples, losses, detections and masks."""

    mask_head: MaskHead | None  # None: boxes alone

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.settings = config.MODEL.ROI_HEADS
        self.box_settings = config.MODEL.ROI_BOX_HEAD
        self.detections_per_image = config.TEST.DETECTIONS_PER_IMAGE
        (threshold,) = self.settings.IOU_THRESHOLDS
        self.matcher = Matcher(threshold, threshold, allow_low_quality_matches=False)
        self.coder = BoxCoder(tuple(self.box_settings.BBOX_REG_WEIGHTS))

    @torch.no_grad()
    def sample(self, proposals: torch.Tensor, target: Target) -> Sample:
        """Proposals and true boxes, matched by overlap, then a random part of them."""
        background = self.settings.NUM_CLASSES
        boxes = torch.cat([proposals, target.boxes])
        matched = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
        classes = torch.full_like(matched, background)
        if len(target.boxes):
            match = self.matcher(box_iou(target.boxes, boxes))
            matched = match.clamp(min=0)
            classes = target.classes[matched]
            classes[match < 0] = background
        positive, negative = subsample(
            classes,
            self.settings.BATCH_SIZE_PER_IMAGE,
            self.settings.POSITIVE_FRACTION,
            background,
        )
        chosen = torch.cat([positive, negative])
        boxes, matched = boxes[chosen], matched[chosen]
        wanted = target.boxes[matched] if len(target.boxes) else boxes
        return Sample(boxes, classes[chosen], wanted, matched, len(positive))

    def losses(
        self, logits: torch.Tensor, deltas: torch.Tensor, samples: list[Sample]
    ) -> dict[str, torch.Tensor]:
        """Cross-entropy over the N samples, and the objects' box loss divided by N."""
        classes = torch.cat([sample.classes for sample in samples])
        wanted = self.coder.encode_single(
            objects_of([sample.target_boxes for sample in samples], samples),
            objects_of([sample.boxes for sample in samples], samples),
        )
        parts = deltas.view(len(deltas), -1, 4).split([len(sample.boxes) for sample in samples])
        predicted = of_class(
            objects_of(parts, samples),
            objects_of([sample.classes for sample in samples], samples),
        )
        beta = self.box_settings.SMOOTH_L1_BETA
        location = smooth_l1_loss(predicted, wanted, beta, reduction="sum")
        return {
            "loss_cls": F.cross_entropy(logits, classes),
            "loss_box_reg": location / max(len(classes), 1),
        }

    def detect(
        self,
        logits: torch.Tensor,
        deltas: torch.Tensor,
        proposals: list[torch.Tensor],
        sizes: list[Size],
    ) -> list[Detections]:
        """Boxes above the score threshold after per-class suppression, best first."""
        counts = [len(boxes) for boxes in proposals]
        scores = F.softmax(logits, dim=-1)
        boxes = self.coder.decode_single(deltas, torch.cat(proposals))
        images = zip(boxes.split(counts), scores.split(counts), sizes)
        return [self._detect_in_image(*image) for image in images]

    def _detect_in_image(self, boxes: torch.Tensor, scores: torch.Tensor, size: Size) -> Detections:
        finite = torch.isfinite(boxes).all(dim=1) & torch.isfinite(scores).all(dim=1)
        boxes, scores = boxes[finite], scores[finite, :-1]
        boxes = clip_boxes_to_image(boxes.reshape(len(boxes), -1, 4), size)
        above = scores > self.settings.SCORE_THRESH_TEST
        classes = above.nonzero()[:, 1]
        boxes, scores = boxes[above], scores[above]
        keep = batched_nms(boxes, scores, classes, self.settings.NMS_THRESH_TEST)
        keep = keep[: self.detections_per_image]
        return Detections(boxes[keep], scores[keep], classes[keep])

    def mask_loss(
        self, logits: torch.Tensor, samples: list[Sample], targets: list[Target]
    ) -> torch.Tensor:
        """The loss of mask logits (N,K,M,M) of the N samples that hold an object."""
        wanted = []
        for sample, target in zip(samples, targets):
            if target.polygons is None:
                raise UserError("MODEL.MASK_ON is True, but the training set has no masks")
            boxes = sample.boxes[: sample.objects].cpu().numpy()
            indices = sample.target_indices[: sample.objects].tolist()
            for box, index in zip(boxes, indices):
                wanted.append(rasterize(target.polygons[index], box, logits.shape[-1]))
        classes = objects_of([sample.classes for sample in samples], samples)
        return mask_loss(logits, classes, wanted)

    def with_masks(self, found: list[Detections], logits: torch.Tensor) -> list[MaskDetections]:
        """Each detection's mask within its refined box, as probabilities."""
        masks = of_class(logits, torch.cat([image.classes for image in found])).sigmoid()
        parts = masks.split([len(image.boxes) for image in found])
        return [MaskDetections(*image, part) for image, part in zip(found, parts)]
