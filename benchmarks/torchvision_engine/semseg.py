"""Semantic segmentation: images in, a loss or class scores of each pixel out.

backbone.stem  backbone.res2..res5              trunk, dilated          layers.py
sem_seg_head.conv1  conv2  conv_cat  predictor  classes, on res5        FCNHead
auxiliary_head.conv1  predictor                 in training, on res4    FCNHead
"""

from typing import Any

import torch
import torch.nn.functional as F
from fvcore.nn import weight_init
from torch import nn

from benchmarks.segmentation_data import SegmentationImage
from benchmarks.sliding_window import image_scores, resize
from benchmarks.torchvision_engine.batch import ImageModel, pad_and_stack
from benchmarks.torchvision_engine.layers import NORMS, ConvNorm, ResNet
from common.resnet import STAGE_BLOCKS

_CONTRACTED = "build_contracted_resnet_backbone"
_BACKBONES = ["build_resnet_deeplab_backbone", _CONTRACTED]
_DROPOUT = 0.1


class FCNHead(nn.Module):
    """Two 3×3 convolutions, a third over their output beside their input, and a classifier.

    Of mmsegmentation's FCNHead (mmseg/models/decode_heads/fcn_head.py, 0.11.0) as the published
    runs had it: num_convs 2 and concat_input or, `auxiliary`, one convolution and nothing beside;
    dropout_ratio 0.1; initialised as there.
    """

    def __init__(
        self, in_channels: int, channels: int, classes: int, norm: str, auxiliary: bool = False
    ) -> None:
        super().__init__()
        self.auxiliary = auxiliary
        self.conv1 = ConvNorm(in_channels, channels, 3, norm, padding=1)
        layers = [self.conv1]
        if not auxiliary:
            self.conv2 = ConvNorm(channels, channels, 3, norm, padding=1)
            self.conv_cat = ConvNorm(in_channels + channels, channels, 3, norm, padding=1)
            layers += [self.conv2, self.conv_cat]
        self.dropout = nn.Dropout2d(_DROPOUT)
        self.predictor = nn.Conv2d(channels, classes, 1)
        for layer in layers:
            weight_init.c2_msra_fill(layer)
        nn.init.normal_(self.predictor.weight, std=0.01)
        nn.init.constant_(self.predictor.bias, 0)  # type: ignore[arg-type]

    def forward(self, feature: torch.Tensor) -> torch.Tensor:
        """(B,C,h,w) → class scores (B,K,h,w)."""
        x = F.relu_(self.conv1(feature))
        if not self.auxiliary:
            x = F.relu_(self.conv2(x))
            x = F.relu_(self.conv_cat(torch.cat([feature, x], dim=1)))
        return self.predictor(self.dropout(x))


class SemanticSegmentor(ImageModel):
    """A fully convolutional network.

    As mmseg/models/segmentors/encoder_decoder.py of mmsegmentation 0.11.0; where an image's sides
    are multiples of the output stride, the same as Detectron2's meta_arch/semantic_seg.py.
    """

    def __init__(self, config: Any) -> None:
        model, head = config.MODEL, config.MODEL.SEM_SEG_HEAD
        super().__init__(model)
        dilations = (model.RESNETS.RES4_DILATION, model.RESNETS.RES5_DILATION)
        contracted = model.BACKBONE.NAME == _CONTRACTED
        self.backbone = ResNet(model.RESNETS, model.BACKBONE.FREEZE_AT, dilations, contracted)
        channels = model.RESNETS.RES2_OUT_CHANNELS * 8
        self.sem_seg_head = FCNHead(channels, head.CONVS_DIM, head.NUM_CLASSES, head.NORM)
        self.auxiliary_weight = head.AUXILIARY.LOSS_WEIGHT
        if self.auxiliary_weight:
            self.auxiliary_head = FCNHead(
                channels // 2, head.AUXILIARY.CONVS_DIM, head.NUM_CLASSES, head.NORM, auxiliary=True
            )
        self.head, self.window = head, config.TEST.SLIDING_WINDOW

    def forward(
        self, images: list[SegmentationImage]
    ) -> dict[str, torch.Tensor] | list[torch.Tensor]:
        """In training the losses; otherwise the class scores (K,height,width) of each image."""
        pixels = [self.normalise(image["image"]) for image in images]
        if not self.training:
            return [self.scores(x, (i["height"], i["width"])) for x, i in zip(pixels, images)]
        features = self.backbone(pad_and_stack(pixels))
        labels = [image["sem_seg"].to(self.pixel_mean.device) for image in images]
        target = pad_and_stack(labels, self.head.IGNORE_VALUE)
        losses = {"loss_sem_seg": self.loss(self.sem_seg_head(features["res5"]), target)}
        if self.auxiliary_weight:
            loss = self.loss(self.auxiliary_head(features["res4"]), target)
            losses["loss_auxiliary"] = self.auxiliary_weight * loss
        return losses

    def scores(self, image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """A normalised image (3,H,W) → class scores (K, *size)."""
        return image_scores(
            lambda part: self.sem_seg_head(self.backbone(part)["res5"]),
            image,
            self.head.NUM_CLASSES,
            self.window.SIZE,
            self.window.STRIDE,
            size,
            self.head.ALIGN_CORNERS,
        )

    def loss(self, scores: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of scores (B,K,h,w), scaled to the target's size (B,H,W), as a mean."""
        height, width = target.shape[1:]
        scaled = resize(scores.float(), (height, width), self.head.ALIGN_CORNERS)
        # "none": the mean below is over all pixels, and the ignored ones contribute 0.
        reduction = "none" if self.head.MEAN_OVER_IGNORED else "mean"
        ignored = self.head.IGNORE_VALUE
        return F.cross_entropy(scaled, target, ignore_index=ignored, reduction=reduction).mean()


def supported_choices(model: Any) -> dict[str, tuple[Any, list[Any]]]:
    """Each key of which this engine builds only some values: its value, and those."""
    resnets, head = model.RESNETS, model.SEM_SEG_HEAD
    dilations = [resnets.RES4_DILATION, resnets.RES5_DILATION]
    features = ["res4", "res5"] if head.AUXILIARY.LOSS_WEIGHT else ["res5"]
    return {
        # Detectron2's stock backbone takes no notice of RES4_DILATION; these do.
        "MODEL.BACKBONE.NAME": (model.BACKBONE.NAME, _BACKBONES),
        "MODEL.RESNETS.STEM_TYPE": (resnets.STEM_TYPE, ["basic"]),
        "MODEL.RESNETS.NORM": (resnets.NORM, list(NORMS)),
        "MODEL.RESNETS.DEPTH": (resnets.DEPTH, list(STAGE_BLOCKS)),
        "MODEL.RESNETS.OUT_FEATURES": (list(resnets.OUT_FEATURES), [features]),
        "MODEL.RESNETS.RES4_DILATION, RES5_DILATION": (
            dilations,
            [[1, 1], [1, 2], [1, 4], [2, 4]],
        ),
        "MODEL.RESNETS.RES5_MULTI_GRID": (list(resnets.RES5_MULTI_GRID), [[1, 1, 1]]),
        "MODEL.SEM_SEG_HEAD.NAME": (head.NAME, ["FCNHead"]),
        "MODEL.SEM_SEG_HEAD.IN_FEATURES": (list(head.IN_FEATURES), [["res5"]]),
        "MODEL.SEM_SEG_HEAD.NORM": (head.NORM, list(NORMS)),
    }
