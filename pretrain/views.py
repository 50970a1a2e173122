"""One image → two views, as a pure function of (seed, epoch, image number).

The recipe is MoCo v2's, with PIL's blur (SPEC: WXinlong/DenseCL configs/selfsup/densecl/*.py):
random crop of 20 to 100 % of the area, colour jitter (p 0.8), grey (p 0.2), blur with σ from 0.1
to 2.0 (p 0.5), flip (p 0.5). Views leave as uint8; `normalise` runs on the training device.
"""

import hashlib

import torch
from PIL import Image, ImageFilter
from torchvision import transforms

# ImageNet's channel statistics, for images in 0..1 (RGB).
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def random_key(*parts: int | str) -> int:
    """A 64-bit seed for one random decision, the same on every machine and in every process."""
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)


class TwoViews:
    """PIL image → (2, 3, size, size) uint8, the two views drawn independently."""

    def __init__(self, size: int, min_crop_area: float) -> None:
        jitter = transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)
        self.augment = transforms.Compose(
            [
                transforms.RandomResizedCrop(size, scale=(min_crop_area, 1.0)),
                transforms.RandomApply([jitter], p=0.8),
                transforms.RandomGrayscale(p=0.2),
                transforms.RandomApply([gaussian_blur], p=0.5),
                transforms.RandomHorizontalFlip(p=0.5),
                transforms.PILToTensor(),
            ]
        )

    def __call__(self, image: Image.Image, key: int) -> torch.Tensor:
        # torchvision draws from torch's global generator, which belongs to someone else.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(key)
            return torch.stack([self.augment(image), self.augment(image)])


def gaussian_blur(image: Image.Image) -> Image.Image:
    """PIL's Gaussian blur with σ uniform between 0.1 and 2.0 pixels."""
    sigma = torch.empty(1).uniform_(0.1, 2.0).item()
    return image.filter(ImageFilter.GaussianBlur(radius=sigma))


def normalise(images: torch.Tensor) -> torch.Tensor:
    """(B,3,H,W) uint8 → float32 with ImageNet's mean 0 and deviation 1, channels last."""
    mean = torch.tensor(MEAN, device=images.device).mul(255).view(1, 3, 1, 1)
    std = torch.tensor(STD, device=images.device).mul(255).view(1, 3, 1, 1)
    return ((images.float() - mean) / std).contiguous(memory_format=torch.channels_last)
