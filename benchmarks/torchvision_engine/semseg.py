"""Semantic segmentation: images in, a loss or class scores of each pixel out.

backbone.stem  backbone.res2..res5              trunk, dilated   layers.py
sem_seg_head.conv1  conv2  conv_cat  predictor  classes          FCNHead
"""

from typing import Any, TypedDict

import torch
import torch.nn.functional as F
from fvcore.nn import weight_init
from torch import nn

from benchmarks.torchvision_engine.batch import ImageModel, pad_and_stack
from benchmarks.torchvision_engine.layers import NORMS, ConvNorm, ResNet
from common.resnet import STAGE_BLOCKS


class SegmentationImage(TypedDict, total=False):
    """One image for the segmentor."""

    image: torch.Tensor  # (3,H,W) uint8, channels in the order of INPUT.FORMAT
    height: int  # of the class scores wanted, in pixels
    width: int
    sem_seg: torch.Tensor  # (H,W) int64 classes or SEM_SEG_HEAD.IGNORE_VALUE, in training


class FCNHead(nn.Module):
    """Two 3×3 convolutions, a third over their output beside their input, and a classifier.

    The published DenseCL segmentation uses it: mmsegmentation's FCNHead (decode_heads/fcn_head.py)
    with num_convs 2, concat_input and dropout_ratio 0.1, initialised as there.
    """

    def __init__(self, in_channels: int, channels: int, classes: int, norm: str) -> None:
        super().__init__()
        self.conv1 = ConvNorm(in_channels, channels, 3, norm, padding=1)
        self.conv2 = ConvNorm(channels, channels, 3, norm, padding=1)
        self.conv_cat = ConvNorm(in_channels + channels, channels, 3, norm, padding=1)
        self.dropout = nn.Dropout2d(0.1)
        self.predictor = nn.Conv2d(channels, classes, 1)
        for layer in (self.conv1, self.conv2, self.conv_cat):
            weight_init.c2_msra_fill(layer)
        nn.init.normal_(self.predictor.weight, std=0.01)
        nn.init.constant_(self.predictor.bias, 0)  # type: ignore[arg-type]

    def forward(self, feature: torch.Tensor) -> torch.Tensor:
        """(B,C,h,w) → class scores (B,K,h,w)."""
        x = F.relu_(self.conv1(feature))
        x = F.relu_(self.conv2(x))
        x = F.relu_(self.conv_cat(torch.cat([feature, x], dim=1)))
        return self.predictor(self.dropout(x))


class SemanticSegmentor(ImageModel):
    """A fully convolutional network, as detectron2/modeling/meta_arch/semantic_seg.py.

    Without mmsegmentation's auxiliary head on res4.
    """

    def __init__(self, config: Any) -> None:
        model, head = config.MODEL, config.MODEL.SEM_SEG_HEAD
        super().__init__(model)
        dilations = (model.RESNETS.RES4_DILATION, model.RESNETS.RES5_DILATION)
        self.backbone = ResNet(model.RESNETS, model.BACKBONE.FREEZE_AT, dilations)
        channels = model.RESNETS.RES2_OUT_CHANNELS * 8
        self.sem_seg_head = FCNHead(channels, head.CONVS_DIM, head.NUM_CLASSES, head.NORM)
        self.stride, self.ignored = head.COMMON_STRIDE, head.IGNORE_VALUE

    def forward(
        self, images: list[SegmentationImage]
    ) -> dict[str, torch.Tensor] | list[torch.Tensor]:
        """In training the loss; otherwise the class scores (K,height,width) of each image."""
        pixels = [self.normalise(image["image"]) for image in images]
        scores = self.sem_seg_head(self.backbone(pad_and_stack(pixels))["res5"])
        scores = F.interpolate(
            scores, scale_factor=self.stride, mode="bilinear", align_corners=False
        )
        if self.training:
            labels = pad_and_stack([i["sem_seg"].to(scores.device) for i in images], self.ignored)
            # The feature's size is rounded up, so the scores may reach beyond the images.
            scores = scores[:, :, : labels.shape[1], : labels.shape[2]]
            loss = F.cross_entropy(scores, labels, ignore_index=self.ignored)
            return {"loss_sem_seg": loss}
        return [
            resize(score[:, : x.shape[1], : x.shape[2]], (i["height"], i["width"]))
            for score, x, i in zip(scores, pixels, images)
        ]


def resize(scores: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(K,H,W) → (K, *size), as sem_seg_postprocess of detectron2/modeling/postprocessing.py."""
    return F.interpolate(scores[None], size=size, mode="bilinear", align_corners=False)[0]


def supported_choices(model: Any) -> dict[str, tuple[Any, list[Any]]]:
    """Each key of which this engine builds only some values: its value, and those."""
    resnets, head = model.RESNETS, model.SEM_SEG_HEAD
    dilations = [resnets.RES4_DILATION, resnets.RES5_DILATION]
    stride = 32 // 2 ** sum(dilation > 1 for dilation in dilations)
    return {
        # Detectron2's stock backbone takes no notice of RES4_DILATION; this one does.
        "MODEL.BACKBONE.NAME": (model.BACKBONE.NAME, ["build_resnet_deeplab_backbone"]),
        "MODEL.RESNETS.STEM_TYPE": (resnets.STEM_TYPE, ["basic"]),
        "MODEL.RESNETS.NORM": (resnets.NORM, list(NORMS)),
        "MODEL.RESNETS.DEPTH": (resnets.DEPTH, list(STAGE_BLOCKS)),
        "MODEL.RESNETS.OUT_FEATURES": (list(resnets.OUT_FEATURES), [["res5"]]),
        "MODEL.RESNETS.RES4_DILATION, RES5_DILATION": (
            dilations,
            [[1, 1], [1, 2], [1, 4], [2, 4]],
        ),
        "MODEL.RESNETS.RES5_MULTI_GRID": (list(resnets.RES5_MULTI_GRID), [[1, 1, 1]]),
        "MODEL.SEM_SEG_HEAD.NAME": (head.NAME, ["FCNHead"]),
        "MODEL.SEM_SEG_HEAD.IN_FEATURES": (list(head.IN_FEATURES), [["res5"]]),
        "MODEL.SEM_SEG_HEAD.NORM": (head.NORM, list(NORMS)),
        "MODEL.SEM_SEG_HEAD.LOSS_TYPE": (head.LOSS_TYPE, ["cross_entropy"]),
        "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": (head.COMMON_STRIDE, [stride]),
    }
