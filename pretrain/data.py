"""Images → batches of views, in an order that nothing but (seed, step) decides."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, default_collate

from common.shutdown import set_up_worker
from pretrain.config import Data, PretrainConfig
from pretrain.images import Images, open_images
from pretrain.order import Order
from pretrain.views import Views, random_key

PREFETCHED = 4  # batches that each loading process prepares ahead


class Batch(NamedTuple):
    """B images in V views each.

    views (V,B,3,H,W) uint8, channels last in memory. corners (V,B,4): where each view lies in its
    image, see `Views`. labels (B,) int64: the number of the image's class, 0 where there are none.
    unreadable: images that a neighbour replaced. drawn (V,B,13): the changes that the device is to
    make; None where they have been made.
    """

    views: torch.Tensor
    corners: torch.Tensor
    labels: torch.Tensor
    unreadable: list[str]
    drawn: torch.Tensor | None = None


def most_unreadable(images: int) -> int:
    """How many unreadable images a run bears: 0.01 % of them, at least 10."""
    return max(10, images // 10_000)


def images_of(data: Data) -> Images:
    """The images that the settings name. Raises UserError where there are none."""
    list_file = Path(data.list_file) if data.list_file else None
    return open_images(Path(data.root), list_file, data.window)


Sample = tuple[list[torch.Tensor], torch.Tensor, torch.Tensor, int, list[str]]


class PretrainImages(Dataset):
    """Item (epoch, number) → V views (3,H,W), corners (V,4), drawn (V,13), label, unreadable paths.

    With data.colours = device the views are crops, see `Views`.
    """

    def __init__(self, config: PretrainConfig, images: Images) -> None:
        self.images, self.seed = images, config.seed
        data = config.data
        self.make_views = Views(data.augmentation, data.image_size, data.min_crop_area)
        self.decode = decode_tensor if data.colours == "device" else decode_image

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: tuple[int, int]) -> Sample:
        epoch, number = item
        unreadable: list[str] = []
        # One more failure than a run bears ends it, so there is no need to look further.
        for step in range(most_unreadable(len(self.images)) + 1):
            neighbour = (number + step) % len(self.images)
            try:
                image = self.decode(self.images.read(neighbour))
            except Exception:  # of a damaged image PIL's decoders raise anything
                unreadable.append(self.images.name(neighbour))
                continue
            views = self.make_views(image, random_key(self.seed, epoch, neighbour))
            return *views, self.images.label(neighbour), unreadable
        return *self.make_views(Image.new("RGB", (8, 8)), 0), 0, unreadable


def decode_image(content: bytes) -> Image.Image:
    """An image in RGB, 16 bits cut to 8. Raises what PIL raises when it is not one, and ValueError
    for pixels whose range nobody knows."""
    with Image.open(io.BytesIO(content)) as file:
        if file.mode in ("F", "I"):
            raise ValueError(f"pixels of mode {file.mode}, of which no value is known to be white")
        if file.mode.startswith("I;16"):  # PIL would cut off what is brighter than 255
            return Image.fromarray((np.asarray(file) >> 8).astype(np.uint8)).convert("RGB")
        return file.convert("RGB")


def decode_tensor(content: bytes) -> torch.Tensor:
    """The same pixels as (3,H,W) uint8, channels last; a JPEG faster than by PIL."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
        # PIL refuses what is larger.
        if colours in ("YCbCr", "Gray") and height * width <= 2 * (Image.MAX_IMAGE_PIXELS or 0):
            return torch.from_numpy(simplejpeg.decode_jpeg(content)).permute(2, 0, 1)
    except ValueError:  # no JPEG, or a damaged one: PIL knows, or says what is wrong
        pass
    return torch.from_numpy(np.array(decode_image(content))).permute(2, 0, 1)


def data_loader(
    config: PretrainConfig, images: Images, first_step: int, pin_memory: bool
) -> DataLoader:
    """Batches from `first_step` to the end of the run, over all its epochs."""
    workers = config.launch.workers
    return DataLoader(
        PretrainImages(config, images),
        batch_sampler=Order(len(images), config, first_step),
        num_workers=workers,
        collate_fn=_collate_crops if config.data.colours == "device" else _collate,
        pin_memory=pin_memory,
        worker_init_fn=set_up_worker,
        # A worker must be this process's own child for the kernel to end it with its parent.
        multiprocessing_context="fork" if workers else None,
        prefetch_factor=PREFETCHED if workers else None,
    )


def _collate(samples: list[Sample]) -> Batch:
    return _collate_crops(samples)._replace(drawn=None)


def _collate_crops(samples: list[Sample]) -> Batch:
    views, corners, drawn, labels, unreadable = zip(*samples)
    return Batch(
        _stack(views),
        torch.stack(corners, dim=1),
        torch.tensor(labels),
        [path for paths in unreadable for path in paths],
        torch.stack(drawn, dim=1),
    )


def _stack(views: Sequence[Sequence[torch.Tensor]]) -> torch.Tensor:
    """B images' V views (3,H,W) → (V,B,3,H,W), channels last in memory as they are.

    The default collation puts them into what processes share at once, so they are copied once.
    """
    rows = [view.movedim(0, 2) for alike in zip(*views) for view in alike]
    return default_collate(rows).unflatten(0, (-1, len(views))).movedim(4, 2)
