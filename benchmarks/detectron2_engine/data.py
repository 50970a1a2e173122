"""Detectron2's data: this project's datasets made known to it, and its loaders, continued."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.datasets import (
    load_coco_json,
    register_coco_instances,
    register_pascal_voc,
)
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.data.samplers import TrainingSampler
from detectron2.utils import comm

from benchmarks.datasets.catalog import read_set
from benchmarks.datasets.coco import COCO_SETS, CocoSet
from benchmarks.datasets.voc import VOC_SETS
from benchmarks.detectron2_engine.cityscapes import register_cityscapes
from benchmarks.detectron2_engine.segmentation import SegmentationMapper, training_images
from common.errors import UserError


def register_datasets() -> None:
    """Make the sets known to Detectron2 that it does not have: the miniatures and the parts."""
    known = set(DatasetCatalog.list())
    for name in VOC_SETS.keys() - known:
        voc = VOC_SETS[name]
        register_pascal_voc(name, str(voc.path), voc.split, voc.year, voc.classes)
    for name in COCO_SETS.keys() - known:
        _register_coco(COCO_SETS[name])
    register_cityscapes()


def _register_coco(dataset: CocoSet) -> None:
    files = str(dataset.annotations), str(dataset.images)

    def part() -> list[dict[str, Any]]:
        records = load_coco_json(*files, dataset.name)
        return [records[position] for position in dataset.positions(len(records))]

    register_coco_instances(dataset.name, {}, *files)
    if dataset.part:
        DatasetCatalog.pop(dataset.name)
        DatasetCatalog.register(dataset.name, part)


def train_loader(cfg: CfgNode, first: int) -> Any:
    """Detectron2's loader, its data order continued from iteration `first`."""
    if _segments(cfg):
        dataset: list[Any] = training_images(cfg)
    else:
        dataset = get_detection_dataset_dicts(
            cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
        )
    share = cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()
    sampler = _ContinuingSampler(len(dataset), cfg.SEED, skip=first * share)
    mapper = SegmentationMapper(cfg, True) if _segments(cfg) else _Mapper(cfg, True)
    return build_detection_train_loader(cfg, mapper, dataset=dataset, sampler=sampler)


def test_loader(cfg: CfgNode, name: str) -> Any:
    """Detectron2's loader of the dataset `name`, naming files that cannot be read."""
    if _segments(cfg):
        workers = cfg.DATALOADER.NUM_WORKERS
        mapper = SegmentationMapper(cfg, False)
        return build_detection_test_loader(read_set(name), mapper=mapper, num_workers=workers)
    return build_detection_test_loader(cfg, name, _Mapper(cfg, False))


def _segments(cfg: CfgNode) -> bool:
    return cfg.MODEL.META_ARCHITECTURE == "SlidingSegmentor"


class _ContinuingSampler(TrainingSampler):
    """Detectron2's order without the part that a resumed run has already seen."""

    def __init__(self, size: int, seed: int, skip: int) -> None:
        super().__init__(size, seed=seed)
        self.skip = skip

    def __iter__(self) -> Iterator[int]:
        return islice(super().__iter__(), self.skip, None)


class _Mapper(DatasetMapper):
    """Names the file when an image cannot be read."""

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        try:
            return super().__call__(dataset_dict)
        except (OSError, SyntaxError, SizeMismatchError) as error:
            file = dataset_dict["file_name"]
            raise UserError(f"{file}: not a readable image ({error})") from None
