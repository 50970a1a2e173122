"""Detectron2's evaluators, each with this project's names and per-class numbers."""

import math

from detectron2.data import DatasetCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, PascalVOCDetectionEvaluator
from detectron2.utils import comm

from benchmarks.datasets.catalog import find_set
from benchmarks.datasets.cityscapes import CityscapesSet
from benchmarks.datasets.coco import CocoSet
from benchmarks.datasets.segmentation import SegmentationSet
from benchmarks.datasets.voc import VocSet
from benchmarks.detectron2_engine.cityscapes import CityscapesEvaluator
from benchmarks.detectron2_engine.segmentation import SegmentationEvaluator
from benchmarks.evaluation.coco_ap import BOXES, MASKS, coco_metrics
from benchmarks.evaluation.voc_ap import Prediction, voc_metrics

METRICS = "metrics"  # the one entry of every evaluator's result: percentages by name


def evaluator(name: str) -> DatasetEvaluator:
    """The evaluator of the dataset `name`."""
    dataset = find_set(name)
    if isinstance(dataset, SegmentationSet):
        return SegmentationEvaluator(dataset, METRICS)
    if isinstance(dataset, CocoSet):
        # Reading it tells Detectron2 the category ids, without which its AP is nearly 0.
        DatasetCatalog.get(name)
        return _CocoEvaluator(dataset)
    if isinstance(dataset, CityscapesSet):
        return CityscapesEvaluator(dataset, METRICS)
    return _VocEvaluator(dataset)


class _VocEvaluator(PascalVOCDetectionEvaluator):
    """Detectron2's AP, AP50 and AP75, and this project's AP50 of each class beside them."""

    def __init__(self, dataset: VocSet) -> None:
        super().__init__(dataset.name)
        self.dataset = dataset

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        gathered = comm.gather(self._predictions, dst=0)
        result = super().evaluate()
        if result is None:
            return None
        predictions = [
            _parse(category, line)
            for part in gathered
            for category, lines in part.items()
            for line in lines
        ]
        images, classes, year = self.dataset.read(), self.dataset.classes, self.dataset.year
        ours = voc_metrics(predictions, images, classes, year)
        return {METRICS: {**ours, **result["bbox"]}}


def _parse(category: int, line: str) -> Prediction:
    image_id, score, *corners = line.split()
    x0, y0, x1, y1 = (float(corner) for corner in corners)
    return Prediction(image_id, category, float(score), (x0, y0, x1, y1))


class _CocoEvaluator(COCOEvaluator):
    """Detectron2's values under this project's names."""

    def __init__(self, dataset: CocoSet) -> None:
        super().__init__(dataset.name)
        self.dataset = dataset

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        result = super().evaluate()
        if not result:  # not the main process
            return None
        metrics = {
            _coco_name(kind, name): value
            for kind, values in ((BOXES, result["bbox"]), (MASKS, result.get("segm", {})))
            for name, value in values.items()
            if math.isfinite(value)
        }
        return {METRICS: metrics or self._metrics_of_nothing()}

    def _metrics_of_nothing(self) -> dict[str, float]:
        """Detectron2 has no numbers for a model that detects nothing at all; they are 0."""
        ids = [image.image_id for image in self.dataset.read()]
        return coco_metrics([], self.dataset.annotations, ids, self.dataset.classes, True)


def _coco_name(kind: str, name: str) -> str:
    """AP, AP50, APs, AP-person → APb, APb50, APb_small, APb-person."""
    sizes = {"APs": "_small", "APm": "_medium", "APl": "_large"}
    return kind + sizes.get(name, name.removeprefix("AP"))
