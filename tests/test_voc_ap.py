"""VOC average precision equals Detectron2's evaluator on recorded predictions."""

import json
from pathlib import Path

import numpy as np
import pytest
from golden.recipe import FOLDER

from benchmarks.datasets.records import Instance, LabelledImage
from benchmarks.evaluation import voc_ap
from benchmarks.evaluation.voc_ap import make_prediction, voc_metrics
from common.errors import UserError

CLASSES = ("disk", "square", "triangle", "cross")


def voc_object(category, inclusive, difficult):
    """An object whose box is written as VOC writes it: 1-based, the last pixel included."""
    x0, y0, x1, y1 = inclusive
    return Instance(category, (x0 - 1, y0 - 1, x1, y1), difficult=difficult)


def truth():
    recorded = json.loads((FOLDER / "eval_gt.json").read_text())["voc_objects"]
    return [
        LabelledImage(
            image_id,
            Path(image_id),
            160,
            160,
            tuple(
                voc_object(CLASSES.index(o["name"]), o["bndbox"], bool(o["difficult"]))
                for o in objects
            ),
        )
        for image_id, objects in recorded.items()
    ]


def predictions():
    recorded = json.loads((FOLDER / "eval_predictions.json").read_text())
    return [
        make_prediction(
            f"{p['image_id']:06d}",
            p["cls"],
            float(np.float32(p["score"])),
            np.array(p["box"], dtype=np.float32),
        )
        for p in recorded
    ]


@pytest.mark.parametrize("year", [2007, 2012])
def test_equals_detectron2(year):
    expected = json.loads((FOLDER / "eval_results.json").read_text())[f"voc{year}"]
    found = voc_metrics(predictions(), truth(), CLASSES, year)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-9)
    assert np.mean([found[f"AP50-{name}"] for name in CLASSES]) == pytest.approx(found["AP50"])


def test_several_processes_find_the_same(monkeypatch):
    alone = voc_metrics(predictions(), truth(), CLASSES, 2007)
    monkeypatch.setattr(voc_ap, "_MANY", 0)
    monkeypatch.setattr(voc_ap, "cores", lambda: 3)
    assert voc_metrics(predictions(), truth(), CLASSES, 2007) == alone


def one_image(*objects):
    return [LabelledImage("1", Path("1"), 100, 100, tuple(voc_object(0, *o) for o in objects))]


def found(score, x0, y0, x1, y1):
    """A detection of the box that an annotation (x0 + 1, y0 + 1, x1, y1) means."""
    return make_prediction("1", 0, score, np.array([x0, y0, x1, y1], dtype=np.float32))


def ap50(detections, *objects, year=2007):
    return voc_metrics(detections, one_image(*objects), ("thing",), year)["AP50"]


@pytest.mark.parametrize("year", [2007, 2012])
def test_finding_everything_is_100_and_nothing_is_0(year):
    box = ((11, 11, 50, 50), False)
    assert ap50([found(0.9, 10, 10, 50, 50)], box, year=year) == pytest.approx(100)
    assert ap50([], box, year=year) == 0


def test_a_second_hit_on_one_object_is_wrong():
    twice = [found(0.9, 10, 10, 50, 50), found(0.8, 10, 10, 50, 50), found(0.7, 60, 60, 90, 90)]
    objects = (((11, 11, 50, 50), False), ((61, 61, 90, 90), False))
    assert ap50(twice, *objects, year=2012) == pytest.approx(100 * (0.5 + 0.5 * 2 / 3))


def test_difficult_objects_count_neither_way():
    both = [found(0.9, 60, 60, 90, 90), found(0.8, 10, 10, 50, 50)]
    objects = (((11, 11, 50, 50), False), ((61, 61, 90, 90), True))
    assert ap50(both, *objects) == pytest.approx(100)


def test_overlap_counts_the_last_pixel():
    # 10 x 10 pixels in 10 x 20 pixels: an overlap of exactly one half is not a match.
    assert ap50([found(0.9, 0, 0, 10, 10)], ((1, 1, 10, 20), False)) == 0
    assert ap50([found(0.9, 0, 0, 10, 11)], ((1, 1, 10, 20), False)) == pytest.approx(100)


def test_a_prediction_for_an_unknown_image_is_refused():
    with pytest.raises(UserError, match="1 images that are not in the ground truth, 2 for one"):
        voc_metrics([make_prediction("2", 0, 0.5, np.zeros(4))], one_image(), ("thing",), 2007)
