"""Cityscapes' instances in Detectron2: this project's records, and its evaluator made to work."""

import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import cityscapesscripts
import cityscapesscripts.helpers.labels
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import CityscapesInstanceEvaluator
from detectron2.structures import BoxMode
from detectron2.utils import comm

from benchmarks.datasets.cityscapes import CITYSCAPES_SETS, CityscapesSet
from benchmarks.datasets.records import LabelledImage
from benchmarks.evaluation.cityscapes_instances import score_folder

_INTERNAL = "deeplearning.projects.cityscapesApi"


def register_cityscapes() -> None:
    """Make the sets known to Detectron2, and cityscapesscripts where it looks for them.

    Its main branch imports them by a path inside its authors' company.
    """
    packages = _INTERNAL.split(".")
    for depth in range(len(packages)):
        name = ".".join(packages[: depth + 1])
        sys.modules.setdefault(name, ModuleType(name))
    for module in (
        cityscapesscripts,
        cityscapesscripts.helpers,
        cityscapesscripts.helpers.labels,
    ):
        sys.modules[f"{_INTERNAL}.{module.__name__}"] = module
    for dataset in CITYSCAPES_SETS.values():
        _register(dataset)


def _register(dataset: CityscapesSet) -> None:
    """Detectron2's own loader gives the same records, but from a pool of forked processes.

    Those inherit this program's handling of SIGTERM and so do not end when the pool ends them.
    """
    if dataset.name in DatasetCatalog.list():
        DatasetCatalog.remove(dataset.name)
    DatasetCatalog.register(dataset.name, lambda: [_record(image) for image in dataset.read()])
    MetadataCatalog.get(dataset.name).thing_classes = list(dataset.classes)


def _record(image: LabelledImage) -> dict[str, Any]:
    """In Detectron2's words."""
    objects = [
        {
            "iscrowd": 0,
            "category_id": thing.category,
            "bbox": list(thing.box),
            "bbox_mode": BoxMode.XYXY_ABS,
            "segmentation": [polygon.tolist() for polygon in thing.polygons or ()],
        }
        for thing in image.objects
    ]
    size = {"height": image.height, "width": image.width}
    names = {"file_name": str(image.file), "image_id": image.image_id}
    return {**names, **size, "annotations": objects}


class CityscapesEvaluator(CityscapesInstanceEvaluator):
    """Detectron2's files of predictions, scored with this project's names and classes.

    Detectron2's own call of the same script writes a file where it was called, which fails with
    today's numpy.
    """

    def __init__(self, dataset: CityscapesSet, entry: str) -> None:
        """`entry`: the one key of the result."""
        super().__init__(dataset.name)
        self.dataset, self.entry = dataset, entry
        # It says so at each evaluation, of a folder that is gone afterwards.
        self._logger.setLevel(logging.WARNING)

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """The metrics, in the main process."""
        comm.synchronize()
        if not comm.is_main_process():
            return None
        truths = {image.name: self.dataset.truth(image) for image in self.dataset.images()}
        metrics = score_folder(Path(self._temp_dir), truths, self.dataset.classes)
        self._working_dir.cleanup()
        return {self.entry: metrics}
