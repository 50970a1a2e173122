"""What would otherwise end a benchmark later: missing data, impossible numbers, things at odds."""

from typing import Any

import torch

from benchmarks.config import identity
from benchmarks.datasets.catalog import Dataset, find_set
from benchmarks.datasets.cityscapes import CityscapesSet
from benchmarks.datasets.segmentation import SegmentationSet
from benchmarks.datasets.voc import VocSet
from common import distributed
from common.errors import UserError


def check(config: Any, device: torch.device) -> None:
    """Raise UserError for a configuration that cannot be run on `device` with the data there is."""
    if len(config.DATASETS.TEST) != 1 or not config.DATASETS.TRAIN:
        raise UserError("DATASETS: at least one TRAIN set and exactly one TEST set are needed")
    datasets = [find_set(name) for name in (*config.DATASETS.TRAIN, *config.DATASETS.TEST)]
    if "SVM" in config:
        _check_svm(config, datasets)
        return
    if "SEM_SEG_HEAD" in config.MODEL:
        _check_segmentation(config, datasets)
    else:
        _check_detection(config, datasets)
    _check_training(config, device)


def _check_svm(config: Any, datasets: list[Dataset]) -> None:
    choice, choices = config.SVM.CHOOSE_COST_ON, ("cross_validation", "test")
    if choice not in choices:
        raise UserError(f"SVM.CHOOSE_COST_ON is {choice}: choose one of {choices}")
    for dataset in datasets:
        if not isinstance(dataset, VocSet):
            raise UserError(f"DATASETS: {dataset.name} is not a VOC set, which the SVMs need")
    if len(config.DATASETS.TRAIN) != 1:
        raise UserError("DATASETS.TRAIN: the SVMs are fitted on exactly one set")


def _check_detection(config: Any, datasets: list[Dataset]) -> None:
    for dataset in datasets:
        if isinstance(dataset, SegmentationSet):
            _refuse(dataset, "detection")
        _check_classes(config, "ROI_HEADS", dataset)
        if isinstance(dataset, VocSet) and config.MODEL.MASK_ON:
            raise UserError(f"MODEL.MASK_ON is True, but {dataset.name} has no outlines")
        if isinstance(dataset, CityscapesSet) and not config.MODEL.MASK_ON:
            raise UserError(f"MODEL.MASK_ON is False, but {dataset.name} is evaluated by masks")


def _check_segmentation(config: Any, datasets: list[Dataset]) -> None:
    for dataset in datasets:
        if not isinstance(dataset, SegmentationSet):
            _refuse(dataset, "semantic segmentation")
        _check_classes(config, "SEM_SEG_HEAD", dataset)
    size, stride = config.TEST.SLIDING_WINDOW.SIZE, config.TEST.SLIDING_WINDOW.STRIDE
    if size < 0 or (size and not 0 < stride <= size):
        raise UserError(
            f"TEST.SLIDING_WINDOW: SIZE {size} and STRIDE {stride} leave pixels out: "
            "STRIDE is 1 to SIZE; SIZE 0 is the whole image"
        )


def _refuse(dataset: Dataset, task: str) -> None:
    raise UserError(f"DATASETS: {dataset.name} is not a dataset for {task}, which the model does")


def _check_classes(config: Any, head: str, dataset: Dataset) -> None:
    wanted, classes = config.MODEL[head].NUM_CLASSES, len(dataset.classes)
    if classes != wanted:
        raise UserError(f"MODEL.{head}.NUM_CLASSES is {wanted}, but {dataset.name} has {classes}")


def _check_training(config: Any, device: torch.device) -> None:
    solver, processes = config.SOLVER, distributed.world_size()
    if solver.IMS_PER_BATCH < 1 or solver.IMS_PER_BATCH % processes:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH is {solver.IMS_PER_BATCH} over all processes: "
            f"it must be a multiple of their number, {processes}"
        )
    for key in ("MAX_ITER", "CHECKPOINT_PERIOD"):
        if solver[key] < 1:
            raise UserError(f"SOLVER.{key} is {solver[key]}: at least 1 is needed")
    synchronised = [key for key, value in identity(config).items() if value == "SyncBN"]
    if processes > 1 and device.type == "cpu" and synchronised:
        change = " ".join(f"{key} BN" for key in synchronised)
        raise UserError(f"SyncBN over several processes needs GPUs: set {change}")
