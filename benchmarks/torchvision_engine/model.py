"""The detector: images in, losses or detections out. state_dict() has Detectron2's names.

    backbone.stem  backbone.res2..res4       trunk            layers.py
    proposal_generator.rpn_head              proposals        rpn.py
    roi_heads.res5  roi_heads.box_predictor  classes, boxes   roi_heads.py

Built for the C4 detector; `build_model` is where FPN models join. The other model that it knows,
the semantic segmentor, is in semseg.py.
"""

from typing import Any, TypedDict

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import clip_boxes_to_image

from benchmarks.torchvision_engine.boxes import Detections, Target
from benchmarks.torchvision_engine.layers import NORMS, ResNet
from benchmarks.torchvision_engine.roi_heads import Res5Heads
from benchmarks.torchvision_engine.rpn import RPN, Size
from benchmarks.torchvision_engine.semseg import SemanticSegmentor, supported_choices
from common.errors import UserError
from common.resnet import STAGE_BLOCKS


class Image(TypedDict, total=False):
    """One image for the network."""

    image: torch.Tensor  # (3,H,W) uint8, channels in the order of INPUT.FORMAT
    height: int  # of the detections wanted, in pixels
    width: int
    target: Target  # in training


class C4Detector(nn.Module):
    """Faster R-CNN on res4, as GeneralizedRCNN of detectron2/modeling/meta_arch/rcnn.py."""

    pixel_mean: torch.Tensor
    pixel_std: torch.Tensor

    def __init__(self, config: Any) -> None:
        super().__init__()
        model = config.MODEL
        self.backbone = ResNet(model.RESNETS, model.BACKBONE.FREEZE_AT)
        channels = model.RESNETS.RES2_OUT_CHANNELS * 4
        self.proposal_generator = RPN(model, channels, strides=[16])
        self.roi_heads = Res5Heads(config, stride=16)
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (model.PIXEL_MEAN, model.PIXEL_STD))
        self.register_buffer("pixel_mean", mean, persistent=False)
        self.register_buffer("pixel_std", std, persistent=False)

    def forward(self, images: list[Image]) -> dict[str, torch.Tensor] | list[Detections]:
        """In training the four losses; otherwise detections in pixels of (height, width)."""
        batch, sizes = self.preprocess(images)
        feature = self.backbone(batch)["res4"]
        targets = None
        if self.training:
            targets = [Target(*(t.to(batch.device) for t in image["target"])) for image in images]
        proposals, rpn_losses = self.proposal_generator([feature], sizes, targets)
        detections, losses = self.roi_heads(feature, proposals, sizes, targets)
        if self.training:
            return {**rpn_losses, **losses}
        return [rescale(d, size, image) for d, size, image in zip(detections, sizes, images)]

    def preprocess(self, images: list[Image]) -> tuple[torch.Tensor, list[Size]]:
        """Normalised images (B,3,H,W), zero-padded at the right and bottom, and their sizes."""
        normalised = [
            (image["image"].to(self.pixel_mean.device) - self.pixel_mean) / self.pixel_std
            for image in images
        ]
        sizes: list[Size] = [(x.shape[-2], x.shape[-1]) for x in normalised]
        height, width = (max(side) for side in zip(*sizes))
        padded = [F.pad(x, (0, width - x.shape[-1], 0, height - x.shape[-2])) for x in normalised]
        return torch.stack(padded), sizes


def rescale(detections: Detections, size: Size, image: Image) -> Detections:
    """Detections in an image of `size` → in the original's pixels, without empty boxes.

    As detectron2/modeling/postprocessing.py.
    """
    height, width = image["height"], image["width"]
    scale = [width / size[1], height / size[0]] * 2
    boxes = detections.boxes * torch.tensor(scale, device=detections.boxes.device)
    boxes = clip_boxes_to_image(boxes, (height, width))
    kept = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(dim=1)
    return Detections(boxes[kept], detections.scores[kept], detections.classes[kept])


def build_model(config: Any) -> nn.Module:
    """The model that a configuration describes, randomly initialised, on the CPU.

    Raises UserError for what this engine does not build.
    """
    model = config.MODEL
    # The detectors' configurations do not hold this key: they are all Detectron2's default.
    if model.get("META_ARCHITECTURE") == "SemanticSegmentor":
        require(supported_choices(model))
        return SemanticSegmentor(config)
    known: dict[str, tuple[Any, list[Any]]] = {
        "MODEL.ROI_HEADS.NAME": (model.ROI_HEADS.NAME, ["Res5ROIHeads", "Res5ROIHeadsExtraNorm"]),
        "MODEL.MASK_ON": (model.MASK_ON, [False]),
        "MODEL.RESNETS.NORM": (model.RESNETS.NORM, list(NORMS)),
        "MODEL.RESNETS.DEPTH": (model.RESNETS.DEPTH, list(STAGE_BLOCKS)),
        "MODEL.RESNETS.OUT_FEATURES": (list(model.RESNETS.OUT_FEATURES), [["res4"]]),
    }
    require(known)
    return C4Detector(config)


def require(known: dict[str, tuple[Any, list[Any]]]) -> None:
    """Raise UserError for a key whose value is none of those that this engine builds."""
    for key, (value, choices) in known.items():
        if value not in choices:
            raise UserError(
                f"{key} is {value}: the torchvision engine builds {choices} "
                "(--engine detectron2 runs any configuration)"
            )
