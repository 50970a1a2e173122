"""One image → its views, as a pure function of (seed, epoch, image number).

Views leave as uint8; `normalise` runs on the training device. Mirroring comes last in every
recipe, wherever its source has it: no other step can tell left from right.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image, ImageFilter
from torchvision import transforms
from torchvision.transforms.functional import InterpolationMode, hflip, pil_to_tensor, resized_crop

# ImageNet's channel statistics, for images in 0..1 (RGB).
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

Change = Callable[[Image.Image], Image.Image]


def random_key(*parts: int | str) -> int:
    """A 64-bit seed for one random decision, the same on every machine and in every process."""
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)


def gaussian_blur(image: Image.Image) -> Image.Image:
    """PIL's Gaussian blur with σ uniform between 0.1 and 2.0 pixels."""
    sigma = torch.empty(1).uniform_(0.1, 2.0).item()
    return image.filter(ImageFilter.GaussianBlur(radius=sigma))


def _colours(jitter: tuple[float, float, float, float], probability: float) -> list[Change]:
    """Brightness, contrast, saturation and hue, each by up to so much; grey for one in five."""
    return [
        transforms.RandomApply([transforms.ColorJitter(*jitter)], p=probability),
        transforms.RandomGrayscale(p=0.2),
    ]


def _blur(probability: float) -> Change:
    return transforms.RandomApply([gaussian_blur], p=probability)


@dataclass(frozen=True)
class Recipe:
    """What happens to each view between its crop and its mirroring."""

    views: tuple[list[Change], ...]
    interpolation: InterpolationMode = InterpolationMode.BILINEAR


def _twice(*changes: Change) -> tuple[list[Change], ...]:
    return (list(changes), list(changes))


_BYOL_COLOURS = _colours((0.4, 0.4, 0.2, 0.1), 0.8)

RECIPES = {
    # MoCo main_moco.py without --aug-plus: grey first, colours always
    "moco_v1": Recipe(_twice(*reversed(_colours((0.4, 0.4, 0.4, 0.4), 1.0)))),
    # MoCo with --aug-plus; WXinlong/DenseCL configs/selfsup/densecl/*.py
    "moco_v2": Recipe(_twice(*_colours((0.4, 0.4, 0.4, 0.1), 0.8), _blur(0.5))),
    # WXinlong/DenseCL configs/selfsup/simclr/r50_bs256_ep200.py
    "simclr": Recipe(_twice(*_colours((0.8, 0.8, 0.8, 0.2), 0.8), _blur(0.5))),
    # arXiv:2006.07733 appendix B: the two views differ in blur, and one is solarised now and then
    "byol": Recipe(
        (
            [*_BYOL_COLOURS, _blur(1.0)],
            [*_BYOL_COLOURS, _blur(0.1), transforms.RandomSolarize(128, p=0.2)],
        ),
        InterpolationMode.BICUBIC,
    ),
    # torchvision references/classification
    "supervised": Recipe(([],)),
}


class Views:
    """PIL image → its V views (V,3,size,size) uint8, drawn independently, and their corners.

    corners (V,4) float32: left, top, right, bottom of each view in the image, in pixels. A
    mirrored view begins at its crop's right side: its left is greater than its right.
    """

    def __init__(self, recipe: str, size: int, min_crop_area: float) -> None:
        self.recipe = RECIPES[recipe]
        self.size, self.area = size, [min_crop_area, 1.0]

    def __call__(self, image: Image.Image, key: int) -> tuple[torch.Tensor, torch.Tensor]:
        # torchvision draws from torch's global generator, which belongs to someone else.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(key)
            pairs = [self._view(image, changes) for changes in self.recipe.views]
        views, corners = zip(*pairs)
        return torch.stack(views), torch.tensor(corners)

    def _view(
        self, image: Image.Image, changes: list[Change]
    ) -> tuple[torch.Tensor, tuple[float, float, float, float]]:
        crop = transforms.RandomResizedCrop.get_params(image, self.area, [3 / 4, 4 / 3])
        view = resized_crop(image, *crop, [self.size, self.size], self.recipe.interpolation)
        for change in changes:
            view = change(view)
        top, left, height, width = map(float, crop)
        right, bottom = left + width, top + height
        if torch.rand(1) < 0.5:
            return pil_to_tensor(hflip(view)), (right, top, left, bottom)
        return pil_to_tensor(view), (left, top, right, bottom)


def normalise(images: torch.Tensor) -> torch.Tensor:
    """(B,3,H,W) uint8 → float32 with ImageNet's mean 0 and deviation 1, channels last."""
    mean = torch.tensor(MEAN, device=images.device).mul(255).view(1, 3, 1, 1)
    std = torch.tensor(STD, device=images.device).mul(255).view(1, 3, 1, 1)
    return ((images.float() - mean) / std).contiguous(memory_format=torch.channels_last)
