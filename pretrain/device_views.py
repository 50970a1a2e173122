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
    Colours,
    per_channel,
)

_LUMA = (0.2989, 0.587, 0.114)  # torchvision's
_RADIUS = 8  # pixels of the blur on each side: four times the largest sigma
_CONTRAST, _SATURATION, _HUE = 1, 2, 3  # the numbers in ORDER; 0: brightness


def augment(crops: torch.Tensor, drawn: torch.Tensor, colours: Colours) -> torch.Tensor:
    """(B,3,S,S) uint8, (B,13) → float32 with ImageNet's mean 0 and deviation 1, channels last.

    colours: what `drawn` was drawn by. What never happens is not computed.
    """
    with torch.autocast(crops.device.type, enabled=False):  # that is for the networks
        images = crops.to(torch.float32, memory_format=torch.contiguous_format) / 255
        columns = drawn.to(images.dtype)[:, :, None, None, None]  # (B,13,1,1,1)
        if colours.grey_first:
            images = torch.where(columns[:, GREY] > 0, _luma(images), images)
        if colours.jitter_probability:
            images = torch.where(columns[:, JITTER] > 0, _jitter(images, columns), images)
        if colours.grey_probability and not colours.grey_first:
            images = torch.where(columns[:, GREY] > 0, _luma(images), images)
        if colours.blur_probability:
            images = torch.where(columns[:, SIGMA] > 0, _blur(images, drawn[:, SIGMA]), images)
        if colours.solarise_probability:
            bright = (images >= SOLARISE_FROM / 255) & (columns[:, SOLARISE] > 0)
            images = torch.where(bright, 1 - images, images)
        images = torch.where(columns[:, MIRROR] > 0, images.flip(3), images)
        mean, std = (per_channel(values, crops.device) for values in (MEAN, STD))
        return ((images - mean) / std).contiguous(memory_format=torch.channels_last)


def _jitter(images: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Each image's four adjustments in its own order.

    The hue is the dear one: it is turned once for all, what comes before it before, the rest after.
    """
    order, factors = columns[:, ORDER], columns[:, FACTORS]
    hue_place = (order == _HUE).to(torch.int64).argmax(1)  # (B,1,1,1)
    for place in range(3):
        images = _mix(images, order[:, place], factors, place < hue_place)
    images = _turn_hue(images, factors[:, _HUE])
    for place in range(1, 4):
        images = _mix(images, order[:, place], factors, place > hue_place)
    return images


def _mix(
    images: torch.Tensor, which: torch.Tensor, factors: torch.Tensor, due: torch.Tensor
) -> torch.Tensor:
    """Brightness, contrast or saturation: the image mixed with black, its mean grey, its own grey.

    which (B,1,1,1): the adjustment; factors (B,4,1,1,1). Where it is not due, a factor of 1 leaves
    all as it is.
    """
    factor = factors.gather(1, which.to(torch.int64)[:, None])[:, 0].where(due, 1.0)
    grey = _luma(images)
    mean = grey.mean((1, 2, 3), keepdim=True).where(which == _CONTRAST, 0.0)
    other = torch.where(which == _SATURATION, grey, mean)
    return torch.lerp(other, images, factor).clamp_(0, 1)


def _luma(images: torch.Tensor) -> torch.Tensor:
    red, green, blue = images.split(1, 1)
    return (_LUMA[0] * red).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])


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
    k = torch.remainder(sextant + per_channel((5, 3, 1), images.device), 6)
    return value - torch.minimum(k, 4 - k).clamp_(0, 1).mul_(chroma)


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
