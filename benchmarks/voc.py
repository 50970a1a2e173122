"""PASCAL VOC folders: which sets there are, what is in them, and what is missing.

$DETECTRON2_DATASETS/            (the variable's default is ./datasets)
  VOC2007/  VOC2012/  mini/VOC2007/
    Annotations/*.xml   ImageSets/Main/SPLIT.txt   JPEGImages/*.jpg
"""

import os
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError, did_you_mean

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

    folder: str
    """Below the datasets folder."""
    split: str
    year: int
    """2007 decides for the 11-point metric."""
    classes: tuple[str, ...]

    @property
    def path(self) -> Path:
        """The folder that holds Annotations, ImageSets and JPEGImages."""
        return datasets_folder() / self.folder


VOC_SETS = {
    f"voc_{year}_{split}": VocSet(f"VOC{year}", split, year, VOC_CLASSES)
    for year in (2007, 2012)
    for split in ("train", "val", "trainval", "test")
} | {
    f"mini_voc_2007_{split}": VocSet("mini/VOC2007", split, 2007, MINI_CLASSES)
    for split in ("trainval", "test")
}


@dataclass(frozen=True)
class VocObject:
    """One annotated object."""

    category: int
    """Index into the set's classes."""
    box: tuple[float, float, float, float]
    """xmin, ymin, xmax, ymax as written: 1-based pixels, the last ones included."""
    difficult: bool
    """Trained on like any other; neither right nor wrong to find at test."""


@dataclass(frozen=True)
class VocImage:
    """One image's file and annotations."""

    image_id: str
    file: Path
    height: int
    width: int
    objects: tuple[VocObject, ...]


def datasets_folder() -> Path:
    """The folder that holds all datasets, as Detectron2 finds it."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()


def find_set(name: str) -> VocSet:
    """The set called `name`; UserError when it is unknown or not on the disk."""
    if name not in VOC_SETS:
        raise UserError(f"{name}: unknown dataset{did_you_mean(name, VOC_SETS)}")
    dataset = VOC_SETS[name]
    lists = dataset.path / "ImageSets" / "Main" / f"{dataset.split}.txt"
    for part in (dataset.path / "Annotations", dataset.path / "JPEGImages", lists):
        if not part.exists():
            make = ": python -m common.miniature datasets/mini makes it" if "mini" in name else ""
            raise UserError(
                f"{name}: {part} is missing{make}; expected {_LAYOUT} in {dataset.path}; "
                "the variable DETECTRON2_DATASETS names the folder above (now "
                f"{datasets_folder()})"
            )
    return dataset


def read_set(name: str) -> list[VocImage]:
    """Every image of a set, in the order of its list.

    Raises UserError for a missing folder and an annotation that cannot be read.
    """
    dataset = find_set(name)
    lists = dataset.path / "ImageSets" / "Main" / f"{dataset.split}.txt"
    image_ids = [line.split()[0] for line in lists.read_text().splitlines() if line.strip()]
    if not image_ids:
        raise UserError(f"{lists}: names no image")
    return [_read_image(dataset, image_id) for image_id in image_ids]


def _read_image(dataset: VocSet, image_id: str) -> VocImage:
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
    return VocImage(image_id, image, height, width, objects)


def _read_object(dataset: VocSet, element: ET.Element) -> VocObject:
    name = _text(element, "name")
    if name not in dataset.classes:
        raise ValueError(f"unknown class {name}")
    x0, y0, x1, y1 = (
        float(_text(element, f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")
    )
    difficult = element.findtext("difficult", default="0").strip() == "1"
    return VocObject(dataset.classes.index(name), (x0, y0, x1, y1), difficult)


def _text(element: ET.Element, path: str) -> str:
    text = element.findtext(path)
    if text is None:
        raise ValueError(f"no {path}")
    return text.strip()
