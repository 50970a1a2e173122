"""Crops → views on the training device: every image of a batch with its own changes, at once.

The same operations, in the order and with the factors that `pretrain.views.draw` drew, as
torchvision's on float images: within 1e-5 of them. (PIL rounds to 8 bits after each operation and
blurs by boxes: it differs from them by one level of 255 on average.) Every operation is computed
for every image and taken where it was drawn, so that no number has to come back from the device.
"""

import torch

from pretrain.views import (
    FACTORS,
    GREY,
    JITTER,
    MEAN,
    MIRROR,
    ORDER,
    SIGMA,
    SOLARISE,
    SOLARISE_FROM,
    STD,
)

_LUMA = (0.2989, 0.587, 0.114)  # torchvision's
_RADIUS = 8  # pixels of the blur on each side: four times the largest sigma
_BRIGHTNESS, _CONTRAST, _SATURATION = range(3)


def augment(crops: torch.Tensor, drawn: torch.Tensor, grey_first: bool) -> torch.Tensor:
    """(B,3,S,S) uint8, (B,13) → float32 with ImageNet's mean 0 and deviation 1, channels last."""
    images = crops.to(torch.float32, memory_format=torch.contiguous_format) / 255
    columns = drawn.to(images.dtype)[:, :, None, None, None]  # (B,13,1,1,1)
    if grey_first:
        images = torch.where(columns[:, GREY] > 0, _luma(images), images)
    images = torch.where(columns[:, JITTER] > 0, _jitter(images, columns), images)
    if not grey_first:
        images = torch.where(columns[:, GREY] > 0, _luma(images), images)
    images = torch.where(columns[:, SIGMA] > 0, _blur(images, drawn[:, SIGMA]), images)
    solarised = torch.where(images >= SOLARISE_FROM / 255, 1 - images, images)
    images = torch.where(columns[:, SOLARISE] > 0, solarised, images)
    images = torch.where(columns[:, MIRROR] > 0, images.flip(3), images)
    mean, std = (torch.tensor(v, device=crops.device).view(1, 3, 1, 1) for v in (MEAN, STD))
    return ((images - mean) / std).contiguous(memory_format=torch.channels_last)


def _jitter(images: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Each image's four adjustments in its own order."""
    order, factors = columns[:, ORDER], columns[:, FACTORS]
    brightness, contrast, saturation, hue = factors.unbind(1)
    for place in range(4):
        which = order[:, place]
        grey = _luma(images)
        # Brightness, contrast and saturation mix the image with black, its mean grey, its own grey.
        other = torch.where(which == _SATURATION, grey, grey.mean((1, 2, 3), keepdim=True))
        other = torch.where(which == _BRIGHTNESS, 0.0, other)
        factor = torch.where(which == _SATURATION, saturation, contrast)
        factor = torch.where(which == _BRIGHTNESS, brightness, factor)
        mixed = (factor * images + (1 - factor) * other).clamp(0, 1)
        images = torch.where(which <= _SATURATION, mixed, _turn_hue(images, hue))
    return images


def _luma(images: torch.Tensor) -> torch.Tensor:
    red, green, blue = images.split(1, 1)
    return _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue


def _turn_hue(images: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """The hue moved by so many turns of the colour circle, saturation and value as they are.

    HSV without cases: a channel is v - c·clamp(min(k, 4-k), 0, 1) with k = (n + 6h) mod 6.
    """
    red, green, blue = images.split(1, 1)
    value, least = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    chroma = value - least
    safe = torch.where(chroma > 0, chroma, 1.0)
    sextant = torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4)
    sextant = torch.where(value == red, (green - blue) / safe, sextant) + 6 * turns
    k = torch.cat([torch.remainder(sextant + n, 6) for n in (5, 3, 1)], 1)
    return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)


def _blur(images: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Gaussian blur, edges mirrored, as two products with each image's (S,S) band matrix."""
    band = _bands(sigma.clamp(min=1e-3), images.shape[-1]).to(images.dtype)[:, None]
    return band @ images @ band.transpose(2, 3)


def _bands(sigma: torch.Tensor, size: int) -> torch.Tensor:
    """(B,) → (B,S,S): what each output pixel takes of each input pixel."""
    radius = min(_RADIUS, size - 1)
    offsets = torch.arange(-radius, radius + 1, device=sigma.device)
    weights = torch.exp(-0.5 * (offsets / sigma[:, None]) ** 2)
    weights = weights / weights.sum(1, keepdim=True)
    source = (torch.arange(size, device=sigma.device)[:, None] + offsets).abs()
    source = torch.where(source >= size, 2 * (size - 1) - source, source)
    bands = torch.zeros(len(sigma), size, size, device=sigma.device, dtype=weights.dtype)
    index = source.expand(len(sigma), -1, -1)
    return bands.scatter_add_(2, index, weights[:, None].expand(-1, size, -1).contiguous())
