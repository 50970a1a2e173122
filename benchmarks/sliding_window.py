"""Class scores of a whole image, at once or window by window, the same for both engines."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F


def image_scores(
    score: Callable[[torch.Tensor], torch.Tensor],
    image: torch.Tensor,
    classes: int,
    window: int,
    stride: int,
    size: tuple[int, int],
    align_corners: bool,
) -> torch.Tensor:
    """Class scores (K, *size) of one normalised image (3,H,W).

    score: images (1,3,h,w) → class scores (1,K,h',w'), which are scaled to (h,w). It sees squares
    of side `window`, `stride` pixels apart, and overlapping scores are averaged; or the whole image
    where `window` is 0. As mmseg/models/segmentors/encoder_decoder.py of mmsegmentation 0.11.0.
    """
    height, width = image.shape[1:]
    total = image.new_zeros(classes, height, width)
    count = image.new_zeros(height, width)
    for rows, columns in _windows(height, width, window or max(height, width), stride or 1):
        part = image[None, :, rows, columns]
        scores = resize(score(part), (part.shape[2], part.shape[3]), align_corners)
        total[:, rows, columns] += scores[0]
        count[rows, columns] += 1
    return resize((total / count)[None], size, align_corners)[0]


def resize(scores: torch.Tensor, size: tuple[int, int], align_corners: bool) -> torch.Tensor:
    """(B,K,H,W) → (B,K,*size), bilinear."""
    return F.interpolate(scores, size=size, mode="bilinear", align_corners=align_corners)


def _windows(height: int, width: int, window: int, stride: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of every window; the last ones end where the image ends."""
    for rows in _spans(height, window, stride):
        for columns in _spans(width, window, stride):
            yield rows, columns


def _spans(length: int, window: int, stride: int) -> list[slice]:
    steps = -(-max(length - window, 0) // stride) + 1
    ends = [min(step * stride + window, length) for step in range(steps)]
    return [slice(max(end - window, 0), end) for end in ends]
