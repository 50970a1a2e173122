"""Batch-norm statistics for evaluation: averages over many batches instead of a moving one."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats
from torch import nn

from benchmarks.datasets.records import LabelledImage
from benchmarks.torchvision_engine.loader import training_batches
from common import distributed


@contextmanager
def precise_statistics(
    model: nn.Module, images: list[LabelledImage], config: Any, seed: int
) -> Iterator[None]:
    """Inside the block the batch norms hold precise statistics; training's come back after.

    So an evaluation changes nothing in the training that goes on. `seed` decides the batches.
    """
    settings = config.TEST.PRECISE_BN
    model.train()
    layers = get_bn_modules(model)
    before = [(layer.running_mean.clone(), layer.running_var.clone()) for layer in layers]
    counts = [layer.num_batches_tracked.clone() for layer in layers]
    if layers and settings.ENABLED:
        torch.manual_seed(seed)  # the losses' sampling, which runs along
        batches = training_batches(images, config, seed, first=0)
        with torch.no_grad():
            update_bn_stats(model, islice(batches, settings.NUM_ITER), settings.NUM_ITER)
    _average_over_processes(layers)
    yield
    for layer, (mean, variance), count in zip(layers, before, counts):
        layer.running_mean, layer.running_var = mean, variance
        layer.num_batches_tracked = count
    model.train()


def _average_over_processes(layers: list[Any]) -> None:
    """Without SyncBN each process saw its own part of the batches; all must evaluate one model."""
    for layer in layers:
        for statistics in (layer.running_mean, layer.running_var):
            distributed.sum_over_processes(statistics).div_(distributed.world_size())
