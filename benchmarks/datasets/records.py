"""What every dataset is read into, whatever its files look like."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from common.errors import UserError


@dataclass(frozen=True)
class Instance:
    """One annotated object."""

    category: int
    """Index into the dataset's classes."""
    box: tuple[float, float, float, float]
    """x0, y0, x1, y1: edges in pixels; (0, 0, W, H) covers an image."""
    polygons: tuple[np.ndarray, ...] | None = field(default=None, compare=False)
    """Its outlines, each x0, y0, x1, y1, ... of at least three points; None: it has none."""
    difficult: bool = False
    """VOC's flag. Trained on like any other; neither right nor wrong to find at test."""


@dataclass(frozen=True)
class LabelledImage:
    """One image's file and annotations."""

    image_id: str
    file: Path
    height: int
    width: int
    objects: tuple[Instance, ...] = ()
    """Crowds are left out: nothing is trained on them, and evaluation reads the files itself."""
    labels: Path | None = None
    """Of semantic segmentation: an image of (H,W) class indices."""


def datasets_folder() -> Path:
    """The folder that holds all datasets, as Detectron2 finds it."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()


def check_images(
    name: str, source: Path, files: Sequence[str], folder: Path, expected: int | None
) -> None:
    """Raise UserError unless `source` names the dataset's `expected` images and all are there.

    files: the names that `source` gives, below `folder`.
    """
    if not files:
        raise UserError(f"{source}: names no image")
    if expected is not None and len(files) != expected:
        raise UserError(
            f"{name}: {source} names {len(files):,} images, but the dataset has {expected:,}: "
            "is it incomplete, or another dataset?"
        )
    there = {path.name for path in folder.iterdir()}
    missing = [file for file in files if file not in there]
    if missing:
        raise UserError(
            f"{name}: {len(missing):,} of {len(files):,} images that {source} names are not in "
            f"{folder}, {missing[0]} for one: is the folder complete?"
        )


def where_to_look(name: str) -> str:
    """The end of a message about missing files of the dataset `name`."""
    make = "; python -m common.miniature datasets/mini makes it" if "mini" in name else ""
    folder = datasets_folder()
    return f"{make}; the variable DETECTRON2_DATASETS names the folder above (now {folder})"
