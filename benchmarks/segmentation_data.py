"""Images and labels for semantic segmentation, the same for both engines.

Training: random scale → crop → mirror → colours → padding, as the published runs had it in
mmsegmentation 0.11.0 (mmseg/datasets/pipelines/transforms.py: Resize, RandomCrop, RandomFlip,
PhotoMetricDistortion, Pad). Images are scaled as OpenCV's INTER_LINEAR does (no smoothing when
shrinking), labels as its INTER_NEAREST does.
"""

from typing import Any, TypedDict

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.datasets.images import open_image
from benchmarks.datasets.records import LabelledImage
from benchmarks.datasets.segmentation import IGNORED, open_labels

_TRIES = 10  # for a crop that one class does not fill
_BRIGHTNESS = 32  # levels, up or down
_CONTRAST = _SATURATION = (0.5, 1.5)
_HUE = 18  # steps of two degrees, either way
_HUES = 180


class SegmentationImage(TypedDict, total=False):
    """One image for a segmentor."""

    image: torch.Tensor  # (3,H,W) in 0 to 255, channels in the order of INPUT.FORMAT
    height: int  # of the class scores wanted, in pixels
    width: int
    sem_seg: torch.Tensor  # (H,W) int64 classes or IGNORED, in training


def training_sample(
    image: LabelledImage, config: Any, random: np.random.Generator
) -> SegmentationImage:
    """A crop of INPUT.CROP.SIZE and its labels.

    What the image does not fill is padded with PIXEL_MEAN, which normalises to 0, and IGNORED.
    Raises UserError for unreadable files, for sizes that differ, and for unknown labels.
    """
    settings = config.INPUT
    pixels = np.asarray(open_image(image))
    labels = open_labels(image, config.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
    ratio = random.uniform(*settings.SCALE_RANGE)
    limits = (settings.MIN_SIZE_TRAIN[0], settings.MAX_SIZE_TRAIN)
    size = scaled_size(labels.shape, *(int(limit * ratio) for limit in limits))
    pixels, labels = resize_image(pixels, size), resize_labels(labels, size)
    rows, columns = choose_crop(
        labels, settings.CROP.SIZE, settings.CROP.SINGLE_CATEGORY_MAX_AREA, random
    )
    pixels, labels = pixels[rows, columns], labels[rows, columns]
    if settings.RANDOM_FLIP == "horizontal" and random.random() < 0.5:
        pixels, labels = pixels[:, ::-1], labels[:, ::-1]
    if settings.COLOR_AUG_SSD:
        pixels = distort_colours(pixels, random)
    mean = torch.tensor(config.MODEL.PIXEL_MEAN).view(-1, 1, 1)
    canvas, target = mean.repeat(1, *settings.CROP.SIZE), torch.full(settings.CROP.SIZE, IGNORED)
    height, width = labels.shape
    canvas[:, :height, :width] = _in_format(pixels, config)
    target[:height, :width] = torch.from_numpy(labels.copy())
    return {"image": canvas, "sem_seg": target}


def test_sample(image: LabelledImage, config: Any) -> SegmentationImage:
    """One image for evaluation, with the size that class scores are wanted in."""
    pixels = np.asarray(open_image(image))
    size = scaled_size(pixels.shape[:2], config.INPUT.MIN_SIZE_TEST, config.INPUT.MAX_SIZE_TEST)
    resized = _in_format(resize_image(pixels, size), config)
    return {"image": resized, "height": image.height, "width": image.width}


def scaled_size(size: tuple[int, ...], short_side: int, max_side: int) -> tuple[int, int]:
    """(height, width): as large as neither limit is exceeded, as rescale_size of mmcv."""
    scale = min(max_side / max(size), short_side / min(size))
    height, width = (int(side * scale + 0.5) for side in size)
    return height, width


def resize_image(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H,W,3) uint8 → (*size,3) uint8, bilinear between the pixels' centres."""
    tensor = torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None]
    resized = F.interpolate(tensor, size, mode="bilinear", align_corners=False)
    return resized[0].permute(1, 2, 0).numpy()


def resize_labels(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H,W) uint8 → `size`: each pixel gets the label at its upper left corner's place."""
    rows, columns = (np.arange(new) * old // new for new, old in zip(size, labels.shape))
    return labels[rows[:, None], columns]


def choose_crop(
    labels: np.ndarray, size: tuple[int, int], max_share: float, random: np.random.Generator
) -> tuple[slice, slice]:
    """Rows and columns of a random window of `size`, or of all there is.

    It shows two classes at least, none of which has `max_share` of the labelled pixels, unless ten
    tries find no such window: then the eleventh is taken as it comes.
    """
    window = _random_window(labels.shape, size, random)
    for _ in range(_TRIES if max_share < 1 else 0):
        counts = np.bincount(labels[window].ravel(), minlength=IGNORED + 1)[:IGNORED]
        if np.count_nonzero(counts) > 1 and counts.max() / counts.sum() < max_share:
            break
        window = _random_window(labels.shape, size, random)
    return window


def _random_window(
    shape: tuple[int, ...], size: tuple[int, int], random: np.random.Generator
) -> tuple[slice, slice]:
    rows, columns = (
        slice(start, start + wanted)
        for wanted, start in (
            (wanted, int(random.integers(max(there - wanted, 0) + 1)))
            for there, wanted in zip(shape, size)
        )
    )
    return rows, columns


def distort_colours(pixels: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """(H,W,3) uint8 RGB → brightness, contrast, saturation, hue changed, each half of the time.

    Contrast comes before or after saturation and hue. Each change rounds to whole levels.
    """
    if random.integers(2):
        pixels = _linear(pixels, offset=random.uniform(-_BRIGHTNESS, _BRIGHTNESS))
    contrast_first = random.integers(2)
    if contrast_first:
        pixels = _contrast(pixels, random)
    if random.integers(2):
        hue, saturation, value = to_hsv(pixels)
        pixels = to_rgb(hue, _linear(saturation, random.uniform(*_SATURATION)), value)
    if random.integers(2):
        hue, saturation, value = to_hsv(pixels)
        turned = (hue.astype(int) + random.integers(-_HUE, _HUE)) % _HUES
        pixels = to_rgb(turned, saturation, value)
    return pixels if contrast_first else _contrast(pixels, random)


def _contrast(pixels: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return _linear(pixels, random.uniform(*_CONTRAST)) if random.integers(2) else pixels


def _linear(levels: np.ndarray, factor: float = 1.0, offset: float = 0.0) -> np.ndarray:
    """uint8 → uint8, cut to 0 to 255 and down to whole levels."""
    changed = levels.astype(np.float32) * np.float32(factor) + np.float32(offset)
    return changed.clip(0, 255).astype(np.uint8)


def to_hsv(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(H,W,3) uint8 RGB → hue in 0 to 179, saturation and value in 0 to 255, as OpenCV's 8 bits."""
    red, green, blue = (pixels[..., channel].astype(np.float32) for channel in range(3))
    value = np.maximum(np.maximum(red, green), blue)
    spread = value - np.minimum(np.minimum(red, green), blue)
    saturation = 255 * spread / np.maximum(value, 1)
    turn = np.where(
        value == red,
        green - blue,
        np.where(value == green, blue - red + 2 * spread, red - green + 4 * spread),
    )
    hue = np.rint(_HUES / 6 * turn / np.maximum(spread, 1)) % _HUES
    return hue.astype(np.uint8), np.rint(saturation).astype(np.uint8), value.astype(np.uint8)


def to_rgb(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    """The inverse of `to_hsv`: three arrays (H,W) → (H,W,3) uint8 RGB."""
    sector = hue.astype(np.float32) * np.float32(6 / _HUES)
    chroma = saturation.astype(np.float32) / 255 * value
    channels = []
    for offset in (5, 3, 1):
        k = (sector + offset) % 6
        channels.append(value - chroma * np.minimum(k, 4 - k).clip(0, 1))
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def _in_format(pixels: np.ndarray, config: Any) -> torch.Tensor:
    """(H,W,3) RGB → (3,H,W) in the order of INPUT.FORMAT."""
    ordered = pixels if config.INPUT.FORMAT == "RGB" else pixels[:, :, ::-1]
    return torch.from_numpy(np.ascontiguousarray(ordered.transpose(2, 0, 1)))
