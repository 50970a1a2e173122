"""Images and targets for the network, and the order in which training sees them.

A sample is a pure function of (seed, its position in the run, the image), and a batch of
(seed, iteration): a resumed run, another number of workers or of processes sees the same data.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.torchvision_engine.boxes import Target
from benchmarks.torchvision_engine.model import Image
from benchmarks.voc import VocImage
from common import distributed
from common.errors import UserError
from common.shutdown import set_up_worker

# The published runs use 8 GPUs with 2 images each, and Detectron2 groups by orientation on each
# GPU. Groups of two make the same batches on any number of processes.
_GROUP = 2

Slot = tuple[int, int]  # position in the run, index of the image


def load_image(image: VocImage, config: Any, short_side: int, max_side: int) -> np.ndarray:
    """Decoded, turned upright, resized: (H,W,3) uint8 in INPUT.FORMAT's channel order.

    As read_image and ResizeShortestEdge of detectron2/data. Raises UserError for an unreadable
    file and for one whose size is not the annotation's.
    """
    pixels = _decode(image.file)
    if pixels.size != (image.width, image.height):
        raise UserError(
            f"{image.file}: {pixels.size[0]}x{pixels.size[1]} pixels, "
            f"but its annotation says {image.width}x{image.height}"
        )
    height, width = output_size(image.height, image.width, short_side, max_side)
    resized = np.asarray(pixels.resize((width, height), PIL.Image.Resampling.BILINEAR))
    return resized if config.INPUT.FORMAT == "RGB" else resized[:, :, ::-1]


def _decode(file: Path) -> PIL.Image.Image:
    try:
        with PIL.Image.open(file) as opened:
            return PIL.ImageOps.exif_transpose(opened).convert("RGB")
    except FileNotFoundError:
        raise UserError(f"{file}: no such image, though the image list names it") from None
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{file}: not a readable image ({error})") from None


def output_size(height: int, width: int, short_side: int, max_side: int) -> tuple[int, int]:
    """(height, width) with the shorter side `short_side`, unless the longer exceeds `max_side`."""
    scale = short_side * 1.0 / min(height, width)
    new_height, new_width = short_side * 1.0, scale * width
    if height >= width:
        new_height, new_width = scale * height, short_side * 1.0
    longest = max(new_height, new_width)
    if longest > max_side:
        scale = max_side * 1.0 / longest
        new_height, new_width = new_height * scale, new_width * scale
    return int(new_height + 0.5), int(new_width + 0.5)


def transform_boxes(boxes: np.ndarray, old: tuple, new: tuple, flip: bool) -> np.ndarray:
    """Boxes (G,4) after resizing from `old` to `new` (H,W), mirrored if `flip`, clipped."""
    scale = np.array([new[1] * 1.0 / old[1], new[0] * 1.0 / old[0]] * 2)
    boxes = boxes * scale
    if flip:
        boxes = np.stack([new[1] - boxes[:, 2], boxes[:, 1], new[1] - boxes[:, 0], boxes[:, 3]], 1)
    return np.clip(boxes, 0, [new[1], new[0], new[1], new[0]])


def training_sample(image: VocImage, config: Any, random: np.random.Generator) -> Image:
    """One image at a random size, perhaps mirrored, with its target."""
    short_side = int(random.choice(config.INPUT.MIN_SIZE_TRAIN))
    flip = config.INPUT.RANDOM_FLIP == "horizontal" and random.uniform() < 0.5
    return augmented(image, config, short_side, flip)


def augmented(image: VocImage, config: Any, short_side: int, flip: bool) -> Image:
    """One image and its target for training, as detectron2/data/dataset_mapper.py."""
    pixels = load_image(image, config, short_side, config.INPUT.MAX_SIZE_TRAIN)
    if flip:
        pixels = pixels[:, ::-1]
    # VOC's boxes are 1-based and include their last pixel: (1, W) covers an image of width W.
    boxes = np.array([o.box for o in image.objects], dtype=np.float64).reshape(-1, 4)
    boxes = boxes - [1.0, 1.0, 0.0, 0.0]
    boxes = transform_boxes(boxes, (image.height, image.width), pixels.shape[:2], flip)
    sides = torch.from_numpy((boxes[:, 2:] - boxes[:, :2]).astype(np.float32))
    kept = (sides > 1e-5).all(dim=1)
    target = Target(
        torch.from_numpy(boxes.astype(np.float32))[kept],
        torch.tensor([o.category for o in image.objects], dtype=torch.int64)[kept],
    )
    return {"image": _to_tensor(pixels), "target": target}


def test_sample(image: VocImage, config: Any) -> Image:
    """One image for evaluation, with the size that detections are wanted in."""
    pixels = load_image(image, config, config.INPUT.MIN_SIZE_TEST, config.INPUT.MAX_SIZE_TEST)
    return {"image": _to_tensor(pixels), "height": image.height, "width": image.width}


def _to_tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def global_batches(
    images: list[VocImage], batch_size: int, seed: int, group_by_orientation: bool
) -> Iterator[list[Slot]]:
    """Endless batches over all processes: shuffled passes, in groups of equal orientation.

    As TrainingSampler with AspectRatioGroupedDataset of detectron2/data.
    """
    group_size = math.gcd(_GROUP, batch_size)
    waiting: dict[bool, list[Slot]] = {False: [], True: []}
    batch: list[Slot] = []
    for slot in enumerate(_shuffled_passes(len(images), seed)):
        image = images[slot[1]]
        group = waiting[group_by_orientation and image.width > image.height]
        group.append(slot)
        if len(group) == group_size:
            batch += group
            group.clear()
        if len(batch) == batch_size:
            yield batch
            batch = []


def _shuffled_passes(size: int, seed: int) -> Iterator[int]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(size, generator=generator).tolist()


def training_batches(
    images: list[VocImage], config: Any, seed: int, first: int
) -> Iterator[list[Image]]:
    """This process's share of each iteration's batch, from iteration `first` on, without end."""
    if config.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        images = [image for image in images if image.objects]
    sample = partial(_slot_sample, images, config, seed)
    return _load(sample, _Shares(images, config, seed, first), config)


def test_batches(images: list[VocImage], config: Any) -> Iterator[list[Image]]:
    """Each image, resized for evaluation, as a batch of one."""
    return _load(partial(test_sample, config=config), [[image] for image in images], config)


def _slot_sample(images: list[VocImage], config: Any, seed: int, slot: Slot) -> Image:
    position, index = slot
    return training_sample(images[index], config, np.random.default_rng([seed, position]))


def _load(
    sample: Callable[[Any], Image], batches: Iterable[list[Any]], config: Any
) -> Iterator[list[Image]]:
    workers = config.DATALOADER.NUM_WORKERS
    loader: DataLoader = DataLoader(
        _Samples(sample),
        batch_sampler=batches,
        num_workers=workers,
        # A worker must be this process's own child for the kernel to end it with its parent.
        multiprocessing_context="fork" if workers else None,
        collate_fn=list,
        worker_init_fn=set_up_worker,
        pin_memory=config.MODEL.DEVICE == "cuda",
    )
    for batch in loader:
        for item in batch:
            if isinstance(item, UserError):
                raise item
        yield batch


class _Samples(Dataset):
    """A sample of each key. A mistake is returned: a worker could only raise its traceback."""

    def __init__(self, sample: Callable[[Any], Image]) -> None:
        self.sample = sample

    def __getitem__(self, key: Any) -> Image | UserError:
        try:
            return self.sample(key)
        except UserError as error:
            return error


class _Shares:
    """Each global batch's part for this process, as slots, from iteration `first` on."""

    def __init__(self, images: list[VocImage], config: Any, seed: int, first: int) -> None:
        size = config.SOLVER.IMS_PER_BATCH
        self.share = size // distributed.world_size()
        self.start = self.share * distributed.rank()
        grouping = config.DATALOADER.ASPECT_RATIO_GROUPING
        self.batches = islice(global_batches(images, size, seed, grouping), first, None)

    def __iter__(self) -> Iterator[list[Slot]]:
        for batch in self.batches:
            yield batch[self.start : self.start + self.share]
