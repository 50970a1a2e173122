"""Images → feature vectors of the frozen backbone, and which classes they show.

As DenseCL's benchmarks/extract_info/voc07.py and models/utils/multi_pooling.py ("feat5"): the
image squeezed into a square, res5 pooled to 2×2 (8192 numbers for a ResNet-50), unit length.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from torchvision.transforms.functional import resize

from benchmarks.datasets.catalog import Dataset
from benchmarks.datasets.images import open_image
from benchmarks.datasets.records import LabelledImage
from benchmarks.torchvision_engine.batch import ImageModel
from benchmarks.torchvision_engine.layers import ResNet
from benchmarks.torchvision_engine.loader import load
from common import distributed
from common.shutdown import StopRequest

_BATCH = 32
_EPSILON = 1e-5


class OneClass(NamedTuple):
    """A set of images with one question asked of them."""

    features: np.ndarray  # (N,D) float32
    labels: np.ndarray  # (N,) int8: 1 yes, -1 no, 0 difficult


@dataclass(frozen=True)
class Labelled:
    """A set's features, and the classes in its images."""

    features: np.ndarray
    """(N,D) float32."""
    labels: np.ndarray
    """(N,K) int8, as `class_labels`."""
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.features)

    def of_class(self, number: int) -> OneClass:
        """The features with the labels of one class."""
        return OneClass(self.features, self.labels[:, number])


class FrozenBackbone(ImageModel):
    """Square images (B,3,S,S) uint8 → features (B,D) of unit length."""

    def __init__(self, config: Any) -> None:
        super().__init__(config.MODEL)
        self.backbone = ResNet(config.MODEL.RESNETS, config.MODEL.BACKBONE.FREEZE_AT)
        self.pool = config.SVM.POOL

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        feature = self.backbone(self.normalise(images))["res5"]
        pooled = F.avg_pool2d(feature, self.pool, stride=1).flatten(1)
        return pooled / (pooled.norm(dim=1, keepdim=True) + _EPSILON)


@torch.no_grad()
def extract(
    model: FrozenBackbone, dataset: Dataset, config: Any, stop: StopRequest
) -> Labelled | None:
    """Features of all images, on every process; None when one was asked to stop.

    Raises UserError for an image that cannot be read.
    """
    model.eval()
    images = dataset.read()
    share = distributed.contiguous_share(images)
    batches = [share[start : start + _BATCH] for start in range(0, len(share), _BATCH)]
    parts: list[np.ndarray] = []
    for batch in load(partial(_square, settings=config.INPUT), batches, config):
        if stop:
            break
        parts.append(model(torch.stack(batch)).cpu().numpy())
    gathered = distributed.gather_objects([(bool(stop), parts)])
    if any(stopped for stopped, _ in gathered):
        return None
    features = np.concatenate([part for _, of_process in gathered for part in of_process])
    return Labelled(features, class_labels(images, len(dataset.classes)), dataset.classes)


def class_labels(images: list[LabelledImage], classes: int) -> np.ndarray:
    """(N,K) int8: 1 where the class is in the image, 0 where all of it is difficult, else -1.

    As VOC's ImageSets/Main/CLASS_SPLIT.txt.
    """
    labels = np.full((len(images), classes), -1, dtype=np.int8)
    for row, image in zip(labels, images):
        for thing in image.objects:
            row[thing.category] = max(row[thing.category], 0 if thing.difficult else 1)
    return labels


def _square(image: LabelledImage, settings: Any) -> torch.Tensor:
    """(3,S,S) uint8, channels in the order of INPUT.FORMAT."""
    # Twice, as published: the short side first, then both sides.
    smaller = resize(open_image(image), settings.SHORT_SIDE)
    square = smaller.resize((settings.SIZE, settings.SIZE), PIL.Image.Resampling.BILINEAR)
    channels = np.asarray(square).transpose(2, 0, 1)
    rgb = settings.FORMAT == "RGB"
    return torch.from_numpy(np.ascontiguousarray(channels if rgb else channels[::-1]))
