"""The region proposal network, as detectron2/modeling/proposal_generator/rpn.py.

Shapes: B images, L feature levels, A anchors per position, R = Σ H·W·A anchors per image.
torchvision has these parts too, but rounds its anchors, orders them by ratio, ranks proposals by
sigmoid scores and averages its losses differently, so only its box coder and matcher are used.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from fvcore.nn import smooth_l1_loss
from torch import nn
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image

from benchmarks.torchvision_engine.boxes import Target, subsample

Size = tuple[int, int]


class RPNHead(nn.Module):
    """3×3 convolution, then objectness and box deltas for each anchor, shared by all levels."""

    def __init__(self, channels: int, anchors: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.objectness_logits = nn.Conv2d(channels, anchors, 1)
        self.anchor_deltas = nn.Conv2d(channels, anchors * 4, 1)
        for layer in (self.conv, self.objectness_logits, self.anchor_deltas):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.constant_(layer.bias, 0)  # type: ignore[arg-type]

    def forward(
        self, features: list[torch.Tensor]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """L × (B,C,H,W) → L × logits (B,H·W·A) and L × deltas (B,H·W·A,4), in float32."""
        logits, deltas = [], []
        for feature in features:
            x = F.relu_(self.conv(feature))
            logits.append(self.objectness_logits(x).float().permute(0, 2, 3, 1).flatten(1))
            delta = self.anchor_deltas(x).float()
            batch, _, height, width = delta.shape
            delta = delta.view(batch, -1, 4, height, width).permute(0, 3, 4, 1, 2)
            deltas.append(delta.flatten(1, -2))
        return logits, deltas


def cell_anchors(sizes: list[float], ratios: list[float]) -> torch.Tensor:
    """(A,4) anchors around the origin: for each size, for each ratio (height / width)."""
    anchors = []
    for size in sizes:
        for ratio in ratios:
            width = math.sqrt(size**2.0 / ratio)
            height = ratio * width
            anchors.append([-width / 2, -height / 2, width / 2, height / 2])
    return torch.tensor(anchors)


def grid_anchors(cell: torch.Tensor, size: Size, stride: int, offset: float) -> torch.Tensor:
    """Anchors (H·W·A,4) of a feature map of `size` (H,W), positions `stride` pixels apart."""
    rows, columns = (
        torch.arange(
            offset * stride, n * stride, step=stride, dtype=torch.float32, device=cell.device
        )
        for n in size
    )
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    shifts = torch.stack((x, y, x, y), dim=-1).reshape(-1, 1, 4)
    return (shifts + cell).reshape(-1, 4)


class RPN(nn.Module):
    """Proposes boxes that may hold an object, and learns to."""

    def __init__(self, model: Any, channels: int, strides: list[int]) -> None:
        super().__init__()
        self.settings = model.RPN
        self.min_size = float(model.PROPOSAL_GENERATOR.MIN_SIZE)
        self.strides = strides
        anchors = model.ANCHOR_GENERATOR
        self.offset = anchors.OFFSET
        # One list of sizes (of ratios) serves every level.
        sizes = list(anchors.SIZES) * (len(strides) if len(anchors.SIZES) == 1 else 1)
        ratios = list(anchors.ASPECT_RATIOS)
        ratios *= len(strides) if len(ratios) == 1 else 1
        for level, (level_sizes, level_ratios) in enumerate(zip(sizes, ratios, strict=True)):
            cell = cell_anchors(level_sizes, level_ratios)
            self.register_buffer(f"cell_anchors_{level}", cell, persistent=False)
        self.rpn_head = RPNHead(channels, len(sizes[0]) * len(ratios[0]))
        low, high = self.settings.IOU_THRESHOLDS
        self.matcher = Matcher(high, low, allow_low_quality_matches=True)
        self.coder = BoxCoder(tuple(self.settings.BBOX_REG_WEIGHTS))

    def forward(
        self, features: list[torch.Tensor], sizes: list[Size], targets: list[Target] | None
    ) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
        """L × (B,C,H,W), the images' true sizes → B × proposals (P,4), best first; losses.

        Without targets the losses are empty. Raises FloatingPointError when training diverged.
        """
        logits, deltas = self.rpn_head(features)
        anchors = self.anchors(features)
        losses = {}
        if targets is not None:
            losses = self.losses(torch.cat(anchors), torch.cat(logits, 1), deltas, targets)
        with torch.no_grad():
            return self.best_boxes(anchors, logits, deltas, sizes), losses

    def anchors(self, features: list[torch.Tensor]) -> list[torch.Tensor]:
        """Each level's anchors (H·W·A,4), the same for every image."""
        anchors = []
        for level, (feature, stride) in enumerate(zip(features, self.strides, strict=True)):
            cell: torch.Tensor = getattr(self, f"cell_anchors_{level}")
            size = (feature.shape[-2], feature.shape[-1])
            anchors.append(grid_anchors(cell, size, stride, self.offset))
        return anchors

    def best_boxes(
        self,
        anchors: list[torch.Tensor],
        logits: list[torch.Tensor],
        deltas: list[torch.Tensor],
        sizes: list[Size],
    ) -> list[torch.Tensor]:
        """Top boxes by logit per level, clipped, without empty or overlapping ones.

        As detectron2/modeling/proposal_generator/proposal_utils.py, but that only the top anchors
        are decoded: of L × anchors (·,4), by deltas L × (B,·,4).
        """
        mode = "TRAIN" if self.training else "TEST"
        before = self.settings[f"PRE_NMS_TOPK_{mode}"]
        top_boxes, top_logits, levels = [], [], []
        for level, (level_anchors, level_logits, moves) in enumerate(zip(anchors, logits, deltas)):
            values, indices = level_logits.topk(min(level_logits.shape[1], before), dim=1)
            chosen = moves.gather(1, indices[..., None].expand(-1, -1, 4)).view(-1, 4)
            decoded = self.coder.decode_single(chosen, level_anchors[indices.view(-1)])
            top_boxes.append(decoded.view(*indices.shape, 4))
            top_logits.append(values)
            levels.append(torch.full_like(indices[0], level))
        boxes, scores = torch.cat(top_boxes, 1), torch.cat(top_logits, 1)
        finite = torch.isfinite(boxes).all(dim=2) & torch.isfinite(scores)
        if self.training and not finite.all():
            raise FloatingPointError("predicted boxes or scores are not finite")
        images = zip(boxes, scores, finite, sizes)
        return [self._suppressed(*image, torch.cat(levels)) for image in images]

    def _suppressed(
        self,
        boxes: torch.Tensor,
        scores: torch.Tensor,
        finite: torch.Tensor,
        size: Size,
        levels: torch.Tensor,
    ) -> torch.Tensor:
        """Of one image's boxes those that are finite and larger than MIN_SIZE, after NMS."""
        after = self.settings[f"POST_NMS_TOPK_{'TRAIN' if self.training else 'TEST'}"]
        boxes = clip_boxes_to_image(boxes, size)
        large = ((boxes[:, 2:] - boxes[:, :2]) > self.min_size).all(dim=1)
        valid = torch.where(finite & large)[0]
        boxes = boxes[valid]
        keep = batched_nms(boxes, scores[valid], levels[valid], self.settings.NMS_THRESH)
        return boxes[keep[:after]]

    @torch.no_grad()
    def label_anchors(
        self, anchors: torch.Tensor, targets: list[Target]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Sampled labels (B,R): 1 object, 0 background, -1 unused; and matched boxes (B,R,4)."""
        labels, matched_boxes = [], []
        for target in targets:
            label = torch.zeros(len(anchors), dtype=torch.int64, device=anchors.device)
            matched = torch.zeros_like(anchors)
            if len(target.boxes):
                match = self.matcher(box_iou(target.boxes, anchors))
                label = torch.where(match >= 0, 1, 0)
                label[match == Matcher.BETWEEN_THRESHOLDS] = -1
                matched = target.boxes[match.clamp(min=0)]
            positive, negative = subsample(
                label, self.settings.BATCH_SIZE_PER_IMAGE, self.settings.POSITIVE_FRACTION, 0
            )
            # Not label[positive] = 1, for which a GPU has the host wait until it has the 1.
            label.fill_(-1).index_fill_(0, positive, 1).index_fill_(0, negative, 0)
            labels.append(label)
            matched_boxes.append(matched)
        return torch.stack(labels), torch.stack(matched_boxes)

    def losses(
        self,
        anchors: torch.Tensor,
        logits: torch.Tensor,
        deltas: list[torch.Tensor],
        targets: list[Target],
    ) -> dict[str, torch.Tensor]:
        """Objectness and box losses of anchors (R,4), logits (B,R) and deltas L × (B,·,4).

        Both are sums over the sampled anchors divided by BATCH_SIZE_PER_IMAGE · B.
        """
        labels, matched = self.label_anchors(anchors, targets)
        # Where, once: each use of a mask as an index would wait for the device anew.
        positive, used = torch.where(labels == 1), torch.where(labels >= 0)
        wanted = self.coder.encode_single(matched[positive], anchors[positive[1]])
        normaliser = self.settings.BATCH_SIZE_PER_IMAGE * len(targets)
        objectness = F.binary_cross_entropy_with_logits(
            logits[used], labels[used].to(torch.float32), reduction="sum"
        )
        location = smooth_l1_loss(
            torch.cat(deltas, 1)[positive], wanted, self.settings.SMOOTH_L1_BETA, reduction="sum"
        )
        return {"loss_rpn_cls": objectness / normaliser, "loss_rpn_loc": location / normaliser}
