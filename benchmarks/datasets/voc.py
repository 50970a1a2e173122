"""PASCAL VOC folders: which sets there are, what is in them, and what is missing.

$DETECTRON2_DATASETS/
  VOC2007/  VOC2012/  mini/VOC2007/
    Annotations/*.xml   ImageSets/Main/SPLIT.txt   JPEGImages/*.jpg
"""

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

from benchmarks.datasets.records import (
    Instance,
    LabelledImage,
    check_images,
    datasets_folder,
    where_to_look,
)
from common.errors import UserError

_LAYOUT = "Annotations/*.xml, ImageSets/Main/*.txt and JPEGImages/*.jpg"


# fmt: off
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)
# fmt: on
MINI_CLASSES = ("disk", "square", "triangle", "cross")


@dataclass(frozen=True)
class VocSet:
    """One split of one VOC folder."""

    name: str
    folder: str
    """Below the datasets folder."""
    split: str
    year: int
    """2007 decides for the 11-point metric."""
    classes: tuple[str, ...]
    count: int | None = None
    """How many images there must be."""

    @property
    def path(self) -> Path:
        """The folder that holds Annotations, ImageSets and JPEGImages."""
        return datasets_folder() / self.folder

    @property
    def list_file(self) -> Path:
        """The file that names the images."""
        return self.path / "ImageSets" / "Main" / f"{self.split}.txt"

    def check(self) -> None:
        """Raise UserError unless the folders, the list, and its `count` images are there."""
        for part in (self.path / "Annotations", self.path / "JPEGImages", self.list_file):
            if not part.exists():
                raise UserError(
                    f"{self.name}: {part} is missing; expected {_LAYOUT} in {self.path}"
                    f"{where_to_look(self.name)}"
                )
        files = [f"{image_id}.jpg" for image_id in self.image_ids()]
        check_images(self.name, self.list_file, files, self.path / "JPEGImages", self.count)

    def image_ids(self) -> list[str]:
        """The listed images' names, without the suffix."""
        return [line.split()[0] for line in self.list_file.read_text().splitlines() if line.strip()]

    def read(self) -> list[LabelledImage]:
        """Every image, in the list's order. Raises UserError for an unreadable annotation."""
        return [_read_image(self, image_id) for image_id in self.image_ids()]


# Images in each split of the official archives.
_COUNTS = {
    2007: {"train": 2501, "val": 2510, "trainval": 5011, "test": 4952},
    2012: {"train": 5717, "val": 5823, "trainval": 11540},
}
_SETS = [
    VocSet(f"voc_{year}_{split}", f"VOC{year}", split, year, VOC_CLASSES, count)
    for year, splits in _COUNTS.items()
    for split, count in splits.items()
] + [
    VocSet(f"mini_voc_2007_{split}", "mini/VOC2007", split, 2007, MINI_CLASSES)
    for split in ("trainval", "test")
]
VOC_SETS = {dataset.name: dataset for dataset in _SETS}


def _read_image(dataset: VocSet, image_id: str) -> LabelledImage:
    file = dataset.path / "Annotations" / f"{image_id}.xml"
    try:
        root = ET.parse(file).getroot()
        height, width = (int(_text(root, f"size/{side}")) for side in ("height", "width"))
        objects = tuple(_read_object(dataset, element) for element in root.findall("object"))
    except FileNotFoundError:
        raise UserError(f"{file}: no such annotation, though the image list names it") from None
    except (ET.ParseError, ValueError) as error:
        raise UserError(f"{file}: not a readable VOC annotation ({error})") from None
    image = dataset.path / "JPEGImages" / f"{image_id}.jpg"
    return LabelledImage(image_id, image, height, width, objects)


def _read_object(dataset: VocSet, element: ET.Element) -> Instance:
    name = _text(element, "name")
    if name not in dataset.classes:
        raise ValueError(f"unknown class {name}")
    x0, y0, x1, y1 = (
        float(_text(element, f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")
    )
    difficult = element.findtext("difficult", default="0").strip() == "1"
    # Written 1-based with the last pixel included: (1, 1, W, H) covers an image.
    box = (x0 - 1.0, y0 - 1.0, x1, y1)
    return Instance(dataset.classes.index(name), box, difficult=difficult)


def _text(element: ET.Element, path: str) -> str:
    text = element.findtext(path)
    if text is None:
        raise ValueError(f"no {path}")
    return text.strip()
