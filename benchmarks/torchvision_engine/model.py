"""The detector: images in, losses or detections out. state_dict() has Detectron2's names.

    C4   backbone.stem  backbone.res2..res4       trunk            layers.py
    FPN  backbone.bottom_up  backbone.fpn_*       pyramid          fpn.py
    both proposal_generator.rpn_head              proposals        rpn.py
    C4   roi_heads.res5  roi_heads.box_predictor  classes, boxes   res5_heads.py
    FPN  roi_heads.box_head  .box_predictor       classes, boxes   standard_heads.py
    both roi_heads.mask_head                      masks            masks.py

The other model that `build_model` knows, the semantic segmentor, is in semseg.py.
"""

from typing import Any, TypedDict

import torch
from torch import nn
from torchvision.ops import clip_boxes_to_image

from benchmarks.torchvision_engine import fpn
from benchmarks.torchvision_engine.batch import ImageModel, pad_and_stack
from benchmarks.torchvision_engine.boxes import Detections, MaskDetections, Target
from benchmarks.torchvision_engine.layers import NORMS, ResNet
from benchmarks.torchvision_engine.masks import paste
from benchmarks.torchvision_engine.res5_heads import Res5Heads
from benchmarks.torchvision_engine.rpn import RPN, Size
from benchmarks.torchvision_engine.semseg import SemanticSegmentor, supported_choices
from benchmarks.torchvision_engine.standard_heads import StandardHeads
from common.errors import UserError
from common.resnet import STAGE_BLOCKS

Choices = dict[str, tuple[Any, list[Any]]]  # key → its value, and those that can be built


class Image(TypedDict, total=False):
    """One image for the network."""

    image: torch.Tensor  # (3,H,W) uint8, channels in the order of INPUT.FORMAT
    height: int  # of the detections wanted, in pixels
    width: int
    target: Target  # in training


class Detector(ImageModel):
    """What the detectors share of GeneralizedRCNN of detectron2/modeling/meta_arch/rcnn.py."""

    proposal_generator: RPN
    roi_heads: Res5Heads | StandardHeads
    divisibility = 1  # the batch's sides are padded to multiples of it

    def features(self, batch: torch.Tensor) -> tuple[list[torch.Tensor], Any]:
        """Of normalised images (B,3,H,W): the features for proposals, and those for the heads."""
        raise NotImplementedError

    def forward(
        self, images: list[Image]
    ) -> dict[str, torch.Tensor] | list[Detections | MaskDetections]:
        """In training the losses; otherwise detections in pixels of (height, width)."""
        batch, sizes = self.preprocess(images)
        for_proposals, for_heads = self.features(batch)
        targets = None
        if self.training:
            targets = [image["target"].to(batch.device) for image in images]
        proposals, rpn_losses = self.proposal_generator(for_proposals, sizes, targets)
        detections, losses = self.roi_heads(for_heads, proposals, sizes, targets)
        if self.training:
            return {**rpn_losses, **losses}
        return [rescale(d, size, image) for d, size, image in zip(detections, sizes, images)]

    def preprocess(self, images: list[Image]) -> tuple[torch.Tensor, list[Size]]:
        """Normalised images (B,3,H,W), zero-padded at the right and bottom, and their sizes."""
        normalised = [self.normalise(image["image"]) for image in images]
        sizes: list[Size] = [(x.shape[-2], x.shape[-1]) for x in normalised]
        return pad_and_stack(normalised, divisibility=self.divisibility), sizes


class C4Detector(Detector):
    """Faster R-CNN, or with MASK_ON Mask R-CNN, on res4."""

    def __init__(self, config: Any) -> None:
        model = config.MODEL
        super().__init__(model)
        self.backbone = ResNet(model.RESNETS, model.BACKBONE.FREEZE_AT)
        channels = model.RESNETS.RES2_OUT_CHANNELS * 4
        self.proposal_generator = RPN(model, channels, strides=[16])
        self.roi_heads = Res5Heads(config, stride=16)

    def features(self, batch: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """res4 for both."""
        feature = self.backbone(batch)["res4"]
        return [feature], feature


class FPNDetector(Detector):
    """Faster R-CNN, or with MASK_ON Mask R-CNN, on a feature pyramid."""

    divisibility = fpn.DIVISIBILITY

    def __init__(self, config: Any) -> None:
        model = config.MODEL
        super().__init__(model)
        self.backbone = fpn.FPN(model)
        self.proposal_generator = RPN(model, model.FPN.OUT_CHANNELS, fpn.STRIDES)
        self.roi_heads = StandardHeads(config)

    def features(self, batch: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """p2 to p6 for proposals, p2 to p5 for the heads."""
        pyramid = self.backbone(batch)
        return list(pyramid.values()), [pyramid[name] for name in fpn.POOLED_LEVELS]


def rescale(
    detections: Detections | MaskDetections, size: Size, image: Image
) -> Detections | MaskDetections:
    """Detections in an image of `size` → in the original's pixels, without empty boxes.

    As detectron2/modeling/postprocessing.py.
    """
    height, width = image["height"], image["width"]
    scale = [width / size[1], height / size[0]] * 2
    boxes = detections.boxes * torch.tensor(scale, device=detections.boxes.device)
    boxes = clip_boxes_to_image(boxes, (height, width))
    kept = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(dim=1)
    found = Detections(boxes[kept], detections.scores[kept], detections.classes[kept])
    if isinstance(detections, MaskDetections):
        masks = paste(detections.masks[kept], found.boxes, height, width)
        return MaskDetections(*found, masks)
    return found


def build_model(config: Any) -> nn.Module:
    """The model that a configuration describes, randomly initialised, on the CPU.

    Raises UserError for what this engine does not build.
    """
    model = config.MODEL
    # Configurations are complete: only a segmentor's hold its head's keys.
    if "SEM_SEG_HEAD" in model:
        require(supported_choices(model))
        return SemanticSegmentor(config)
    # And only those of a pyramid hold its keys.
    with_fpn = "FPN" in model
    require(
        {
            "MODEL.RESNETS.NORM": (model.RESNETS.NORM, list(NORMS)),
            "MODEL.RESNETS.DEPTH": (model.RESNETS.DEPTH, list(STAGE_BLOCKS)),
            **(_fpn_choices(model) if with_fpn else _c4_choices(model)),
        }
    )
    return FPNDetector(config) if with_fpn else C4Detector(config)


def _c4_choices(model: Any) -> Choices:
    return {
        "MODEL.ROI_HEADS.NAME": (model.ROI_HEADS.NAME, ["Res5ROIHeads", "Res5ROIHeadsExtraNorm"]),
        "MODEL.RESNETS.OUT_FEATURES": (list(model.RESNETS.OUT_FEATURES), [["res4"]]),
        **_mask_choices(model.ROI_MASK_HEAD),
    }


def _fpn_choices(model: Any) -> Choices:
    heads, box = model.ROI_HEADS, model.ROI_BOX_HEAD
    norms = ["", *NORMS]
    return {
        "MODEL.BACKBONE.NAME": (model.BACKBONE.NAME, ["build_resnet_fpn_backbone"]),
        "MODEL.RESNETS.OUT_FEATURES": (list(model.RESNETS.OUT_FEATURES), [fpn.STAGES]),
        "MODEL.FPN.IN_FEATURES": (list(model.FPN.IN_FEATURES), [fpn.STAGES]),
        "MODEL.FPN.NORM": (model.FPN.NORM, norms),
        "MODEL.RPN.IN_FEATURES": (list(model.RPN.IN_FEATURES), [fpn.LEVELS]),
        "MODEL.ROI_HEADS.NAME": (heads.NAME, ["StandardROIHeads"]),
        "MODEL.ROI_HEADS.IN_FEATURES": (list(heads.IN_FEATURES), [fpn.POOLED_LEVELS]),
        "MODEL.ROI_BOX_HEAD.NAME": (box.NAME, ["FastRCNNConvFCHead"]),
        "MODEL.ROI_BOX_HEAD.NORM": (box.NORM, norms),
        **_mask_choices(model.ROI_MASK_HEAD),
    }


def _mask_choices(mask: Any) -> Choices:
    return {
        "MODEL.ROI_MASK_HEAD.NAME": (mask.NAME, ["MaskRCNNConvUpsampleHead"]),
        "MODEL.ROI_MASK_HEAD.NORM": (mask.NORM, ["", *NORMS]),
    }


def require(known: Choices) -> None:
    """Raise UserError for a key whose value is none of those that this engine builds."""
    for key, (value, choices) in known.items():
        if value not in choices:
            raise UserError(
                f"{key} is {value}: the torchvision engine builds {choices} "
                "(--engine detectron2 builds all that Detectron2 knows)"
            )
