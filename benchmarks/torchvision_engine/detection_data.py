"""Images and targets for detectors, as detectron2/data/dataset_mapper.py prepares them."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import PIL.Image
import torch

from benchmarks.datasets.images import open_image
from benchmarks.datasets.records import Instance, LabelledImage
from benchmarks.torchvision_engine.boxes import Polygons, Target
from benchmarks.torchvision_engine.model import Image
from common.errors import UserError

_SMALLEST_SIDE = 1e-5  # pixels; smaller objects are not trained on


def load_image(image: LabelledImage, config: Any, short_side: int, max_side: int) -> np.ndarray:
    """Decoded, turned upright, resized: (H,W,3) uint8 in INPUT.FORMAT's channel order.

    As ResizeShortestEdge of detectron2/data/transforms. Raises UserError as `open_image` does.
    """
    pixels = open_image(image)
    height, width = output_size(image.height, image.width, short_side, max_side)
    resized = np.asarray(pixels.resize((width, height), PIL.Image.Resampling.BILINEAR))
    return resized if config.INPUT.FORMAT == "RGB" else resized[:, :, ::-1]


def output_size(height: int, width: int, short_side: int, max_side: int) -> tuple[int, int]:
    """(height, width) with the shorter side `short_side`, unless the longer exceeds `max_side`."""
    scale = short_side * 1.0 / min(height, width)
    new_height, new_width = short_side * 1.0, scale * width
    if height >= width:
        new_height, new_width = scale * height, short_side * 1.0
    longest = max(new_height, new_width)
    if longest > max_side:
        scale = max_side * 1.0 / longest
        new_height, new_width = new_height * scale, new_width * scale
    return int(new_height + 0.5), int(new_width + 0.5)


def transform_boxes(boxes: np.ndarray, old: tuple, new: tuple, flip: bool) -> np.ndarray:
    """Boxes (G,4) after resizing from `old` to `new` (H,W), mirrored if `flip`, clipped."""
    corners = _move(boxes.reshape(-1, 2), old, new, flip).reshape(-1, 4)
    if flip:
        corners = corners[:, [2, 1, 0, 3]]
    return np.clip(corners, 0, [new[1], new[0], new[1], new[0]])


def transform_polygons(
    polygons: Iterable[np.ndarray], old: tuple, new: tuple, flip: bool
) -> Polygons:
    """An object's outlines after resizing from `old` to `new` (H,W), mirrored if `flip`."""
    moved = (_move(outline.reshape(-1, 2), old, new, flip) for outline in polygons)
    return [points.ravel().astype(np.float64) for points in moved]


def _move(points: np.ndarray, old: tuple, new: tuple, flip: bool) -> np.ndarray:
    """Points (P,2), resized and perhaps mirrored. Whole numbers are cut to whole numbers.

    That is what Detectron2's transforms, which write into the array they get, make of integers.
    """
    scale = np.array([new[1] * 1.0 / old[1], new[0] * 1.0 / old[0]])
    points = (points * scale).astype(points.dtype)
    if flip:
        points[:, 0] = new[1] - points[:, 0]
    return points


def training_sample(image: LabelledImage, config: Any, random: np.random.Generator) -> Image:
    """One image at a random size, perhaps mirrored, with its target."""
    short_side = int(random.choice(config.INPUT.MIN_SIZE_TRAIN))
    flip = config.INPUT.RANDOM_FLIP == "horizontal" and random.uniform() < 0.5
    return augmented(image, config, short_side, flip)


def augmented(image: LabelledImage, config: Any, short_side: int, flip: bool) -> Image:
    """One image and its target for training, as detectron2/data/dataset_mapper.py."""
    pixels = load_image(image, config, short_side, config.INPUT.MAX_SIZE_TRAIN)
    if flip:
        pixels = pixels[:, ::-1]
    change = (image.height, image.width), pixels.shape[:2], flip
    moved = [(o, transform_boxes(np.array(o.box), *change)[0]) for o in image.objects]
    kept = [(o, box) for o, box in moved if (np.float32(box[2:] - box[:2]) > _SMALLEST_SIDE).all()]
    target = Target(
        torch.tensor(np.array([box for _, box in kept], np.float32).reshape(-1, 4)),
        torch.tensor([o.category for o, _ in kept], dtype=torch.int64),
        [_outlines(image, o, change) for o, _ in kept] if config.MODEL.MASK_ON else None,
    )
    return {"image": _to_tensor(pixels), "target": target}


def _outlines(image: LabelledImage, thing: Instance, change: tuple) -> Polygons:
    if not thing.polygons:
        raise UserError(
            f"{image.file}: has an object without an outline, which MODEL.MASK_ON True needs"
        )
    return transform_polygons(thing.polygons, *change)


def test_sample(image: LabelledImage, config: Any) -> Image:
    """One image for evaluation, with the size that detections are wanted in."""
    pixels = load_image(image, config, config.INPUT.MIN_SIZE_TEST, config.INPUT.MAX_SIZE_TEST)
    return {"image": _to_tensor(pixels), "height": image.height, "width": image.width}


def _to_tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
