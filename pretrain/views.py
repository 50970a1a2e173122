"""One image → its views, as a pure function of (seed, epoch, image number).

Views leave as uint8; `normalise` runs on the training device. Mirroring comes last in every
recipe, wherever its source has it: no other step can tell left from right.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torchvision import transforms
from torchvision.transforms.functional import (
    InterpolationMode,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
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


def draw(colours: Colours) -> list[float]:
    """The 13 numbers that decide a view's changes, from torch's global generator."""
    drawn = [0.0] * _COLUMNS
    if colours.grey_first:
        drawn[GREY] = _happens(colours.grey_probability)
    if colours.jitter_probability and not torch.rand(1) > colours.jitter_probability:
        jitter = _jitter(colours.jitter)
        order, *factors = jitter.get_params(
            jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue
        )
        drawn[JITTER], drawn[ORDER], drawn[FACTORS] = 1.0, order.tolist(), factors
    if colours.grey_probability and not colours.grey_first:
        drawn[GREY] = _happens(colours.grey_probability)
    if colours.blur_probability and not torch.rand(1) > colours.blur_probability:
        drawn[SIGMA] = torch.empty(1).uniform_(0.1, 2.0).item()
    if colours.solarise_probability:
        drawn[SOLARISE] = _happens(colours.solarise_probability)
    drawn[MIRROR] = _happens(0.5)
    return drawn


@cache
def _jitter(amounts: tuple[float, float, float, float]) -> transforms.ColorJitter:
    return transforms.ColorJitter(*amounts)


def _happens(probability: float) -> float:
    return float(torch.rand(1) < probability)


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
    """An image → its V views (V,3,size,size) uint8, drawn independently, and their corners.

    corners (V,4) float32: left, top, right, bottom of each view in the image, in pixels. A
    mirrored view begins at its crop's right side: its left is greater than its right.

    The third value, (V,13), is what was drawn for the colours, blur and mirroring. Of a PIL image
    the views have been changed by it; of a tensor (3,H,W) uint8 they are the crops alone, for
    `pretrain.device_views` to change.
    """

    def __init__(self, recipe: str, size: int, min_crop_area: float) -> None:
        self.recipe = RECIPES[recipe]
        self.size, self.area = size, [min_crop_area, 1.0]

    def __call__(
        self, image: Image.Image | torch.Tensor, key: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        # torchvision draws from torch's global generator, which belongs to someone else.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(key)
            parts = [self._view(image, colours) for colours in self.recipe.views]
        views, corners, drawn = zip(*parts)
        return stack(views), torch.tensor(corners), torch.tensor(drawn)

    def _view(
        self, image: Image.Image | torch.Tensor, colours: Colours
    ) -> tuple[torch.Tensor, tuple[float, float, float, float], list[float]]:
        crop = transforms.RandomResizedCrop.get_params(image, self.area, [3 / 4, 4 / 3])
        drawn = draw(colours)
        if isinstance(image, torch.Tensor):
            view = self.cut(image, *crop)
        else:
            size = [self.size, self.size]
            pixels = resized_crop(image, *crop, size, self.recipe.interpolation)
            view = pil_to_tensor(change(pixels, drawn, colours.grey_first))
        top, left, height, width = map(float, crop)
        right, bottom = left + width, top + height
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


def stack(images: Sequence[torch.Tensor], dim: int = 0) -> torch.Tensor:
    """torch.stack of (...,3,H,W), channels last in memory as these are: nothing is transposed."""
    last = [image.movedim(-3, -1) for image in images]
    return torch.stack(last, dim).movedim(-1, -3)


def normalise(images: torch.Tensor) -> torch.Tensor:
    """(B,3,H,W) uint8 → float32 with ImageNet's mean 0 and deviation 1, channels last."""
    mean = torch.tensor(MEAN, device=images.device).mul(255).view(1, 3, 1, 1)
    std = torch.tensor(STD, device=images.device).mul(255).view(1, 3, 1, 1)
    return ((images.float() - mean) / std).contiguous(memory_format=torch.channels_last)
