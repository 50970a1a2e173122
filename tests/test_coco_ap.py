"""COCO average precision equals Detectron2's evaluator on recorded predictions."""

import json

import numpy as np
import pytest
from golden.recipe import FOLDER

from benchmarks.evaluation import coco_ap
from benchmarks.evaluation.coco_ap import coco_metrics, coco_predictions
from common.errors import UserError

CLASSES = ("disk", "square", "triangle", "cross")
# Detectron2's names of the metrics, and the kind and suffix that this project gives them.
KINDS = {"bbox": "APb", "segm": "APm"}
SIZES = {"APs": "_small", "APm": "_medium", "APl": "_large"}


@pytest.fixture
def truth(tmp_path):
    recorded = json.loads((FOLDER / "eval_gt.json").read_text())
    file = tmp_path / "instances.json"
    file.write_text(json.dumps(recorded["coco"]))
    return file, [str(image_id) for image_id in recorded["image_ids"]]


def ellipse(box, size=160):
    """The pixels of a square image whose centres lie in the ellipse inscribed in the box."""
    x0, y0, x1, y1 = box
    y, x = np.mgrid[:size, :size] + 0.5
    horizontal = (x - (x0 + x1) / 2) / max((x1 - x0) / 2, 1e-6)
    vertical = (y - (y0 + y1) / 2) / max((y1 - y0) / 2, 1e-6)
    return horizontal**2 + vertical**2 <= 1


def predictions(with_masks=True):
    found = {}
    for one in json.loads((FOLDER / "eval_predictions.json").read_text()):
        found.setdefault(str(one["image_id"]), []).append(one)
    kept = []
    for image_id, image in found.items():
        boxes = np.array([one["box"] for one in image], np.float32)
        masks = np.array([ellipse(one["box"]) for one in image]) if with_masks else None
        scores = np.array([one["score"] for one in image])
        classes = np.array([one["cls"] for one in image])
        kept += coco_predictions(image_id, boxes, scores, classes, masks)
    return kept


def test_equals_detectron2(truth, capfd):
    ours = coco_metrics(predictions(), *truth, CLASSES, with_masks=True)
    recorded = json.loads((FOLDER / "eval_results.json").read_text())
    for key in ("coco_fast_True", "coco_fast_False"):
        theirs = {
            kind + SIZES.get(name, name.removeprefix("AP")): value
            for task, kind in KINDS.items()
            for name, value in recorded[key][task].items()
            if value is not None  # nothing is large
        }
        assert len(theirs) == 18
        assert ours == pytest.approx(theirs, abs=1e-6)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("workers", [2, 3, 7])
def test_several_processes_find_the_same(truth, workers, monkeypatch):
    alone = coco_metrics(predictions(), *truth, CLASSES, with_masks=True)
    monkeypatch.setattr(coco_ap, "_MANY", 0)
    monkeypatch.setattr(coco_ap, "cores", lambda: workers)
    assert coco_metrics(predictions(), *truth, CLASSES, with_masks=True) == alone


def test_boxes_alone_have_the_same_box_ap(truth):
    alone = coco_metrics(predictions(with_masks=False), *truth, CLASSES, with_masks=False)
    both = coco_metrics(predictions(), *truth, CLASSES, with_masks=True)
    assert alone == {name: value for name, value in both.items() if name.startswith("APb")}


def test_predictions_on_some_images_are_scored_on_those(truth):
    file, ids = truth
    some = [p for p in predictions() if p["image_id"] in ids[:7]]
    part = coco_metrics(some, file, ids[:7], CLASSES, with_masks=False)
    whole = coco_metrics(some, file, ids, CLASSES, with_masks=False)
    assert part["APb"] > 2 * whole["APb"] > 0


def test_who_finds_nothing_has_zero(truth):
    metrics = coco_metrics([], *truth, CLASSES, with_masks=True)
    assert len(metrics) == 18 and set(metrics.values()) == {0.0}


def test_an_unknown_image_is_refused(truth):
    strange = [{**predictions(with_masks=False)[0], "image_id": "777"}]
    with pytest.raises(UserError, match="1 images that are not in the ground truth, 777 for one"):
        coco_metrics(strange, *truth, CLASSES, with_masks=False)
