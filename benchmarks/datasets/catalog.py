"""All datasets by the names that configurations use."""

from collections.abc import Iterable

from benchmarks.datasets.cityscapes import CITYSCAPES_SETS, CityscapesSet
from benchmarks.datasets.coco import COCO_SETS, CocoSet
from benchmarks.datasets.records import LabelledImage
from benchmarks.datasets.segmentation import SEGMENTATION_SETS, SegmentationSet
from benchmarks.datasets.voc import VOC_SETS, VocSet
from common.errors import UserError, did_you_mean

Dataset = VocSet | CocoSet | CityscapesSet | SegmentationSet

DATASETS: dict[str, Dataset] = {
    **VOC_SETS,
    **COCO_SETS,
    **CITYSCAPES_SETS,
    **SEGMENTATION_SETS,
}


def find_set(name: str) -> Dataset:
    """The dataset called `name`.

    Raises UserError when it is unknown, or when what it is made of is not on the disk.
    """
    if name not in DATASETS:
        raise UserError(f"{name}: unknown dataset{did_you_mean(name, DATASETS)}")
    dataset = DATASETS[name]
    dataset.check()
    return dataset


def read_sets(names: Iterable[str]) -> list[LabelledImage]:
    """Every image of each dataset, one dataset after another. Raises UserError as `read_set`."""
    return [image for name in names for image in read_set(name)]


def read_set(name: str) -> list[LabelledImage]:
    """Every image of a dataset, in the dataset's order.

    Raises UserError as `find_set` does, and for annotations that cannot be read.
    """
    return find_set(name).read()
