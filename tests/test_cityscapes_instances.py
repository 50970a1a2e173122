"""Cityscapes' instances: what is read, how it is scored, and what is said of what is wrong."""

import json
from pathlib import Path

import numpy as np
import pycocotools.mask
import pytest
from benchmark_fixtures import write_tiny_cityscapes
from PIL import Image

from benchmarks.datasets.catalog import find_set, read_set
from benchmarks.datasets.cityscapes import CITYSCAPES_SETS, CityscapesSet
from benchmarks.evaluation.cityscapes_instances import cityscapes_metrics, cityscapes_predictions
from common.errors import UserError

TRAIN, VAL = (f"mini_cityscapes_fine_instance_seg_{split}" for split in ("train", "val"))
CLASSES = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
IDS = dict(zip(CLASSES, (24, 25, 26, 27, 28, 31, 32, 33)))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return write_tiny_cityscapes(tmp_path)


def true_masks(image):
    """(class, mask) of each object in the image of instance ids."""
    ids = np.array(Image.open(CITYSCAPES_SETS[VAL].truth(image.file)))
    for value in np.unique(ids[ids >= 1000]):
        yield CLASSES.index(next(n for n, i in IDS.items() if i == value // 1000)), ids == value


def test_the_outlines_are_what_the_official_drawing_shows(folder):
    for image in read_set(VAL):
        truth = list(true_masks(image))
        drawn = []
        for thing in image.objects:
            outlines = [outline.tolist() for outline in thing.polygons]
            runs = pycocotools.mask.frPyObjects(outlines, image.height, image.width)
            mask = pycocotools.mask.decode(pycocotools.mask.merge(runs)).astype(bool)
            drawn.append((thing.category, mask))
            (x0, y0, x1, y1), (rows, columns) = thing.box, np.where(mask)
            near = pytest.approx((x0, y0, x1, y1), abs=2.5)
            assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == near
        large = [(c, mask) for c, mask in truth if mask.sum() > 100]
        assert len(large) >= 2
        for category, mask in large:
            overlaps = [
                (mask & other).sum() / (mask | other).sum() for c, other in drawn if c == category
            ]
            assert max(overlaps) > 0.75


def test_the_real_sets_are_detectron2s_with_their_sizes():
    assert CityscapesSet.classes == CLASSES
    real = {name: s.count for name, s in CITYSCAPES_SETS.items() if not name.startswith("mini")}
    names = [f"cityscapes_fine_instance_seg_{split}" for split in ("train", "val")]
    assert real == dict(zip(names, (2975, 500)))


def predictions(image, found):
    """found: (score, class, mask) of the image."""
    scores, classes = (np.array([f[i] for f in found]) for i in range(2))
    return cityscapes_predictions(image.image_id, scores, classes, np.array([f[2] for f in found]))


def score(images, found):
    truths = {image.image_id: CITYSCAPES_SETS[VAL].truth(image.file) for image in images}
    return cityscapes_metrics(found, truths, CLASSES)


def test_the_truth_scores_100_and_leaves_no_files(folder, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    images = read_set(VAL)
    found = [p for i in images for p in predictions(i, [(0.9, *truth) for truth in true_masks(i)])]
    metrics = score(images, found)
    assert metrics.pop("APm") == metrics.pop("APm50") == 100
    assert set(metrics.values()) == {100.0}
    assert {"APm-car", "APm50-car", "APm-person"} <= metrics.keys() and "APm-bus" not in metrics
    assert sorted(tmp_path.rglob("*")) == before
    assert capfd.readouterr() == ("", "")


def test_a_mask_counts_at_the_overlaps_that_it_exceeds(folder):
    """60 of 100 columns are found: right at 50 and 55 %, wrong from 60 % on."""
    ids = np.full((64, 128), 7, np.uint16)
    ids[10:40, 10:110] = 26000
    image = read_set(VAL)[0]
    Image.fromarray(ids).save(CITYSCAPES_SETS[VAL].truth(image.file))
    part = np.zeros(ids.shape, bool)
    part[10:40, 10:70] = True
    metrics = score([image], predictions(image, [(0.9, CLASSES.index("car"), part)]))
    assert metrics == pytest.approx({"APm": 20, "APm50": 100, "APm-car": 20, "APm50-car": 100})


def test_who_finds_nothing_has_zero(folder):
    metrics = score(read_set(VAL), [])
    assert metrics["APm"] == metrics["APm50"] == 0 and set(metrics.values()) == {0.0}


def test_an_unknown_image_is_refused(folder):
    images = read_set(VAL)
    strange = predictions(images[1], [(0.5, 0, np.ones((64, 128), bool))])
    with pytest.raises(UserError, match="1 images that are not in the ground truth"):
        score(images[:1], strange)


def test_a_missing_dataset_says_what_and_where(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for name in ("cityscapes_fine_instance_seg_val", VAL):
        with pytest.raises(UserError) as caught:
            find_set(name)
        for text in (name, str(tmp_path), "leftImg8bit/val", "gtFine/val", "DETECTRON2_DATASETS"):
            assert text in str(caught.value)


def test_an_incomplete_dataset_is_refused(folder):
    file = next((folder / "gtFine/train").glob("*/*instanceIds.png"))
    file.unlink()
    with pytest.raises(UserError, match=rf"1 of 8 annotation files are missing, .*{file.name}"):
        find_set(TRAIN)
    (folder.parent.parent / "cityscapes").symlink_to(folder)
    with pytest.raises(UserError, match=r"holds 4 images .* but the dataset has 2975"):
        find_set("cityscapes_fine_instance_seg_train")
    for image in (folder / "leftImg8bit/train").glob("*/*"):
        image.unlink()
    with pytest.raises(UserError, match="holds 0 images"):
        find_set(TRAIN)


def edit(folder, change):
    for file in (folder / "gtFine/train").glob("*/*polygons.json"):
        content = json.loads(file.read_text())
        change(content)
        Path(file).write_text(json.dumps(content))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda content: content.pop("objects"), "not a readable Cityscapes annotation .*objects"),
        (lambda content: content["objects"][1].update(label="zebra"), "KeyError: 'zebra'"),
        (lambda content: content["objects"][1].update(polygon=[[1, 2]]), "not a readable"),
        (lambda content: content.update(objects=[]), "has no objects"),
    ],
)
def test_wrong_annotations_are_named(folder, change, message):
    edit(folder, change)
    with pytest.raises(UserError, match=message):
        find_set(TRAIN)
