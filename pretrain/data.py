"""A folder of images → batches of views, in an order that nothing but (seed, step) decides."""

import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from common.errors import UserError
from common.shutdown import set_up_worker
from pretrain.config import PretrainConfig
from pretrain.order import Order
from pretrain.views import Views, random_key

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")


class Batch(NamedTuple):
    """B images in V views each.

    views (V,B,3,H,W) uint8. corners (V,B,4): where each view lies in its image, see `Views`.
    labels (B,) int64: the number of the image's class folder, 0 where there are none. unreadable:
    paths that a neighbour replaced. drawn (V,B,13): the changes that the device is to make; None
    where they have been made.
    """

    views: torch.Tensor
    corners: torch.Tensor
    labels: torch.Tensor
    unreadable: list[str]
    drawn: torch.Tensor | None = None


def list_images(root: Path, list_file: Path | None = None) -> list[str]:
    """Paths relative to `root`, sorted; from `list_file` (one per line, a label may follow) in its
    order. ImageFolder trees and flat folders look the same here: labels are not used.

    Raises UserError when there is no such folder or no image in it.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder: set data.root to a folder of images")
    if list_file is not None:
        if not list_file.is_file():
            raise UserError(f"{list_file}: no such file: data.list_file names a text file of paths")
        lines = list_file.read_text().splitlines()
        found = [_without_label(line.strip()) for line in lines if line.strip()]
    else:
        found = sorted(_walk(root, root))
    if not found:
        where = list_file or root
        raise UserError(f"{where}: no images found (looked for {', '.join(EXTENSIONS)})")
    return found


def class_folders(files: list[str]) -> list[str]:
    """The first folder of each path, each once, sorted; "" for images that lie in none."""
    return sorted({path.rpartition("/")[0].partition("/")[0] for path in files})


def dataset_hash(files: list[str]) -> str:
    """Hex SHA-256 of the file names: what `identity` records of the data."""
    return hashlib.sha256("\n".join(files).encode()).hexdigest()


def most_unreadable(images: int) -> int:
    """How many unreadable images a run bears: 0.01 % of them, at least 10."""
    return max(10, images // 10_000)


Sample = tuple[torch.Tensor, torch.Tensor, torch.Tensor, int, list[str]]


class PretrainImages(Dataset):
    """Item (epoch, number) → views (V,3,H,W), corners (V,4), drawn (V,13), label, unreadable paths.

    With data.colours = device the views are crops, see `Views`.
    """

    def __init__(self, config: PretrainConfig, files: list[str]) -> None:
        self.root = Path(config.data.root)
        self.files = files
        self.seed = config.seed
        numbers = {name: number for number, name in enumerate(class_folders(files))}
        self.labels = [numbers[class_folders([path])[0]] for path in files]
        data = config.data
        self.make_views = Views(data.augmentation, data.image_size, data.min_crop_area)
        self.read = read_tensor if data.colours == "device" else read_image

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, item: tuple[int, int]) -> Sample:
        epoch, number = item
        unreadable: list[str] = []
        # One more failure than a run bears ends it, so there is no need to look further.
        for step in range(most_unreadable(len(self.files)) + 1):
            neighbour = (number + step) % len(self.files)
            path = self.root / self.files[neighbour]
            try:
                image = self.read(path)
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
                unreadable.append(str(path))
                continue
            views = self.make_views(image, random_key(self.seed, epoch, neighbour))
            return *views, self.labels[neighbour], unreadable
        return *self.make_views(Image.new("RGB", (8, 8)), 0), 0, unreadable


def read_image(path: Path) -> Image.Image:
    """An image in RGB. Raises OSError, ValueError or SyntaxError when it cannot be read."""
    with Image.open(path) as file:
        return file.convert("RGB")


def read_tensor(path: Path) -> torch.Tensor:
    """The same pixels as (3,H,W) uint8, channels last; a JPEG faster than by PIL."""
    content = path.read_bytes()
    try:
        _, _, colours, _ = simplejpeg.decode_jpeg_header(content)
        if colours in ("YCbCr", "Gray"):
            return torch.from_numpy(simplejpeg.decode_jpeg(content)).permute(2, 0, 1)
    except ValueError:  # no JPEG, or a damaged one: PIL knows, or says what is wrong
        pass
    with Image.open(io.BytesIO(content)) as file:
        return torch.from_numpy(np.array(file.convert("RGB"))).permute(2, 0, 1)


def data_loader(
    config: PretrainConfig, files: list[str], first_step: int, pin_memory: bool
) -> DataLoader:
    """Batches from `first_step` to the end of the run, over all its epochs."""
    workers = config.launch.workers
    return DataLoader(
        PretrainImages(config, files),
        batch_sampler=Order(len(files), config, first_step),
        num_workers=workers,
        collate_fn=_collate_crops if config.data.colours == "device" else _collate,
        pin_memory=pin_memory,
        worker_init_fn=set_up_worker,
        # A worker must be this process's own child for the kernel to end it with its parent.
        multiprocessing_context="fork" if workers else None,
        prefetch_factor=4 if workers else None,
    )


def _collate(samples: list[Sample]) -> Batch:
    return _collate_crops(samples)._replace(drawn=None)


def _collate_crops(samples: list[Sample]) -> Batch:
    views, corners, drawn, labels, unreadable = zip(*samples)
    return Batch(
        torch.stack(views, dim=1),
        torch.stack(corners, dim=1),
        torch.tensor(labels),
        [path for paths in unreadable for path in paths],
        torch.stack(drawn, dim=1),
    )


def _without_label(line: str) -> str:
    path, _, label = line.rpartition(" ")
    return path.rstrip() if path and label.lstrip("-").isdigit() else line


def _walk(folder: Path, root: Path) -> Iterator[str]:
    for parent, _, names in os.walk(folder, followlinks=True):
        relative = Path(parent).relative_to(root)
        yield from (str(relative / name) for name in names if name.lower().endswith(EXTENSIONS))
