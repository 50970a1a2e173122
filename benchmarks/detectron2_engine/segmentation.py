"""Semantic segmentation on Detectron2: the parts that it does not have, from those that it has.

Samples, sliding window and metrics are this project's own, the same as on the other engine.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.evaluation import DatasetEvaluator
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY
from detectron2.modeling.meta_arch.semantic_seg import SemanticSegmentor
from detectron2.projects.deeplab import build_resnet_deeplab_backbone
from detectron2.structures import ImageList
from detectron2.utils import comm
from fvcore.nn import weight_init
from torch import nn

from benchmarks import segmentation_data
from benchmarks.datasets.catalog import read_sets
from benchmarks.datasets.records import LabelledImage
from benchmarks.datasets.segmentation import SegmentationSet
from benchmarks.evaluation.mean_iou import image_confusion, segmentation_metrics
from benchmarks.sliding_window import image_scores, resize

_DROPOUT = 0.1


@BACKBONE_REGISTRY.register()
def build_contracted_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> nn.Module:
    """DeepLab's dilated ResNet, with half the dilation in the first block of a dilated stage."""
    backbone = build_resnet_deeplab_backbone(cfg, input_shape)
    resnets = cfg.MODEL.RESNETS
    for stage, dilation in (
        (backbone.res4, resnets.RES4_DILATION),
        (backbone.res5, resnets.RES5_DILATION),
    ):
        if dilation > 1:
            first = stage[0].conv2
            first.dilation = first.padding = (dilation // 2, dilation // 2)
    return backbone


@SEM_SEG_HEADS_REGISTRY.register()
class FCNHead(nn.Module):
    """mmsegmentation's FCNHead; see benchmarks/torchvision_engine/semseg.py for its protocol."""

    def __init__(
        self, cfg: CfgNode, input_shape: dict[str, ShapeSpec], auxiliary: bool = False
    ) -> None:
        super().__init__()
        head = cfg.MODEL.SEM_SEG_HEAD
        self.auxiliary = auxiliary
        self.feature = "res4" if auxiliary else "res5"
        self.weight = head.AUXILIARY.LOSS_WEIGHT if auxiliary else 1.0
        self.loss_name = "loss_auxiliary" if auxiliary else "loss_sem_seg"
        self.ignore_value = head.IGNORE_VALUE
        self.align_corners, self.mean_over_ignored = head.ALIGN_CORNERS, head.MEAN_OVER_IGNORED
        channels = head.AUXILIARY.CONVS_DIM if auxiliary else head.CONVS_DIM
        inputs = input_shape[self.feature].channels
        self.conv1 = _convolution(inputs, channels, head.NORM)
        if not auxiliary:
            self.conv2 = _convolution(channels, channels, head.NORM)
            self.conv_cat = _convolution(inputs + channels, channels, head.NORM)
        self.dropout = nn.Dropout2d(_DROPOUT)
        self.predictor = nn.Conv2d(channels, head.NUM_CLASSES, 1)
        for layer in (part for part in self.modules() if isinstance(part, Conv2d)):
            weight_init.c2_msra_fill(layer)
        nn.init.normal_(self.predictor.weight, std=0.01)
        nn.init.constant_(self.predictor.bias, 0)  # type: ignore[arg-type]

    def forward(
        self, features: dict[str, torch.Tensor], targets: torch.Tensor | None = None
    ) -> tuple[torch.Tensor | None, dict[str, torch.Tensor]]:
        """Class scores (B,K,h,w) without targets (B,H,W); the loss with them."""
        feature = features[self.feature]
        x = self.conv1(feature)
        if not self.auxiliary:
            x = self.conv_cat(torch.cat([feature, self.conv2(x)], dim=1))
        scores = self.predictor(self.dropout(x))
        if targets is None:
            return scores, {}
        scores = resize(scores, (targets.shape[1], targets.shape[2]), self.align_corners)
        ignored, reduction = self.ignore_value, "none" if self.mean_over_ignored else "mean"
        loss = F.cross_entropy(scores, targets, ignore_index=ignored, reduction=reduction).mean()
        return None, {self.loss_name: self.weight * loss}


def _convolution(inputs: int, outputs: int, norm: str) -> Conv2d:
    after = {"norm": get_norm(norm, outputs), "activation": F.relu}
    return Conv2d(inputs, outputs, 3, padding=1, bias=not norm, **after)


@META_ARCH_REGISTRY.register()
class SlidingSegmentor(SemanticSegmentor):
    """Detectron2's segmentor with an auxiliary head, tested window by window."""

    @configurable
    def __init__(
        self, *, auxiliary_head: nn.Module | None, head: CfgNode, window: CfgNode, **parts: Any
    ) -> None:
        super().__init__(**parts)
        self.auxiliary_head = auxiliary_head
        self.head, self.window = head, window

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """The arguments that a configuration describes."""
        parts = super().from_config(cfg)
        head = cfg.MODEL.SEM_SEG_HEAD
        auxiliary = None
        if head.AUXILIARY.LOSS_WEIGHT:
            auxiliary = FCNHead(cfg, parts["backbone"].output_shape(), auxiliary=True)
        settings = {"head": head, "window": cfg.TEST.SLIDING_WINDOW}
        return {**parts, "auxiliary_head": auxiliary, **settings}

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """As SemanticSegmentor: losses in training, otherwise {"sem_seg": (K,H,W)} per image."""
        normalised = [
            (x["image"].to(self.device) - self.pixel_mean) / self.pixel_std for x in batched_inputs
        ]
        if not self.training:
            sizes = [(x["height"], x["width"]) for x in batched_inputs]
            return [{"sem_seg": self.scores(x, size)} for x, size in zip(normalised, sizes)]
        features = self.backbone(ImageList.from_tensors(normalised).tensor)
        labels = [x["sem_seg"].to(self.device) for x in batched_inputs]
        targets = ImageList.from_tensors(labels, pad_value=self.head.IGNORE_VALUE).tensor
        losses = self.sem_seg_head(features, targets)[1]
        if self.auxiliary_head is not None:
            losses.update(self.auxiliary_head(features, targets)[1])
        return losses

    def scores(self, image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """A normalised image (3,H,W) → class scores (K, *size)."""
        return image_scores(
            lambda part: self.sem_seg_head(self.backbone(part))[0],
            image,
            self.head.NUM_CLASSES,
            self.window.SIZE,
            self.window.STRIDE,
            size,
            self.head.ALIGN_CORNERS,
        )


def training_images(cfg: CfgNode) -> list[LabelledImage]:
    """The images of all training sets, for Detectron2's loader."""
    return read_sets(cfg.DATASETS.TRAIN)


class SegmentationMapper:
    """An image → a sample. Draws from NumPy's generator, which Detectron2 seeds in each worker."""

    def __init__(self, cfg: CfgNode, is_train: bool) -> None:
        self.cfg, self.is_train = cfg, is_train

    def __call__(self, image: LabelledImage) -> dict[str, Any]:
        """The sample, and the image for the evaluation. Raises UserError for unreadable files."""
        if not self.is_train:
            return {**segmentation_data.test_sample(image, self.cfg), "labelled_image": image}
        random = np.random.default_rng(np.random.randint(0, 2**31, size=4))
        return {**segmentation_data.training_sample(image, self.cfg, random)}


class SegmentationEvaluator(DatasetEvaluator):
    """This project's metrics under one name, from all processes."""

    def __init__(self, dataset: SegmentationSet, name: str) -> None:
        self.dataset, self.name = dataset, name

    def reset(self) -> None:
        """Forget everything counted so far."""
        classes = len(self.dataset.classes)
        self.confusion = np.zeros((classes, classes), np.int64)

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Count the pixels of a batch."""
        for sample, output in zip(inputs, outputs):
            predicted = output["sem_seg"].argmax(dim=0).cpu().numpy()
            image = sample["labelled_image"]
            self.confusion += image_confusion(image, predicted, len(self.dataset.classes))

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """The metrics in percent, in the main process."""
        gathered = comm.gather(self.confusion, dst=0)
        if not comm.is_main_process():
            return None
        return {self.name: segmentation_metrics(self.dataset, sum(gathered))}
