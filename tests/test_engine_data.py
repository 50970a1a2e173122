"""What the network sees: pixels, boxes, and the order of the images."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmark_fixtures import tiny_config
from golden.recipe import FOLDER
from PIL import Image

from benchmarks.datasets.records import Instance, LabelledImage
from benchmarks.torchvision_engine import detection_data as data
from benchmarks.torchvision_engine import loader
from common import distributed
from common.errors import UserError

GOLDEN = np.load(FOLDER / "resize.npz")


@pytest.fixture
def golden_image(tmp_path):
    height, width = GOLDEN["input"].shape[:2]
    Image.fromarray(GOLDEN["input"]).save(tmp_path / "image.png")
    return LabelledImage("image", tmp_path / "image.png", height, width, ())


@pytest.mark.parametrize("short, longest", [(64, 1333), (160, 1333), (160, 180)])
def test_resized_pixels_are_detectron2s(golden_image, short, longest):
    found = data.load_image(golden_image, tiny_config(), short, longest)
    np.testing.assert_array_equal(found, GOLDEN[f"out_{short}_{longest}"])
    mirrored = data.load_image(golden_image, tiny_config("INPUT.FORMAT", "BGR"), short, longest)
    np.testing.assert_array_equal(mirrored, found[:, :, ::-1])


def test_output_sizes_are_detectron2s():
    for height, width, short, longest, *expected in GOLDEN["shapes_table"].tolist():
        assert data.output_size(height, width, short, longest) == tuple(expected)


def test_flipped_boxes_follow_their_pixels():
    """A bright box on black stays under its annotation, whatever the size and the side."""
    pixels = np.zeros((50, 80, 3), np.uint8)
    pixels[10:30, 20:60] = 255
    for flip in (False, True):
        size = data.output_size(50, 80, 100, 1000)
        resized = np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.NEAREST))
        resized = resized[:, ::-1] if flip else resized
        rows, columns = np.where(resized[:, :, 0] > 0)
        box = data.transform_boxes(np.array([[20, 10, 60, 30]]), (50, 80), size, flip)[0]
        edges = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        np.testing.assert_allclose(box, edges)


def test_a_box_outside_the_image_is_clipped_and_an_empty_one_dropped(golden_image):
    objects = (Instance(1, (-21, 0, 40, 50)), Instance(2, (4, 4, 4, 9)))
    sample = data.augmented(replace(golden_image, objects=objects), tiny_config(), 97, False)
    assert sample["target"].classes.tolist() == [1]
    assert sample["target"].boxes.tolist() == [[0, 0, 40, 50]]


def test_an_upright_photograph_taken_sideways(tmp_path):
    upright = Image.fromarray(GOLDEN["input"])
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned; the viewer turns it back
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.png", exif=exif)
    image = LabelledImage("a", tmp_path / "a.png", upright.height, upright.width, ())
    found = data.load_image(image, tiny_config(), upright.height, 1000)
    np.testing.assert_array_equal(found, GOLDEN["input"])


def order(images, seed, batches=40):
    return list(islice(loader.global_batches(images, 4, seed, True), batches))


def shapes(count):
    """Images of which every third is upright."""
    size = lambda n: (90, 60) if n % 3 == 0 else (60, 90)  # noqa: E731
    return [LabelledImage(str(n), Path(), *size(n), ()) for n in range(count)]


def test_every_image_once_per_pass():
    seen = [index for batch in order(shapes(32), 0) for _, index in batch]
    first_pass = {position: None for batch in order(shapes(32), 0) for position, _ in batch}
    assert len(first_pass) == len(seen)  # no position twice
    counts = np.bincount(seen, minlength=32)
    assert counts.max() - counts.min() <= 2  # one may wait for its pair


def test_groups_of_two_share_an_orientation():
    pool = shapes(30)
    for batch in order(pool, 0):
        for first, second in zip(batch[::2], batch[1::2]):
            wide = [pool[index].width > pool[index].height for _, index in (first, second)]
            assert wide[0] == wide[1]


def test_seeds_give_different_orders():
    assert order(shapes(30), 0) == order(shapes(30), 0) != order(shapes(30), 1)


def flat(batches):
    return [(s["image"], s["target"].boxes) for batch in batches for s in batch]


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected):
        assert all(torch.equal(a, b) for a, b in zip(one, other))


def test_any_number_of_workers_gives_the_same_samples(images):
    alone = flat(islice(loader.training_batches(images, tiny_config(), 3, 0), 4))
    workers = tiny_config("DATALOADER.NUM_WORKERS", "2")
    assert_same(flat(islice(loader.training_batches(images, workers, 3, 0), 4)), alone)


def test_any_number_of_processes_shares_the_same_batches(images, monkeypatch):
    alone = list(islice(loader.training_batches(images, tiny_config(), 3, 0), 3))
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(list(islice(loader.training_batches(images, tiny_config(), 3, 0), 3)))
    together = [first + second for first, second in zip(*shares)]
    assert_same(flat(together), flat(alone))


def test_continuing_at_an_iteration_gives_what_would_have_come(images):
    whole = list(islice(loader.training_batches(images, tiny_config(), 3, 0), 6))
    later = list(islice(loader.training_batches(images, tiny_config(), 3, 4), 2))
    assert_same(flat(later), flat(whole[4:]))


def test_samples_differ_between_passes(images):
    config = tiny_config("INPUT.MIN_SIZE_TRAIN", "(40,44,48,52,56,60,64,68)")
    samples = [loader._slot_sample(images, config, 0, (n, 0))["image"].shape for n in range(20)]
    assert len(set(samples)) > 4


@pytest.mark.parametrize("workers", ["0", "1"])
def test_an_unreadable_image_is_named(images, tmp_path, workers):
    (tmp_path / "broken.jpg").write_bytes(images[0].file.read_bytes()[:400])
    broken = [replace(image, file=tmp_path / "broken.jpg") for image in images]
    batches = loader.training_batches(broken, tiny_config("DATALOADER.NUM_WORKERS", workers), 0, 0)
    with pytest.raises(UserError, match=r"broken\.jpg: not a readable image") as caught:
        next(batches)
    assert "Traceback" not in str(caught.value)


def test_a_size_that_contradicts_the_annotation_is_named(images):
    with pytest.raises(UserError, match="but its annotation says"):
        data.load_image(replace(images[0], width=999), tiny_config(), 64, 100)
