"""COCO's instances: which sets there are, what is in them, and what is missing.

$DETECTRON2_DATASETS/
  coco/  mini/coco/
    annotations/instances_SPLIT.json   SPLIT/*.jpg   for the splits train2017 and val2017

Records are those of load_coco_json in detectron2/data/datasets/coco.py, without the crowds.
"""

import json
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.datasets.records import (
    Instance,
    LabelledImage,
    check_images,
    datasets_folder,
    where_to_look,
)
from benchmarks.datasets.voc import MINI_CLASSES
from common.errors import UserError

_LISTS = Path(__file__).parent.parent.parent / "configs"
_SMALLEST_POLYGON = 6  # numbers: three points

# fmt: off
COCO_CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog",
    "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella",
    "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite",
    "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange",
    "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant",
    "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors",
    "teddy bear", "hair drier", "toothbrush",
)
# fmt: on


@dataclass(frozen=True)
class CocoSet:
    """One split of a COCO folder, or the part of it that a list of positions names."""

    name: str
    folder: str
    """Below the datasets folder."""
    split: str
    classes: tuple[str, ...]
    count: int | None = None
    """How many images the annotation file must have."""
    part: Path | None = None
    """A file of one position per line: 0 is the image with the lowest id. # begins a comment."""

    @property
    def path(self) -> Path:
        """The folder that holds annotations and images."""
        return datasets_folder() / self.folder

    @property
    def annotations(self) -> Path:
        """The JSON file."""
        return self.path / "annotations" / f"instances_{self.split}.json"

    @property
    def images(self) -> Path:
        """The folder of the split's images."""
        return self.path / self.split

    def check(self) -> None:
        """Raise UserError unless everything is there and is this dataset."""
        self.read()

    def read(self) -> list[LabelledImage]:
        """Every image, by ascending id. Raises UserError as `check`.

        The files are read once per process: train2017's take a while.
        """
        return list(_read(self, self.path))

    def positions(self, count: int) -> list[int]:
        """Which of the annotation file's `count` images belong to this set, ascending.

        Raises UserError when the list is missing, unreadable, or made for another file.
        """
        if self.part is None:
            return list(range(count))
        try:
            lines = self.part.read_text().splitlines()
            positions = [int(line) for line in lines if line.strip() and not line.startswith("#")]
        except FileNotFoundError:
            raise UserError(f"{self.name}: {self.part} is missing: it says which images") from None
        except ValueError as error:
            raise UserError(f"{self.part}: expected one position per line ({error})") from None
        if not positions or len(set(positions)) < len(positions):
            raise UserError(f"{self.part}: is empty or names an image twice")
        outside = [position for position in positions if not 0 <= position < count]
        if outside:
            raise UserError(
                f"{self.part}: position {outside[0]} is none of the {count:,} images of "
                f"{self.annotations}"
            )
        return sorted(positions)


def _sets(
    name: str, folder: str, classes: tuple[str, ...], train: int | None, val: int | None, part: str
) -> list[CocoSet]:
    """The splits, and of the training images the ten percent that the file `part` lists."""
    whole = CocoSet(f"{name}_2017_train", folder, "train2017", classes, train)
    test = CocoSet(f"{name}_2017_val", folder, "val2017", classes, val)
    return [whole, test, replace(whole, name=f"{whole.name}_10percent", part=_LISTS / part)]


_ALL = [
    *_sets("coco", "coco", COCO_CLASSES, 118_287, 5_000, "coco_train2017_10percent.txt"),
    *_sets("mini_coco", "mini/coco", MINI_CLASSES, None, None, "mini_coco_train_10percent.txt"),
]
COCO_SETS = {dataset.name: dataset for dataset in _ALL}


@lru_cache
def _read(dataset: CocoSet, folder: Path) -> list[LabelledImage]:
    """The images of `dataset`, which lies in `folder`."""
    file = dataset.annotations
    for part in (file, dataset.images):
        if not part.exists():
            raise UserError(
                f"{dataset.name}: {part} is missing; expected annotations/{file.name} and "
                f"{dataset.split}/*.jpg in {folder}{where_to_look(dataset.name)}"
            )
    try:
        content = json.loads(file.read_bytes())
        numbers = _class_numbers(dataset, content["categories"])
        images = {i["id"]: i for i in sorted(content["images"], key=lambda image: image["id"])}
        objects: dict[int, list[Instance]] = {image_id: [] for image_id in images}
        for annotation in content["annotations"]:
            objects[annotation["image_id"]] += _instances(annotation, numbers)
    except (KeyError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"
        raise UserError(f"{file}: not a readable COCO annotation file ({what})") from None
    if not any(objects.values()):
        raise UserError(f"{file}: holds no annotations: nothing can be trained on or scored")
    names = [image["file_name"] for image in images.values()]
    check_images(dataset.name, file, names, dataset.images, dataset.count)
    records = [_record(dataset, image, objects[image_id]) for image_id, image in images.items()]
    return [records[position] for position in dataset.positions(len(records))]


def _class_numbers(dataset: CocoSet, categories: list[dict[str, Any]]) -> dict[int, int]:
    """Category id → index into the classes, which the file must list in the order of their ids."""
    ordered = sorted(categories, key=lambda category: category["id"])
    names = tuple(category["name"] for category in ordered)
    if names != dataset.classes:
        odd = sorted(set(names) ^ set(dataset.classes))
        raise UserError(
            f"{dataset.annotations}: its {len(names)} categories are not {dataset.name}'s "
            f"{len(dataset.classes)} classes ({', '.join(odd[:5]) or 'in another order'})"
        )
    return {category["id"]: number for number, category in enumerate(ordered)}


def _instances(annotation: dict[str, Any], numbers: dict[int, int]) -> list[Instance]:
    """The object of one annotation, or none: for a crowd, and where all outlines are degenerate."""
    outlines = annotation.get("segmentation")
    if annotation.get("iscrowd"):
        return []
    polygons = None
    if outlines:
        if not isinstance(outlines, list):
            raise ValueError(f"annotation {annotation['id']} has a mask that is not polygons")
        usable = [o for o in outlines if len(o) % 2 == 0 and len(o) >= _SMALLEST_POLYGON]
        if not usable:
            return []
        polygons = tuple(np.asarray(outline) for outline in usable)
    return [Instance(numbers[annotation["category_id"]], _corners(annotation["bbox"]), polygons)]


def _corners(bbox: list[float]) -> tuple[float, float, float, float]:
    """x, y, width, height → x0, y0, x1, y1, as Detectron2's BoxMode computes it.

    Whole numbers stay whole, which decides how a resized box is rounded; others are float32.
    """
    box = np.asarray(bbox)
    if box.dtype.kind == "f":
        box = box.astype(np.float32)
    x0, y0, x1, y1 = np.concatenate([box[:2], box[:2] + box[2:]]).tolist()
    return x0, y0, x1, y1


def _record(dataset: CocoSet, image: dict[str, Any], objects: list[Instance]) -> LabelledImage:
    return LabelledImage(
        str(image["id"]),
        dataset.images / image["file_name"],
        image["height"],
        image["width"],
        tuple(objects),
    )
