"""COCO folders: what is read, and what is said when something is missing or wrong."""

import json
from dataclasses import replace

import numpy as np
import pytest
from benchmark_fixtures import write_tiny_coco

from benchmarks.datasets.catalog import DATASETS, find_set, read_set
from benchmarks.datasets.coco import COCO_CLASSES, COCO_SETS
from common.errors import UserError

TRAIN = "mini_coco_2017_train"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return write_tiny_coco(tmp_path, train=6, val=2)


def change(folder, edit):
    """Apply `edit` to the content of the training set's annotation file."""
    file = folder / "annotations/instances_train2017.json"
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


def test_reads_boxes_classes_and_outlines_but_no_crowds(folder):
    bbox, outline = [10.1, 20, 30.2, 40], [10.1, 20, 40, 20, 40, 60.7]
    good = {"id": 1, "image_id": 3, "category_id": 5, "iscrowd": 0, "bbox": bbox, "area": 1}
    annotations = [
        {**good, "segmentation": [outline, [1, 2, 3, 4]]},  # a line is no outline
        {**good, "id": 2, "iscrowd": 1, "segmentation": {"counts": [1], "size": [1, 1]}},
        {**good, "id": 3, "segmentation": [[1, 2, 3, 4]]},
    ]
    change(folder, lambda content: content.update(annotations=annotations))
    images = read_set(TRAIN)
    assert [image.image_id for image in images] == ["1", "2", "3", "4", "5", "6"]
    (thing,) = images[2].objects
    x, y, width, height = np.float32(bbox)
    assert thing.box == (x, y, x + width, y + height)
    assert thing.category == 3  # ids 1, 2, 3, 5
    (polygon,) = thing.polygons
    assert polygon.tolist() == outline
    assert not any(image.objects for image in images if image.image_id != "3")


def test_the_real_sets_are_detectron2s_with_their_sizes():
    assert (len(COCO_CLASSES), COCO_CLASSES[0], COCO_CLASSES[79]) == (80, "person", "toothbrush")
    counts = {name: s.count for name, s in COCO_SETS.items() if not name.startswith("mini")}
    assert counts == {
        "coco_2017_train": 118_287,
        "coco_2017_val": 5_000,
        "coco_2017_train_10percent": 118_287,
    }


@pytest.mark.parametrize("name, share", [("coco", 11_829), ("mini_coco", 30)])
def test_ten_percent_are_the_first_of_a_seeded_permutation(name, share):
    dataset = COCO_SETS[f"{name}_2017_train_10percent"]
    count = dataset.count or 300
    expected = np.sort(np.random.RandomState(0).permutation(count)[:share]).tolist()
    assert dataset.positions(count) == expected


@pytest.fixture
def part(folder, tmp_path, monkeypatch):
    """A training set of the images that the returned file lists."""
    file = tmp_path / "part.txt"
    monkeypatch.setitem(DATASETS, "part", replace(COCO_SETS[TRAIN], name="part", part=file))
    return file


def test_a_part_is_what_its_list_names(part):
    part.write_text("# two of six\n4\n1\n")
    assert [image.image_id for image in read_set("part")] == ["2", "5"]


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "part.txt is missing"),
        ("0\n6\n", "position 6 is none of the 6 images"),
        ("0\none\n", "expected one position per line"),
        ("1\n1\n", "names an image twice"),
        ("# nothing\n", "is empty"),
    ],
)
def test_a_wrong_list_is_refused(part, text, message):
    if text:
        part.write_text(text)
    with pytest.raises(UserError, match=message):
        find_set("part")


def test_a_missing_dataset_says_what_and_where(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for name, more in (("coco_2017_val", "DETECTRON2_DATASETS"), (TRAIN, "common.miniature")):
        with pytest.raises(UserError) as caught:
            find_set(name)
        for text in (name, str(tmp_path), "annotations/instances_", "2017/*.jpg", more):
            assert text in str(caught.value)


def drop(name):
    return lambda content: content.pop(name)


def rename(content):
    content["categories"][1]["name"] = "zebra"


@pytest.mark.parametrize(
    "edit, message",
    [
        (drop("annotations"), "not a readable COCO annotation file .*annotations"),
        (drop("images"), "not a readable COCO annotation file .*images"),
        (lambda content: content.update(annotations=[]), "holds no annotations"),
        (lambda content: content["categories"].pop(), "its 3 categories are not .* 4 classes"),
        (rename, r"\(square, zebra\)"),
        (lambda content: content["annotations"][0].update(category_id=4), "KeyError: 4"),
        (lambda content: content["annotations"][0].update(image_id=99), "KeyError: 99"),
        (
            lambda content: content["annotations"][0].update(segmentation={"counts": [1]}),
            "annotation 1 has a mask that is not polygons",
        ),
    ],
)
def test_a_wrong_annotation_file_is_named(folder, edit, message):
    change(folder, edit)
    with pytest.raises(UserError, match=rf"instances_train2017\.json: .*{message}"):
        find_set(TRAIN)


def test_an_incomplete_dataset_is_refused(folder, tmp_path):
    (folder / "train2017/000000000002.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 6 images .* 000000000002\.jpg for one"):
        find_set(TRAIN)
    (folder / "annotations/instances_train2017.json").write_text("[1, 2")
    with pytest.raises(UserError, match="not a readable COCO annotation file"):
        COCO_SETS["mini_coco_2017_train_10percent"].check()


def test_another_dataset_is_refused(folder):
    (folder.parent.parent / "coco").symlink_to(folder)
    change(folder, lambda content: content.update(categories=eighty()))
    with pytest.raises(UserError, match=r"names 6 images, but the dataset has 118,287"):
        find_set("coco_2017_train")


def eighty():
    return [{"id": number + 1, "name": name} for number, name in enumerate(COCO_CLASSES)]
