"""Semantic segmentation's metrics: a naive loop, torchmetrics, and Cityscapes' own evaluation."""

import numpy as np
import pytest
import torch
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling
from cityscapesscripts.helpers.labels import trainId2label
from PIL import Image
from torchmetrics.classification import MulticlassJaccardIndex

from benchmarks.datasets.segmentation import CITYSCAPES_CLASSES, SEGMENTATION_SETS
from benchmarks.evaluation.mean_iou import (
    confusion_matrix,
    mean_iou_metrics,
    segmentation_metrics,
)

NAMES = ("a", "b", "c", "d", "e")


@pytest.fixture
def pictures():
    """Labels and predictions of three images; class 3 is never labelled, class 4 nowhere."""
    random = np.random.default_rng(0)
    labels = random.choice([0, 1, 2, 255], (3, 20, 30), p=[0.5, 0.2, 0.2, 0.1]).astype(np.uint8)
    predicted = np.where(random.random(labels.shape) < 0.7, labels, random.integers(0, 4))
    return labels, np.where(predicted == 255, 3, predicted)


def metrics(labels, predicted):
    return mean_iou_metrics(confusion_matrix(predicted, labels, len(NAMES)), NAMES)


def test_a_naive_count_agrees(pictures):
    labels, predicted = pictures
    found = metrics(labels, predicted)
    there = labels != 255
    ious, recalls = [], []
    for number, name in enumerate(NAMES):
        truth, guess = (labels == number) & there, (predicted == number) & there
        if (truth | guess).any():
            ious.append(100 * (truth & guess).sum() / (truth | guess).sum())
            assert found[f"IoU-{name}"] == pytest.approx(ious[-1])
        if truth.any():
            recalls.append(100 * (truth & guess).sum() / truth.sum())
    assert (len(ious), len(recalls)) == (4, 3)
    assert "IoU-e" not in found
    assert found["mIoU"] == pytest.approx(np.mean(ious))
    assert found["mAcc"] == pytest.approx(np.mean(recalls))
    assert found["pixel_acc"] == pytest.approx(100 * (labels == predicted)[there].mean())


def test_torchmetrics_agrees(pictures):

    labels, predicted = (torch.from_numpy(x.astype(np.int64)) for x in pictures)
    iou = MulticlassJaccardIndex(5, ignore_index=255, average="none")
    expected = 100 * iou(predicted, labels)
    found = metrics(*pictures)
    for number, name in enumerate(NAMES[:4]):
        assert found[f"IoU-{name}"] == pytest.approx(expected[number].item(), abs=1e-4)


def test_cityscapes_own_evaluation_of_files_agrees(tmp_path, monkeypatch):
    random = np.random.default_rng(1)
    confusion, pairs = 0, []
    to_ids = np.array([trainId2label[number].id for number in range(19)])
    for number in range(2):
        truth = random.choice([0, 2, 11, 12, 13, 13, 255], (24, 40)).astype(np.uint8)
        noise = random.choice([0, 1, 11, 13, 14], truth.shape)
        predicted = np.where((random.random(truth.shape) < 0.6) & (truth != 255), truth, noise)
        confusion = confusion + confusion_matrix(predicted, truth, 19)
        known = np.where(truth == 255, 4, to_ids[np.minimum(truth, 18)])  # 4 is "static", ignored
        files = []
        for kind, values in (("pred", to_ids[predicted]), ("gtFine_labelIds", known)):
            files.append(str(tmp_path / f"aachen_{number:06d}_000019_{kind}.png"))
            Image.fromarray(values.astype(np.uint8)).save(files[-1])
        pairs.append(files)
    official = evalPixelLevelSemanticLabeling
    for key, value in (("quiet", True), ("JSONOutput", False), ("evalInstLevelScore", False)):
        monkeypatch.setattr(official.args, key, value)
    expected = official.evaluateImgLists(*zip(*pairs), official.args)
    found = segmentation_metrics(SEGMENTATION_SETS["cityscapes_fine_sem_seg_val"], confusion)
    assert found["mIoU"] == pytest.approx(100 * expected["averageScoreClasses"], abs=1e-9)
    assert found["mIoU_category"] == pytest.approx(
        100 * expected["averageScoreCategories"], abs=1e-9
    )
    for name in CITYSCAPES_CLASSES:
        theirs = 100 * expected["classScores"][name]
        assert np.isnan(theirs) or found[f"IoU-{name}"] == pytest.approx(theirs, abs=1e-9)
