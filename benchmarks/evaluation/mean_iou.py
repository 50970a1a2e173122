"""Semantic segmentation: intersection over union from one confusion matrix.

As mmseg/core/evaluation/metrics.py of mmsegmentation 0.11.0: counted over all pixels of all images,
unlabelled ones left out; means are over the classes for which the value exists.
"""

from collections.abc import Sequence

import numpy as np

from benchmarks.datasets.records import LabelledImage
from benchmarks.datasets.segmentation import (
    IGNORED,
    CityscapesSegmentationSet,
    SegmentationSet,
    open_labels,
)
from benchmarks.evaluation.cityscapes_semantic import cityscapes_scores


def image_confusion(image: LabelledImage, predicted: np.ndarray, classes: int) -> np.ndarray:
    """`confusion_matrix` of one image's predicted classes (H,W) against its label file.

    Raises UserError for labels that cannot be read.
    """
    return confusion_matrix(predicted, open_labels(image, classes), classes)


def confusion_matrix(predicted: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """(K,K) int64 pixel counts: rows are labels, columns predictions, both (H,W) class indices."""
    labelled = labels != IGNORED
    pairs = labels[labelled].astype(np.int64) * classes + predicted[labelled]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def segmentation_metrics(dataset: SegmentationSet, confusion: np.ndarray) -> dict[str, float]:
    """Metrics in percent by the definitions of the dataset, from the sum over its images."""
    metrics = mean_iou_metrics(confusion, dataset.classes)
    if isinstance(dataset, CityscapesSegmentationSet):
        metrics |= cityscapes_scores(confusion)
    return metrics


def mean_iou_metrics(confusion: np.ndarray, classes: Sequence[str]) -> dict[str, float]:
    """mIoU, mAcc (recall), pixel_acc and IoU-CLASS, in percent.

    A class that is neither labelled nor predicted has no IoU: it is left out, also of the mean.
    """
    right = np.diag(confusion).astype(np.float64)
    labelled, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    with np.errstate(invalid="ignore"):
        iou = 100 * right / (labelled + predicted - right)
        recall = 100 * right / labelled
    return {
        "mIoU": float(np.nanmean(iou)),
        "mAcc": float(np.nanmean(recall)),
        "pixel_acc": float(100 * right.sum() / confusion.sum()),
        **{f"IoU-{name}": float(v) for name, v in zip(classes, iou) if not np.isnan(v)},
    }
