"""VOC folders: what is read, and what is said when something is missing."""

import pytest
from benchmark_fixtures import write_annotation, write_tiny_voc

from benchmarks.datasets.catalog import find_set, read_set
from benchmarks.datasets.voc import VOC_CLASSES
from common.errors import UserError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return write_tiny_voc(tmp_path, train=3, test=1)


def test_reads_sizes_boxes_and_difficult_objects(folder):
    write_annotation(folder, "000001", 64, 80, [("cross", (1, 2, 30, 40), 1)])
    image = read_set("mini_voc_2007_trainval")[0]
    (thing,) = image.objects
    assert (image.image_id, image.height, image.width) == ("000001", 64, 80)
    assert (thing.category, thing.box, thing.difficult) == (3, (0, 1, 30, 40), True)


def test_class_order_is_detectron2s():
    assert (len(VOC_CLASSES), VOC_CLASSES[0], VOC_CLASSES[19]) == (20, "aeroplane", "tvmonitor")


@pytest.mark.parametrize("name", ["voc_2007_trainval", "voc_2012_trainval", "voc_2007_test"])
def test_a_missing_dataset_says_what_and_where(tmp_path, monkeypatch, name):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(UserError) as caught:
        find_set(name)
    message = str(caught.value)
    for part in (name, str(tmp_path), "Annotations", "JPEGImages", "DETECTRON2_DATASETS"):
        assert part in message


def test_an_incomplete_dataset_is_refused(folder):
    (folder / "JPEGImages/000002.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 3 images .* 000002\.jpg for one"):
        find_set("mini_voc_2007_trainval")
    (folder.parent.parent / "VOC2007").symlink_to(folder)
    with pytest.raises(UserError, match=r"names 3 images, but the dataset has 5,011"):
        find_set("voc_2007_trainval")


def test_a_missing_miniature_says_how_to_make_it(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(UserError, match=r"python -m common\.miniature"):
        find_set("mini_voc_2007_test")


def test_an_unknown_dataset_is_met_with_a_guess():
    with pytest.raises(UserError, match="did you mean voc_2007_trainval"):
        find_set("voc_2007_trainvall")


def test_a_missing_annotation_is_named(folder):
    (folder / "Annotations/000002.xml").unlink()
    with pytest.raises(UserError, match=r"000002\.xml: no such annotation"):
        read_set("mini_voc_2007_trainval")


@pytest.mark.parametrize("text", ["<annotation>", "<annotation></annotation>", "not XML"])
def test_a_broken_annotation_is_named(folder, text):
    (folder / "Annotations/000002.xml").write_text(text)
    with pytest.raises(UserError, match=r"000002\.xml: not a readable VOC annotation"):
        read_set("mini_voc_2007_trainval")


def test_an_unknown_class_is_named(folder):
    write_annotation(folder, "000003", 64, 80, [("zebra", (1, 2, 30, 40), 0)])
    with pytest.raises(UserError, match="unknown class zebra"):
        read_set("mini_voc_2007_trainval")
