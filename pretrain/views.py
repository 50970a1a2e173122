"""One image → its views, as a pure function of (seed, epoch, image number).

Views leave as uint8; `normalise` runs on the training device. Mirroring comes last in every
recipe, wherever its source has it: no other step can tell left from right.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torchvision.transforms.functional import (
    InterpolationMode,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    get_dimensions,
    hflip,
    pil_to_tensor,
    resized_crop,
    rgb_to_grayscale,
    solarize,
)

# ImageNet's channel statistics, for images in 0..1 (RGB).
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def random_key(*parts: int | str) -> int:
    """A 64-bit seed for one random decision, the same on every machine and in every process."""
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)


@dataclass(frozen=True)
class Colours:
    """What may happen to a view between its crop and its mirroring, and how often."""

    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    jitter_probability: float = 0.0  # brightness, contrast, saturation, hue in a random order
    grey_probability: float = 0.0
    blur_probability: float = 0.0
    solarise_probability: float = 0.0
    grey_first: bool = False


@dataclass(frozen=True)
class Recipe:
    """What happens to each view."""

    views: tuple[Colours, ...]
    interpolation: InterpolationMode = InterpolationMode.BILINEAR


_BYOL = Colours((0.4, 0.4, 0.2, 0.1), 0.8, 0.2, 1.0)

RECIPES = {
    # MoCo main_moco.py without --aug-plus: grey first, colours always
    "moco_v1": Recipe(2 * (Colours((0.4, 0.4, 0.4, 0.4), 1.0, 0.2, grey_first=True),)),
    # MoCo with --aug-plus; WXinlong/DenseCL configs/selfsup/densecl/*.py
    "moco_v2": Recipe(2 * (Colours((0.4, 0.4, 0.4, 0.1), 0.8, 0.2, 0.5),)),
    # WXinlong/DenseCL configs/selfsup/simclr/r50_bs256_ep200.py
    "simclr": Recipe(2 * (Colours((0.8, 0.8, 0.8, 0.2), 0.8, 0.2, 0.5),)),
    # arXiv:2006.07733 appendix B: the two views differ in blur, and one is solarised now and then
    "byol": Recipe(
        (_BYOL, replace(_BYOL, blur_probability=0.1, solarise_probability=0.2)),
        InterpolationMode.BICUBIC,
    ),
    # torchvision references/classification
    "supervised": Recipe((Colours(),)),
}

# The columns of what was drawn for a view: 0 or 1 where no unit is named.
JITTER, ORDER, FACTORS = 0, slice(1, 5), slice(5, 9)  # ORDER: which of FACTORS comes first, ...
GREY, SIGMA, SOLARISE, MIRROR = 9, 10, 11, 12  # SIGMA: of the blur in pixels, 0 for none
_COLUMNS = 13
SOLARISE_FROM = 128  # brightness, of 255
_ASPECT = 4 / 3  # of a crop, at most, either way
_LOG_ASPECTS = torch.log(torch.tensor([1 / _ASPECT, _ASPECT])).tolist()


def draw(colours: Colours, random: torch.Generator) -> list[float]:
    """The 13 numbers that decide a view's changes: those that torchvision's ColorJitter and its
    like would draw, one after another, from this generator."""
    drawn = [0.0] * _COLUMNS
    if colours.grey_first:
        drawn[GREY] = _happens(colours.grey_probability, random)
    if colours.jitter_probability and _happens(colours.jitter_probability, random):
        drawn[JITTER], drawn[ORDER] = 1.0, torch.randperm(4, generator=random).tolist()
        around = zip((1, 1, 1, 0), colours.jitter)
        drawn[FACTORS] = [_uniform(middle - far, middle + far, random) for middle, far in around]
    if colours.grey_probability and not colours.grey_first:
        drawn[GREY] = _happens(colours.grey_probability, random)
    if colours.blur_probability and _happens(colours.blur_probability, random):
        drawn[SIGMA] = _uniform(0.1, 2.0, random)
    if colours.solarise_probability:
        drawn[SOLARISE] = _happens(colours.solarise_probability, random)
    drawn[MIRROR] = _happens(0.5, random)
    return drawn


def draw_crop(
    width: int, height: int, min_area: float, random: torch.Generator
) -> tuple[int, int, int, int]:
    """Top, left, height and width in pixels: what torchvision's RandomResizedCrop.get_params
    would draw from this generator, in a quarter of its time.

    The share of the image's area is uniform, the aspect ratio's logarithm is, and the place is,
    among those that lie in the image; after ten that do not, as much of the middle as may be.
    """
    for _ in range(10):
        area = width * height * _uniform(min_area, 1, random)
        aspect = torch.empty(1).uniform_(*_LOG_ASPECTS, generator=random).exp_().item()
        across, down = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < across <= width and 0 < down <= height:
            top = torch.randint(height - down + 1, (1,), generator=random).item()
            left = torch.randint(width - across + 1, (1,), generator=random).item()
            return int(top), int(left), down, across
    across, down = min(width, round(height * _ASPECT)), min(height, round(width * _ASPECT))
    return (height - down) // 2, (width - across) // 2, down, across


def _uniform(low: float, high: float, random: torch.Generator) -> float:
    return torch.empty(1).uniform_(low, high, generator=random).item()


def _happens(probability: float, random: torch.Generator) -> bool:
    return torch.rand(1, generator=random).item() < probability


def change(view: Image.Image, drawn: Sequence[float], grey_first: bool) -> Image.Image:
    """A crop with its changes, by PIL, in 8 bits after each of them."""
    if drawn[GREY] and grey_first:
        view = rgb_to_grayscale(view, 3)
    if drawn[JITTER]:
        for number in map(int, drawn[ORDER]):
            view = _ADJUST[number](view, drawn[FACTORS][number])
    if drawn[GREY] and not grey_first:
        view = rgb_to_grayscale(view, 3)
    if drawn[SIGMA]:
        view = view.filter(ImageFilter.GaussianBlur(radius=drawn[SIGMA]))
    if drawn[SOLARISE]:
        view = solarize(view, SOLARISE_FROM)
    return hflip(view) if drawn[MIRROR] else view


_ADJUST = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)


class Views:
    """An image → its V views (3,size,size) uint8, drawn independently, and their corners.

    corners (V,4) float32: left, top, right, bottom of each view in the image, in pixels. A
    mirrored view begins at its crop's right side: its left is greater than its right.

    The third value, (V,13), is what was drawn for the colours, blur and mirroring. Of a PIL image
    the views have been changed by it; of a tensor (3,H,W) uint8 they are the crops alone, for
    `pretrain.device_views` to change.
    """

    def __init__(self, recipe: str, size: int, min_crop_area: float) -> None:
        self.recipe = RECIPES[recipe]
        self.size, self.min_area = size, min_crop_area

    def __call__(
        self, image: Image.Image | torch.Tensor, key: int
    ) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
        random = torch.Generator().manual_seed(key)
        parts = [self._view(image, colours, random) for colours in self.recipe.views]
        views, corners, drawn = zip(*parts)
        return list(views), torch.tensor(corners, dtype=torch.float32), torch.tensor(drawn)

    def _view(
        self, image: Image.Image | torch.Tensor, colours: Colours, random: torch.Generator
    ) -> tuple[torch.Tensor, tuple[int, int, int, int], list[float]]:
        _, height, width = get_dimensions(image)
        top, left, down, across = crop = draw_crop(width, height, self.min_area, random)
        drawn = draw(colours, random)
        if isinstance(image, torch.Tensor):
            view = self.cut(image, *crop)
        else:
            size = [self.size, self.size]
            pixels = resized_crop(image, *crop, size, self.recipe.interpolation)
            view = pil_to_tensor(change(pixels, drawn, colours.grey_first))
        right, bottom = left + across, top + down
        corners = (right, top, left, bottom) if drawn[MIRROR] else (left, top, right, bottom)
        return view, corners, drawn

    def cut(
        self, image: torch.Tensor, top: int, left: int, height: int, width: int
    ) -> torch.Tensor:
        """What `resized_crop` gives, within a level of 255, in half the time."""
        rows = image.permute(1, 2, 0)[top : top + height, left : left + width]
        # Cut and then wrapped, it still counts as channels last, which has the fast kernel.
        crop = rows[None].permute(0, 3, 1, 2)
        size, mode = (self.size, self.size), self.recipe.interpolation.value
        return F.interpolate(crop, size, mode=mode, antialias=True, align_corners=False)[0]


def normalise(images: torch.Tensor) -> torch.Tensor:
    """(B,3,H,W) uint8 → float32 with ImageNet's mean 0 and deviation 1, channels last."""
    mean, std = (per_channel(values, images.device) * 255 for values in (MEAN, STD))
    return ((images.float() - mean) / std).contiguous(memory_format=torch.channels_last)


def per_channel(values: Sequence[float], device: torch.device) -> torch.Tensor:
    """(1,3,1,1), written by the device itself: a tensor of the host's would wait for it."""
    return torch.cat([torch.full((1, 1, 1, 1), value, device=device) for value in values], 1)
