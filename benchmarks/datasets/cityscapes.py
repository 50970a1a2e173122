"""Cityscapes' instances: the visible outlines of eight classes of things.

$DETECTRON2_DATASETS/
  cityscapes/  mini/cityscapes/
    leftImg8bit/SPLIT/CITY/*_leftImg8bit.png
    gtFine/SPLIT/CITY/*_gtFine_polygons.json      what is trained on
    gtFine/SPLIT/CITY/*_gtFine_instanceIds.png    what is evaluated against

Records are those of load_cityscapes_instances(from_json=True, to_polygons=True) in
detectron2/data/datasets/cityscapes.py, sorted by name and without the crowds ("groups").
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from cityscapesscripts.helpers.labels import Label, labels, name2label
from shapely.geometry import Polygon
from shapely.geometry.base import BaseGeometry

from benchmarks.datasets.records import Instance, LabelledImage, datasets_folder, where_to_look
from common.errors import UserError

_IMAGE, _OUTLINES, _IDS = "_leftImg8bit.png", "_gtFine_polygons.json", "_gtFine_instanceIds.png"
_GROUP = "group"  # the end of a crowd's label


def _is_thing(label: Label) -> bool:
    return label.hasInstances and not label.ignoreInEval


@dataclass(frozen=True)
class CityscapesSet:
    """One split of Cityscapes' fine annotations."""

    name: str
    folder: str
    """Below the datasets folder."""
    split: str
    count: int | None = None
    """How many images there must be."""

    classes = tuple(label.name for label in labels if _is_thing(label))

    @property
    def path(self) -> Path:
        """The folder that holds leftImg8bit and gtFine."""
        return datasets_folder() / self.folder

    def check(self) -> None:
        """Raise UserError unless the split's images and both their annotations are all there."""
        folder = self.path / "leftImg8bit" / self.split
        if not folder.is_dir():
            raise UserError(
                f"{self.name}: {folder} is missing; expected leftImg8bit/{self.split}/CITY/*.png "
                f"and gtFine/{self.split}/CITY/*{_OUTLINES} in {self.path}"
                f"{where_to_look(self.name)}"
            )
        images = self.images()
        if not images or self.count not in (None, len(images)):
            raise UserError(
                f"{self.name}: {folder} holds {len(images):,} images CITY/*{_IMAGE}, but the "
                f"dataset has {self.count or 'some'}: is it incomplete, or another dataset?"
            )
        truths = [self.truth(image, kind) for image in images for kind in (_OUTLINES, _IDS)]
        missing = [truth for truth in truths if not truth.exists()]
        if missing:
            raise UserError(
                f"{self.name}: {len(missing):,} of {len(truths):,} annotation files are missing, "
                f"{missing[0]} for one"
            )
        if not any(_read_image(self, image).objects for image in images):
            raise UserError(f"{self.name}: {self.path} has no objects of the dataset's classes")

    def read(self) -> list[LabelledImage]:
        """Every image, by name. Raises UserError for an unreadable annotation.

        The files are read once per process: finding what is visible takes minutes for the
        training set.
        """
        return list(_read(self, self.path))

    def images(self) -> list[Path]:
        """The split's images, by name."""
        return sorted((self.path / "leftImg8bit" / self.split).glob(f"*/*{_IMAGE}"))

    def truth(self, image: Path, kind: str = _IDS) -> Path:
        """An image's annotation: the image of instance ids, or another `kind`."""
        name = image.name.removesuffix(_IMAGE) + kind
        return self.path / "gtFine" / self.split / image.parent.name / name


_COUNTS = {"train": 2_975, "val": 500}
_SETS = [
    *(
        CityscapesSet(f"cityscapes_fine_instance_seg_{split}", "cityscapes", split, count)
        for split, count in _COUNTS.items()
    ),
    *(
        CityscapesSet(f"mini_cityscapes_fine_instance_seg_{split}", "mini/cityscapes", split)
        for split in _COUNTS
    ),
]
CITYSCAPES_SETS = {dataset.name: dataset for dataset in _SETS}


@lru_cache
def _read(dataset: CityscapesSet, folder: Path) -> list[LabelledImage]:
    """The images of `dataset`, which lies in `folder`."""
    return [_read_image(dataset, image) for image in dataset.images()]


def _read_image(dataset: CityscapesSet, image: Path) -> LabelledImage:
    file = dataset.truth(image, _OUTLINES)
    try:
        content = json.loads(file.read_bytes())
        height, width = content["imgHeight"], content["imgWidth"]
        objects = tuple(_visible_things(dataset, content["objects"]))
    except (KeyError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"
        raise UserError(f"{file}: not a readable Cityscapes annotation ({what})") from None
    return LabelledImage(image.name, image, height, width, objects)


def _visible_things(dataset: CityscapesSet, objects: list[dict[str, Any]]) -> list[Instance]:
    """The part of each thing that no later object hides, front to back."""
    things: list[Instance] = []
    hidden: BaseGeometry = Polygon()
    for thing in reversed(objects):
        if "deleted" in thing:
            continue
        name = thing["label"]
        label = name2label[name if name in name2label else name.removesuffix(_GROUP)]
        if label.id < 0:
            continue
        # Corners are pixels, whose centres are half a pixel further; the evaluation's drawing
        # makes outlines half a pixel fatter.
        corners = np.asarray(thing["polygon"], np.float32) + 0.5
        outline = Polygon(corners).buffer(0.5, quad_segs=4)
        if _is_thing(label):
            visible = outline.difference(hidden)
            if visible.is_empty:
                continue
            if not name.endswith(_GROUP):
                things.append(_instance(dataset.classes.index(label.name), visible))
        hidden = hidden.union(outline)
    return things


def _instance(category: int, visible: BaseGeometry) -> Instance:
    """Holes are filled: COCO's kind of polygons has none."""
    parts = getattr(visible, "geoms", [visible])
    polygons = tuple(np.array(part.exterior.coords).ravel() for part in parts)
    x0, y0, x1, y1 = visible.bounds
    return Instance(category, (x0, y0, x1, y1), polygons)
