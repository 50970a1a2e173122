"""One engine's half of benchmarks/bench.py: Detectron2's training step and its data loader."""

from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage

from benchmarks.detectron2_engine import detectron2_config
from benchmarks.detectron2_engine.data import register_datasets, train_loader
from benchmarks.detectron2_engine.models import pretrained_model
from benchmarks.detectron2_engine.trainer import Trainer
from benchmarks.weights import Backbone


def training_step(
    config: Any, backbone: Backbone | None, batches: list[list[Any]]
) -> Callable[[int], None]:
    """A function that does the iteration of a number, on the torchvision engine's `batches`.

    As DefaultTrainer does it. The learning rate stays the first iteration's.
    """
    cfg = detectron2_config(config, 0, Path("unused"))
    torch.manual_seed(0)
    model = pretrained_model(cfg, backbone)
    optimizer = Trainer.build_optimizer(cfg, model)
    Trainer.build_lr_scheduler(cfg, optimizer)
    kind = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
    trainer = kind(model, cycle([_in_their_words(batch) for batch in batches]), optimizer)

    def step(iteration: int) -> None:
        trainer.iter = iteration
        with EventStorage(iteration):
            trainer.run_step()

    return step


def loaded_batches(config: Any) -> Iterator[list[Any]]:
    """The training batches of Detectron2's loader, without end."""
    register_datasets()
    return iter(train_loader(detectron2_config(config, 0, Path("unused")), 0))


def _in_their_words(batch: list[Any]) -> list[dict[str, Any]]:
    """Samples of the torchvision engine as Detectron2's models take them."""
    return [{**sample, **_instances(sample)} for sample in batch]


def _instances(sample: Any) -> dict[str, Any]:
    if "target" not in sample:  # a segmentor's
        return {}
    target = sample["target"]
    instances = Instances(tuple(sample["image"].shape[-2:]))
    instances.gt_boxes = Boxes(target.boxes)
    instances.gt_classes = target.classes
    if target.polygons is not None:
        instances.gt_masks = PolygonMasks(target.polygons)
    return {"instances": instances}
