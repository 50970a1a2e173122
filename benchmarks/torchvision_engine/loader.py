"""The order in which training sees the images, and the workers that prepare them.

A sample is a pure function of (seed, its position in the run, the image), and a batch of
(seed, iteration): a resumed run, another number of workers or of processes sees the same data.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks import segmentation_data
from benchmarks.datasets.records import LabelledImage
from benchmarks.torchvision_engine import detection_data
from common import distributed
from common.errors import UserError
from common.shutdown import set_up_worker

# The published runs use 8 GPUs with 2 images each, and Detectron2 groups by orientation on each
# GPU. Groups of two make the same batches on any number of processes.
_GROUP = 2

Slot = tuple[int, int]  # position in the run, index of the image
Sample = Any  # a detector's Image or a SegmentationImage


def global_batches(
    images: list[LabelledImage], batch_size: int, seed: int, group_by_orientation: bool
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
    images: list[LabelledImage], config: Any, seed: int, first: int
) -> Iterator[list[Sample]]:
    """This process's share of each iteration's batch, from iteration `first` on, without end."""
    if config.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        images = [image for image in images if image.objects]
    sample = partial(_slot_sample, images, config, seed)
    return load(sample, _Shares(images, config, seed, first), config)


def test_batches(images: list[LabelledImage], config: Any) -> Iterator[list[Sample]]:
    """Each image, resized for evaluation, as a batch of one."""
    sample = partial(_data(config).test_sample, config=config)
    return load(sample, [[image] for image in images], config)


def _slot_sample(images: list[LabelledImage], config: Any, seed: int, slot: Slot) -> Sample:
    position, index = slot
    random = np.random.default_rng([seed, position])
    return _data(config).training_sample(images[index], config, random)


def _data(config: Any) -> ModuleType:
    """What makes the samples that the configured model takes."""
    return segmentation_data if "SEM_SEG_HEAD" in config.MODEL else detection_data


def load(
    sample: Callable[[Any], Any], batches: Iterable[list[Any]], config: Any
) -> Iterator[list[Any]]:
    """The samples of each batch of keys, made by DATALOADER.NUM_WORKERS processes.

    Raises UserError where `sample` does.
    """
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

    def __init__(self, sample: Callable[[Any], Any]) -> None:
        self.sample = sample

    def __getitem__(self, key: Any) -> Any:
        try:
            return self.sample(key)
        except UserError as error:
            return error


class _Shares:
    """Each global batch's part for this process, as slots, from iteration `first` on."""

    def __init__(self, images: list[LabelledImage], config: Any, seed: int, first: int) -> None:
        size = config.SOLVER.IMS_PER_BATCH
        self.share = size // distributed.world_size()
        self.start = self.share * distributed.rank()
        grouping = config.DATALOADER.ASPECT_RATIO_GROUPING
        self.batches = islice(global_batches(images, size, seed, grouping), first, None)

    def __iter__(self) -> Iterator[list[Slot]]:
        for batch in self.batches:
            yield batch[self.start : self.start + self.share]
