"""VOC average precision, as detectron2/evaluation/pascal_voc_evaluation.py counts it.

Its particulars decide the digits: scores are rounded to 3 decimals and boxes to 1 before anything
is compared, boxes include their last pixel (+1), a match needs an overlap above the threshold,
difficult objects count neither way, and 2007 sets use 11 recall points. It is not the MATLAB kit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.datasets.records import LabelledImage
from benchmarks.evaluation.image_ids import check_image_ids
from common.parallel import cores, in_order

_TO_INCLUSIVE = np.array([1.0, 1.0, 0.0, 0.0])  # edges → 1-based, the last pixel included
_MANY = 20_000  # predictions: from here on several processes pay
THRESHOLDS = tuple(range(50, 100, 5))  # percent of overlap


@dataclass(frozen=True)
class Prediction:
    """One detection, rounded as the evaluation's text files round it."""

    image_id: str
    category: int
    score: float
    box: tuple[float, float, float, float]
    """1-based pixels, the last ones included."""


def make_prediction(image_id: str, category: int, score: float, box: np.ndarray) -> Prediction:
    """A detection's `box` (4,) float32 has 0-based corners."""
    corners = (box[0] + 1, box[1] + 1, box[2], box[3])
    x0, y0, x1, y1 = (float(f"{value:.1f}") for value in corners)
    return Prediction(image_id, category, float(f"{score:.3f}"), (x0, y0, x1, y1))


def voc_predictions(
    image_id: str, boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray
) -> list[Prediction]:
    """One image's detections: boxes (D,4) with 0-based edges, scores (D,), classes (D,)."""
    found = zip(classes.tolist(), scores.tolist(), boxes)
    return [make_prediction(image_id, category, s, box) for category, s, box in found]


def voc_metrics(
    predictions: Sequence[Prediction],
    images: Sequence[LabelledImage],
    classes: Sequence[str],
    year: int,
) -> dict[str, float]:
    """AP (mean over thresholds), AP50, AP75 and AP50-CLASS of each class, in percent.

    Raises UserError for a prediction whose image is not among `images`.
    """
    check_image_ids((p.image_id for p in predictions), (image.image_id for image in images))
    per_class: list[list[Prediction]] = [[] for _ in classes]
    for prediction in predictions:
        per_class[prediction.category].append(prediction)

    def of_class(category: int) -> list[float]:
        return _class_ap(per_class[category], images, category, year == 2007)

    numbers = range(len(classes))
    many = len(predictions) > _MANY
    rows = in_order(of_class, numbers, cores()) if many else map(of_class, numbers)
    table = 100 * np.array(list(rows))
    means = table.mean(axis=0)
    metrics = {
        "AP": float(means.mean()),
        "AP50": float(means[THRESHOLDS.index(50)]),
        "AP75": float(means[THRESHOLDS.index(75)]),
    }
    return metrics | {f"AP50-{name}": float(table[c, 0]) for c, name in enumerate(classes)}


def _class_ap(
    predictions: list[Prediction],
    images: Sequence[LabelledImage],
    category: int,
    eleven_points: bool,
) -> list[float]:
    """One class's AP at each threshold, 0 to 1."""
    truth = {
        image.image_id: [o for o in image.objects if o.category == category] for image in images
    }
    wanted = sum(not o.difficult for objects in truth.values() for o in objects)
    if not predictions or not wanted:
        return [0.0] * len(THRESHOLDS)
    # Ties among the rounded scores are frequent, so the sort must be Detectron2's.
    order = np.argsort(-np.array([prediction.score for prediction in predictions]))
    matches = [_best_match(predictions[i], truth[predictions[i].image_id]) for i in order]
    overlaps = np.array([overlap for overlap, _, _ in matches])
    difficult = np.array([is_difficult for _, is_difficult, _ in matches])
    objects = np.array([key for _, _, key in matches])
    curve = _eleven_point_ap if eleven_points else area_under_curve
    result = []
    for threshold in THRESHOLDS:
        hit = overlaps > threshold / 100
        true = _first_of_each(np.where(hit & ~difficult, objects, ""))
        false = ~true & ~(hit & difficult)
        true_sum, false_sum = np.cumsum(true), np.cumsum(false)
        found = np.maximum(true_sum + false_sum, np.finfo(np.float64).eps)
        result.append(curve(true_sum / wanted, true_sum / found))
    return result


def _best_match(prediction: Prediction, objects: list) -> tuple[float, bool, str]:
    """Overlap with the best object, whether that one is difficult, and a name for it."""
    if not objects:
        return -np.inf, False, ""
    boxes = np.array([o.box for o in objects], dtype=float) + _TO_INCLUSIVE
    x0, y0, x1, y1 = prediction.box
    width = np.maximum(np.minimum(boxes[:, 2], x1) - np.maximum(boxes[:, 0], x0) + 1.0, 0.0)
    height = np.maximum(np.minimum(boxes[:, 3], y1) - np.maximum(boxes[:, 1], y0) + 1.0, 0.0)
    intersection = width * height
    areas = (boxes[:, 2] - boxes[:, 0] + 1.0) * (boxes[:, 3] - boxes[:, 1] + 1.0)
    union = (x1 - x0 + 1.0) * (y1 - y0 + 1.0) + areas - intersection
    overlaps = intersection / union
    best = int(np.argmax(overlaps))
    return float(overlaps[best]), objects[best].difficult, f"{prediction.image_id} {best}"


def _first_of_each(names: np.ndarray) -> np.ndarray:
    """Which entries are the first of their name; never those without a name."""
    first = np.zeros(len(names), dtype=bool)
    first[np.unique(names, return_index=True)[1]] = True
    return first & (names != "")


def _eleven_point_ap(recall: np.ndarray, precision: np.ndarray) -> float:
    """Mean over recalls 0, 0.1 ... 1 of the best precision at that recall or beyond."""
    total = 0.0
    for point in np.arange(0.0, 1.1, 0.1):
        beyond = precision[recall >= point]
        total += (beyond.max() if len(beyond) else 0.0) / 11.0
    return float(total)


def area_under_curve(recall: np.ndarray, precision: np.ndarray) -> float:
    """Area under precision made monotonous."""
    recall = np.concatenate(([0.0], recall, [1.0]))
    precision = np.concatenate(([0.0], precision, [0.0]))
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    steps = np.where(recall[1:] != recall[:-1])[0]
    return float(np.sum((recall[steps + 1] - recall[steps]) * precision[steps + 1]))
