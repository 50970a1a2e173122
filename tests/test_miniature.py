"""The miniature datasets: the same bytes from one seed, and annotations that agree with pixels."""

import hashlib
import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import PIL
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from torchvision.datasets import ImageFolder

from common.errors import UserError
from common.miniature.__main__ import generate
from common.miniature.cityscapes import LABELS
from common.miniature.coco import CATEGORY_IDS
from common.miniature.contours import polygons, run_lengths, signed_area
from common.miniature.scenes import KINDS, Wanted, image_random, make_scene, some_things

SHA256_OF_SEED_0 = "eb837cb94402cc7d343c489a4692752191cd816b89efddd62238e8664d34bed4"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("datasets") / "mini"
    (folder.parent / ".mini.partial").mkdir()  # as a killed run leaves it
    (folder.parent / ".mini.partial" / "rubbish").touch()
    generate(folder, seed=0)
    return folder


def tree_sha256(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def pinned_pillow() -> str:
    lines = (Path(__file__).parent.parent / "constraints.txt").read_text().splitlines()
    return next(line.split("==")[1] for line in lines if line.startswith("pillow=="))


def test_one_seed_gives_the_same_bytes_everywhere(root):
    if PIL.__version__ != pinned_pillow():
        pytest.skip(f"JPEG and PNG bytes are those of pillow {pinned_pillow()}")
    assert tree_sha256(root) == SHA256_OF_SEED_0


def scene_of(seed: int, split: str = "voc/test", index: int = 0):
    random = image_random(seed, split, index)
    return make_scene(random, 96, 128, some_things(random, 4, (14, 30)))


def test_seed_split_and_index_each_give_another_image():
    reference = scene_of(0).image
    assert np.array_equal(reference, scene_of(0).image)
    for other in (scene_of(1), scene_of(0, "voc/trainval"), scene_of(0, index=1)):
        assert not np.array_equal(reference, other.image)


def test_no_image_is_in_two_places(root):
    images = [*root.rglob("*.jpg"), *root.rglob("*_leftImg8bit.png")]
    assert len(images) == 2200 + 400 + 400 + 80
    assert len({hashlib.sha256(path.read_bytes()).digest() for path in images}) == len(images)


def test_nothing_is_left_beside_a_complete_folder(root):
    assert not (root.parent / ".mini.partial").exists()
    assert not (root / "rubbish").exists()


def test_a_complete_folder_is_left_alone_and_another_seed_refused(root, capsys):
    before = (root / "DONE").stat().st_mtime_ns
    generate(root, seed=0)
    assert "complete" in capsys.readouterr().out
    assert (root / "DONE").stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"'seed': 0.*'seed': 1.*another folder"):
        generate(root, seed=1)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(UserError, match="not a complete miniature dataset"):
        generate(tmp_path / "mine")


def test_image_folder_reads_the_classes(root):
    train, val = (ImageFolder(root / "imagenet" / split) for split in ("train", "val"))
    assert train.classes == val.classes == sorted(KINDS)
    assert np.bincount(train.targets).tolist() == [500] * 4
    assert np.bincount(val.targets).tolist() == [50] * 4
    sizes = {train[index][0].size for index in range(0, 2000, 40)}
    assert len(sizes) > 20 and all(112 <= side <= 128 for size in sizes for side in size)


def test_the_foremost_thing_is_the_largest_and_whole():
    for index in range(50):
        random = image_random(5, "imagenet", index)
        wanted = [Wanted(index % 4, (28, 40)), *some_things(random, 3, (9, 15))]
        first, *others = make_scene(random, 120, 120, wanted).things
        assert first.kind == index % 4 and first.visible_percent == 100
        assert all(thing.visible.sum() < first.visible.sum() for thing in others)


@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_coco_annotations_agree_with_their_masks(root, split):
    coco = COCO(root / "coco" / "annotations" / f"instances_{split}.json")
    assert [entry["name"] for entry in coco.loadCats(CATEGORY_IDS)] == list(KINDS)
    crowds = several_parts = 0
    for annotation in coco.dataset["annotations"]:
        mask = coco.annToMask(annotation)
        assert mask.sum() == annotation["area"]
        x, y, width, height = annotation["bbox"]
        rows, columns = np.nonzero(mask)
        assert (columns.min(), rows.min()) == (x, y)
        assert (np.ptp(columns) + 1, np.ptp(rows) + 1) == (width, height)
        crowds += annotation["iscrowd"]
        several_parts += not annotation["iscrowd"] and len(annotation["segmentation"]) > 1
    assert crowds > 5 and several_parts > 5
    assert any(not coco.getAnnIds(imgIds=[image_id]) for image_id in coco.getImgIds())
    for image in coco.dataset["images"]:
        with Image.open(root / "coco" / split / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"])


@pytest.mark.parametrize("split, count", [("train", 150), ("val", 150), ("test", 100)])
def test_voc_boxes_agree_with_the_masks(root, split, count):
    folder = root / "VOC2007"
    names = (folder / "ImageSets" / "Main" / f"{split}.txt").read_text().split()
    assert len(names) == count
    difficult = truncated = occluded = 0
    for name in names:
        classes = np.array(Image.open(folder / "SegmentationClass" / f"{name}.png"))
        instances = np.array(Image.open(folder / "SegmentationObject" / f"{name}.png"))
        tree = ElementTree.parse(folder / "Annotations" / f"{name}.xml")
        objects = tree.findall("object")
        assert 1 <= len(objects) <= 4
        for number, entry in enumerate(objects, start=1):
            assert entry.findtext("pose") == "Unspecified"
            difficult += int(entry.findtext("difficult"))
            truncated += int(entry.findtext("truncated"))
            occluded += int(entry.findtext("occluded"))
            inside = instances == number
            kind = KINDS.index(entry.findtext("name"))
            assert set(classes[inside].tolist()) <= {1 + kind}
            box = entry.find("bndbox")
            left, top, right, bottom = (
                int(box.findtext(tag)) for tag in ("xmin", "ymin", "xmax", "ymax")
            )
            assert 1 <= left < right <= classes.shape[1] and 1 <= top < bottom <= classes.shape[0]
            inside[top - 1 : bottom, left - 1 : right] = False
            assert not inside.any()
    assert 0 < difficult < count / 4 and truncated > 5 and occluded > 20


def test_voc_boxes_are_tight_to_what_shows(root):
    """Regenerates some scenes, whose masks the void border of the files does not cut."""
    for index in range(0, 100, 7):
        random = image_random(0, "voc/test", index)
        height, width = int(random.randint(128, 169)), int(random.randint(144, 177))
        things = make_scene(random, height, width, some_things(random, 4, (14, 30))).things
        tree = ElementTree.parse(root / "VOC2007" / "Annotations" / f"{5001 + index:06d}.xml")
        boxes = [[int(side.text) for side in box] for box in tree.iter("bndbox")]
        for thing, box in zip(things, boxes, strict=True):
            rows, columns = np.nonzero(thing.visible)
            ends = [columns.min() + 1, rows.min() + 1, columns.max() + 1, rows.max() + 1]
            assert box == ends


def test_voc_masks_have_the_palette_and_void_borders(root):
    with Image.open(root / "VOC2007" / "SegmentationClass" / "000001.png") as mask:
        assert mask.mode == "P"
        palette = mask.getpalette()
        assert palette[:15] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0, 0, 0, 128]
        assert palette[-3:] == [224, 224, 192]
        pixels = np.array(mask)
    assert set(np.unique(pixels)) <= {0, 1, 2, 3, 4, 255}
    inner = (pixels[:, 1:] != pixels[:, :-1]) & (pixels[:, 1:] != 255) & (pixels[:, :-1] != 255)
    assert not inner.any(), "two classes touch without a border"


def test_voc_class_lists_agree_with_the_annotations(root):
    folder = root / "VOC2007"
    for kind in KINDS:
        for line in (folder / "ImageSets" / "Main" / f"{kind}_test.txt").read_text().splitlines():
            name, presence = line.split()
            tree = ElementTree.parse(folder / "Annotations" / f"{name}.xml")
            found = [o.findtext("difficult") for o in tree.iter("object") if o[0].text == kind]
            assert int(presence) == (-1 if not found else 0 if "0" not in found else 1)


@pytest.mark.parametrize("split, count", [("train", 60), ("val", 20)])
def test_cityscapes_files_agree(root, split, count):
    images = sorted((root / "cityscapes" / "leftImg8bit" / split).glob("*/*_leftImg8bit.png"))
    assert len(images) == count
    ids = {name: label_id for name, label_id, _ in LABELS} | {"road": 7}
    training_ids = {label_id: number for _, label_id, number in LABELS} | {7: 0}
    for path in images:
        stem = path.name.removesuffix("_leftImg8bit.png")
        truth = root / "cityscapes" / "gtFine" / split / path.parent.name / f"{stem}_gtFine"
        labels, training, instances = (
            np.array(Image.open(f"{truth}_{kind}.png"))
            for kind in ("labelIds", "labelTrainIds", "instanceIds")
        )
        assert labels.shape == (128, 256) and set(np.unique(labels)) <= set(ids.values())
        assert instances.dtype == np.uint16
        assert np.array_equal(np.where(instances > 1000, instances // 1000, instances), labels)
        assert np.array_equal(np.vectorize(training_ids.get)(labels), training)
        outlines = json.loads(Path(f"{truth}_polygons.json").read_text())
        painted = Image.new("L", (outlines["imgWidth"], outlines["imgHeight"]))
        for entry in outlines["objects"]:
            outline = [tuple(point) for point in entry["polygon"]]
            ImageDraw.Draw(painted).polygon(outline, fill=ids[entry["label"]])
        # ImageDraw paints the outline itself too: up to a pixel more on two sides.
        assert (np.array(painted) != labels).mean() < 0.03


def test_polygons_cover_exactly_the_pixels_of_a_mask():
    random = np.random.RandomState(0)
    for _ in range(30):
        mask = random.randint(100, size=(17, 23)) < 60  # many holes and corners that touch
        loops = polygons(mask)
        assert all(signed_area(loop) > 0 for loop in loops)
        assert sum(map(signed_area, loops)) == mask.sum()
        flat = [[float(value) for point in loop for value in point] for loop in loops]
        drawn = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(flat, 17, 23)))
        assert np.array_equal(drawn, mask)


def test_run_lengths_decode_to_the_mask():
    random = np.random.RandomState(0)
    for first in (False, True):
        mask = random.randint(2, size=(7, 9)) > 0
        mask[0, 0] = first
        encoded = coco_mask.frPyObjects({"counts": run_lengths(mask), "size": [7, 9]}, 7, 9)
        assert np.array_equal(coco_mask.decode(encoded), mask)
