"""One engine's half of benchmarks/bench.py: this engine's training step and its data loader."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.datasets.catalog import read_sets
from benchmarks.torchvision_engine.loader import Sample, training_batches
from benchmarks.torchvision_engine.solver import build_schedule, set_learning_rate
from benchmarks.torchvision_engine.train import build_run, train_step
from benchmarks.weights import Backbone


def training_step(
    config: Any, backbone: Backbone | None, batches: list[list[Sample]]
) -> Callable[[int], None]:
    """A function that does the iteration of a number, on the `batches` in turn.

    As a run does it. The learning rate stays the first iteration's.
    """
    device = torch.device(config.MODEL.DEVICE)
    run = build_run(config, backbone, 0, Path("unused"), device, stop=False)
    set_learning_rate(run.optimizer, config.SOLVER, build_schedule(config.SOLVER), 0)

    def step(iteration: int) -> None:
        train_step(run, run.model, batches[iteration % len(batches)], iteration)

    return step


def loaded_batches(config: Any) -> Iterator[list[Sample]]:
    """The training batches of this engine's loader, without end."""
    return training_batches(read_sets(config.DATASETS.TRAIN), config, 0, 0)
