"""Semantic segmentation sets: an image of class indices beside each image.

$DETECTRON2_DATASETS/
  VOC2012/  mini/VOC2007/
    ImageSets/Segmentation/SPLIT.txt   JPEGImages/*.jpg   SegmentationClass/*.png
    SegmentationClassAug/*.png         the training images with the labels of "Semantic Contours
                                       from Inverse Detectors" (SBD), as class indices
  cityscapes/  mini/cityscapes/
    leftImg8bit/SPLIT/CITY/*_leftImg8bit.png
    gtFine/SPLIT/CITY/*_gtFine_labelTrainIds.png   what the command named below writes
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image

from benchmarks.datasets.records import (
    LabelledImage,
    check_images,
    datasets_folder,
    where_to_look,
)
from benchmarks.datasets.voc import MINI_CLASSES, VOC_CLASSES
from common.errors import UserError

IGNORED = 255  # the label of pixels that are neither trained on nor evaluated

# fmt: off
CITYSCAPES_CLASSES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign",
    "vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus", "train",
    "motorcycle", "bicycle",
)
# fmt: on
_LABELS_COMMAND = "python -m cityscapesscripts.preparation.createTrainIdLabelImgs"
_IMAGE, _LABELS = "_leftImg8bit.png", "_gtFine_labelTrainIds.png"


@dataclass(frozen=True)
class VocSegmentationSet:
    """One split of one VOC folder."""

    name: str
    folder: str
    """Below the datasets folder."""
    split: str
    labels: str
    """The folder of the label images."""
    classes: tuple[str, ...]
    count: int | None = None
    """How many images there must be."""

    @property
    def path(self) -> Path:
        """The folder that holds ImageSets, JPEGImages and the label images."""
        return datasets_folder() / self.folder

    def check(self) -> None:
        """Raise UserError unless list, images and label images are all there."""
        images, labels, source = self.path / "JPEGImages", self.path / self.labels, self._list_file
        for part in (images, labels, source):
            if not part.exists():
                raise UserError(
                    f"{self.name}: {part} is missing; expected JPEGImages/*.jpg, "
                    f"{self.labels}/*.png and ImageSets/Segmentation/{self.split}.txt in "
                    f"{self.path}{where_to_look(self.name)}"
                )
        names = self._names()
        check_images(self.name, source, [f"{name}.jpg" for name in names], images, self.count)
        check_images(self.name, source, [f"{name}.png" for name in names], labels, self.count)

    def read(self) -> list[LabelledImage]:
        """Every image, in the list's order. Raises UserError for an unreadable label image."""
        return [
            _record(
                name,
                self.path / "JPEGImages" / f"{name}.jpg",
                self.path / self.labels / f"{name}.png",
            )
            for name in self._names()
        ]

    @property
    def _list_file(self) -> Path:
        return self.path / "ImageSets" / "Segmentation" / f"{self.split}.txt"

    def _names(self) -> list[str]:
        return self._list_file.read_text().split()


@dataclass(frozen=True)
class CityscapesSegmentationSet:
    """One split of Cityscapes' fine annotations."""

    name: str
    folder: str
    split: str
    count: int | None = None

    classes = CITYSCAPES_CLASSES

    @property
    def path(self) -> Path:
        """The folder that holds leftImg8bit and gtFine."""
        return datasets_folder() / self.folder

    def check(self) -> None:
        """Raise UserError unless the split's images and label images are all there."""
        if not self._images.is_dir():
            raise UserError(
                f"{self.name}: {self._images} is missing; expected leftImg8bit/{self.split}/CITY/"
                f"*{_IMAGE} and gtFine/{self.split}/CITY/*{_LABELS} in {self.path}"
                f"{where_to_look(self.name)}"
            )
        files = self._files()
        if self.count not in (None, len(files)) or not files:
            raise UserError(
                f"{self.name}: {self._images} holds {len(files):,} images CITY/*{_IMAGE}, "
                f"but the dataset has {self.count or 'some'}: is it complete?"
            )
        missing = [labels for _, labels in files if not labels.exists()]
        if missing:
            raise UserError(
                f"{self.name}: {len(missing):,} of {len(files):,} label images are missing, "
                f"{missing[0]} for one: {_LABELS_COMMAND} writes them"
            )

    def read(self) -> list[LabelledImage]:
        """Every image, by name. Raises UserError for an unreadable label image."""
        return [
            _record(image.name.removesuffix(_IMAGE), image, labels)
            for image, labels in self._files()
        ]

    @property
    def _images(self) -> Path:
        return self.path / "leftImg8bit" / self.split

    def _files(self) -> list[tuple[Path, Path]]:
        truths = self.path / "gtFine" / self.split
        return [
            (image, truths / image.parent.name / (image.name.removesuffix(_IMAGE) + _LABELS))
            for image in sorted(self._images.glob(f"*/*{_IMAGE}"))
        ]


SegmentationSet = VocSegmentationSet | CityscapesSegmentationSet


def open_labels(image: LabelledImage, classes: int) -> np.ndarray:
    """(H,W) uint8: each pixel's class, below `classes`, or IGNORED.

    Raises UserError for a file that cannot be read or holds anything else.
    """
    file = _label_file(image)
    try:
        with PIL.Image.open(file) as opened:
            mode, labels = opened.mode, np.asarray(opened)  # of a palette's image, the indices
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{file}: not a readable label image ({error})") from None
    if mode not in ("P", "L"):
        raise UserError(f"{file}: an image of mode {mode}; 8-bit class indices are expected")
    found = np.bincount(labels.ravel(), minlength=IGNORED + 1)
    unknown = np.flatnonzero(found[classes:IGNORED]) + classes
    if len(unknown):
        raise UserError(
            f"{file}: holds the label {unknown[0]}; expected are 0 to {classes - 1}, "
            f"and {IGNORED} where there is none"
        )
    return labels


def _record(image_id: str, image: Path, labels: Path) -> LabelledImage:
    try:
        with PIL.Image.open(labels) as opened:
            width, height = opened.size
    except (OSError, SyntaxError) as error:
        raise UserError(f"{labels}: not a readable label image ({error})") from None
    return LabelledImage(image_id, image, height, width, labels=labels)


def _label_file(image: LabelledImage) -> Path:
    if image.labels is None:
        raise UserError(f"{image.file}: has no label image; use a semantic segmentation set")
    return image.labels


_VOC = ("background", *VOC_CLASSES)
_MINI = ("background", *MINI_CLASSES)
_SETS: list[SegmentationSet] = [
    VocSegmentationSet(
        "voc_2012_seg_trainaug", "VOC2012", "trainaug", "SegmentationClassAug", _VOC, 10_582
    ),
    VocSegmentationSet("voc_2012_seg_val", "VOC2012", "val", "SegmentationClass", _VOC, 1_449),
    *(
        VocSegmentationSet(
            f"mini_voc_2007_seg_{split}", "mini/VOC2007", split, "SegmentationClass", _MINI
        )
        for split in ("trainval", "test")
    ),
    CityscapesSegmentationSet("cityscapes_fine_sem_seg_train", "cityscapes", "train", 2_975),
    CityscapesSegmentationSet("cityscapes_fine_sem_seg_val", "cityscapes", "val", 500),
    *(
        CityscapesSegmentationSet(f"mini_cityscapes_fine_sem_seg_{split}", "mini/cityscapes", split)
        for split in ("train", "val")
    ),
]
SEGMENTATION_SETS = {dataset.name: dataset for dataset in _SETS}
