"""COCO average precision of boxes and masks, by pycocotools.

As detectron2/evaluation/coco_evaluation.py calls it: masks have the area of their pixels, not of
their box, and at most 100 detections of an image count.
"""

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from benchmarks.evaluation.image_ids import check_image_ids
from common.parallel import cores, in_order

_MANY = 20_000  # predictions: from here on several processes pay
BOXES, MASKS = "APb", "APm"
_KINDS = {BOXES: "bbox", MASKS: "segm"}  # pycocotools' names
# COCOeval.stats begins with AP at these overlaps, then of objects of these sizes.
SUFFIXES = ("", "50", "75", "_small", "_medium", "_large")


def coco_predictions(
    image_id: str,
    boxes: np.ndarray,
    scores: np.ndarray,
    classes: np.ndarray,
    masks: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """One image's detections, small: boxes (D,4) float32, scores (D,), classes (D,).

    masks (D,H,W) bool become run lengths; None where there are none.
    """
    sides = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    predictions = [
        {"image_id": image_id, "category_id": category, "bbox": box, "score": score}
        for category, box, score in zip(classes.tolist(), sides.tolist(), scores.tolist())
    ]
    if masks is not None:
        for prediction, mask in zip(predictions, masks):
            prediction["segmentation"] = pycocotools.mask.encode(np.asfortranarray(mask, np.uint8))
    return predictions


def coco_metrics(
    predictions: Sequence[dict[str, Any]],
    annotations: Path,
    image_ids: Sequence[str],
    classes: Sequence[str],
    with_masks: bool,
) -> dict[str, float]:
    """APb, APb50, APb75, APb_small, _medium, _large and APb-CLASS in percent; with masks also APm.

    predictions: of `coco_predictions`, categories being indices into `classes`, which are the
    file's categories in the order of their ids. What no object is there to be found for (a class,
    a size) is left out. Raises UserError for a prediction whose image is not in `image_ids`.
    """
    check_image_ids((p["image_id"] for p in predictions), image_ids)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(annotations)
        category_ids = sorted(truth.getCatIds())
        metrics: dict[str, float] = {}
        for kind in (BOXES, MASKS) if with_masks else (BOXES,):
            found = _results(truth, predictions, category_ids, kind)
            evaluation = COCOeval(truth, found, _KINDS[kind])
            evaluation.params.imgIds = sorted(int(image_id) for image_id in image_ids)
            _accumulate(evaluation, cores() if len(predictions) > _MANY else 1)
            evaluation.summarize()
            metrics |= _percentages(evaluation, kind, classes)
    return metrics


def _accumulate(evaluation: COCOeval, workers: int) -> None:
    """Precision and recall of all categories, which are independent of each other."""
    everything = evaluation.params.catIds
    # Every n-th: neighbours in the list are often frequent together.
    parts = [everything[start::workers] for start in range(workers)]

    def evaluate(categories: list[int]) -> tuple[np.ndarray, np.ndarray]:
        evaluation.params.catIds = categories
        evaluation.evaluate()
        evaluation.accumulate()
        return evaluation.eval["precision"], evaluation.eval["recall"]

    if workers == 1:
        evaluate(everything)
        return
    precision, recall = zip(*in_order(evaluate, parts, workers))
    place = np.argsort(np.concatenate(parts))
    evaluation.eval = {
        "precision": np.concatenate(precision, axis=2)[:, :, place],
        "recall": np.concatenate(recall, axis=1)[:, place],
    }


def _results(
    truth: COCO, predictions: Sequence[dict[str, Any]], category_ids: list[int], kind: str
) -> COCO:
    """The predictions as pycocotools wants them, which writes into what it gets."""
    if not predictions:
        nothing = COCO()
        nothing.dataset = {**truth.dataset, "annotations": []}
        nothing.createIndex()
        return nothing
    # A result that has a box is given that box's area, also when masks are evaluated.
    part = "bbox" if kind == BOXES else "segmentation"
    results = [
        {
            "image_id": int(p["image_id"]),
            "category_id": category_ids[p["category_id"]],
            "score": p["score"],
            part: p[part],
        }
        for p in predictions
    ]
    return truth.loadRes(results)


def _percentages(evaluation: COCOeval, kind: str, classes: Sequence[str]) -> dict[str, float]:
    metrics = {f"{kind}{suffix}": 100 * v for suffix, v in zip(SUFFIXES, evaluation.stats)}
    # (overlaps, recalls, classes, sizes, limits): all sizes, 100 detections.
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    for number, name in enumerate(classes):
        metrics[f"{kind}-{name}"] = 100 * precision[:, :, number].mean()
    return {name: float(value) for name, value in metrics.items() if value >= 0}
