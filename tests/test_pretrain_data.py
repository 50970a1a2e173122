"""Which images, in which order, cropped how: decided by (seed, epoch, image number) alone."""

import os
from collections import Counter
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch
from PIL import Image

from common import distributed
from common.errors import UserError
from pretrain.config import Data, Launch, Optim, PretrainConfig
from pretrain.data import PretrainImages, data_loader, decode_image, most_unreadable
from pretrain.images import class_folders, list_images, open_images
from pretrain.order import Order
from pretrain.views import RECIPES, Colours, Recipe, Views, random_key


def make_config(root, workers=0, **optim):
    return PretrainConfig(
        data=Data(root=str(root), image_size=32),
        optim=Optim(epochs=3, batch_size=8, **optim),
        launch=Launch(workers=workers),
    )


def test_trees_and_flat_folders_are_listed_sorted(image_folder):
    (image_folder / "notes.txt").write_text("not an image")
    files = list_images(image_folder)
    assert files == sorted(files)
    assert len(files) == 48
    assert "more/000.jpg" in files


def test_list_files_keep_their_order_and_lose_their_labels(image_folder, tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_text("002.jpg 5\n\n001.jpg -1\nwith space.jpg\n")
    assert list_images(image_folder, listed) == ["002.jpg", "001.jpg", "with space.jpg"]


def test_missing_and_empty_folders_are_named(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path}/nowhere: no such folder"):
        list_images(tmp_path / "nowhere")
    with pytest.raises(UserError, match=f"{tmp_path}: no images found"):
        list_images(tmp_path)


def batches(config, images, first_step=0):
    return [batch.views for batch in data_loader(config, images, first_step, pin_memory=False)]


@pytest.fixture(scope="module")
def reference(image_folder):
    images = open_images(image_folder)
    return images, batches(make_config(image_folder), images)


def test_batches_are_two_different_uint8_views(reference):
    _, views = reference
    assert len(views) == 3 * (48 // 8)
    assert views[0].shape == (2, 8, 3, 32, 32)
    assert views[0].dtype == torch.uint8
    assert not torch.equal(views[0][0], views[0][1])
    assert not torch.equal(views[0], views[6])  # another epoch


@pytest.mark.parametrize("workers,first_step", [(0, 0), (1, 7), (2, 0), (3, 11)])
def test_any_workers_and_any_resume_point_give_the_same_batches(
    reference, image_folder, workers, first_step
):
    images, expected = reference
    found = batches(make_config(image_folder, workers), images, first_step)
    assert len(found) == len(expected) - first_step
    assert all(torch.equal(a, b) for a, b in zip(found, expected[first_step:]))


def test_global_random_state_neither_matters_nor_changes(reference, image_folder):
    images, _ = reference
    torch.manual_seed(123)
    before = torch.get_rng_state()
    item = PretrainImages(make_config(image_folder), images)[(0, 5)][0]
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(7)
    again = PretrainImages(make_config(image_folder), images)[(0, 5)][0]
    assert all(map(torch.equal, item, again))


def test_each_epoch_visits_each_image_once_in_another_order():
    order = Order(48, make_config("unused"), 0)
    items = [item for batch in order for item in batch]
    epochs = [[number for e, number in items if e == epoch] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(48)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != list(range(48))


def test_another_seed_gives_another_order():
    config = make_config("unused")
    first, second = (list(Order(48, replace(config, seed=s), 0)) for s in (0, 1))
    assert first != second


def test_an_incomplete_last_batch_is_left_out():
    order = list(Order(50, make_config("unused"), 0))
    assert len(order) == 3 * 6
    assert all(len(batch) == 8 for batch in order)


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_share_the_batch_of_one_process(world_size, monkeypatch):
    expected = list(Order(48, make_config("unused"), 4))
    monkeypatch.setattr(distributed, "world_size", lambda: world_size)
    parts = []
    for rank in range(world_size):
        monkeypatch.setattr(distributed, "rank", lambda r=rank: r)
        parts.append(list(Order(48, make_config("unused"), 4)))
    assert [list(chain(*step)) for step in zip(*parts)] == expected


def test_views_follow_the_recipe():
    """Shares and ranges over 2,000 draws, read off the pixels of images made to show them."""
    grid = np.indices((64, 64)).sum(0) % 2 * 255
    colours = np.zeros((64, 64, 3), np.uint8)
    colours[..., 0], colours[..., 1] = 200, np.linspace(0, 255, 64).astype(np.uint8)
    two_views = Views("moco_v2", 32, 0.2)
    grey = flipped = 0
    for draw in range(1000):
        for view in two_views(Image.fromarray(colours), random_key("colour", draw))[0]:
            grey += bool((view[0] == view[1]).all() and (view[1] == view[2]).all())
            brightness = view.sum(0).float().mean(0)  # green rises from left to right
            flipped += bool(brightness[:4].mean() > brightness[-4:].mean())
    assert grey / 2000 == pytest.approx(0.2, abs=0.03)
    assert flipped / 2000 == pytest.approx(0.5, abs=0.06)
    checker = Image.fromarray(np.repeat(grid[..., None], 3, 2).astype(np.uint8))
    kinds = Counter()
    for draw in range(500):
        for view in Views("moco_v2", 64, 1.0)(checker, random_key("blur", draw))[0]:
            kinds[bool(view.float().std() < 20)] += 1
    assert 0.2 < kinds[True] / 1000 < 0.6  # blurred with a σ that hides the checkerboard


def test_unreadable_images_are_named_and_replaced_by_their_neighbour(image_folder, tmp_path):
    good = (image_folder / "001.jpg").read_bytes()
    for name, content in {"a.jpg": good, "b.jpg": good[:300], "c.jpg": b"", "d.jpg": good}.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "e.jpg").write_text("not a picture")
    dataset = PretrainImages(make_config(tmp_path), open_images(tmp_path))
    for number, replacement, unreadable in [(0, 0, []), (1, 3, "bc"), (2, 3, "c"), (4, 0, "e")]:
        views, *_, paths = dataset[(0, number)]
        assert paths == [str(tmp_path / f"{name}.jpg") for name in unreadable]
        assert all(map(torch.equal, views, dataset[(0, replacement)][0]))


@pytest.mark.parametrize("recipe", RECIPES)
def test_corners_say_where_each_view_lies(recipe):
    """In an image whose red rises to the right and whose green rises downwards."""
    columns, rows = np.meshgrid(np.arange(200), np.arange(160))
    pixels = np.stack([columns, rows, np.full_like(rows, 128)], 2).astype(np.uint8)
    mirrored = 0
    for draw in range(100):
        image = Image.fromarray(pixels)
        make_views = without_colours(Views(recipe, 50, 0.2))
        views, corners, _ = make_views(image, random_key("corners", draw))
        assert [view.shape for view in views] == len(RECIPES[recipe].views) * [(3, 50, 50)]
        for view, (left, top, right, bottom) in zip(views, corners.tolist()):
            along = (np.arange(50) + 0.5) / 50  # pixel k of the image has its centre at k + 0.5
            expected = left + along * (right - left) - 0.5, top + along * (bottom - top) - 0.5
            np.testing.assert_allclose(view[0].float().mean(0)[5:-5], expected[0][5:-5], atol=1.01)
            np.testing.assert_allclose(view[1].float().mean(1)[5:-5], expected[1][5:-5], atol=1.01)
            mirrored += left > right
            assert top < bottom and min(left, right) >= 0 and max(left, right) <= 200
    assert 0.3 < mirrored / (100 * len(views)) < 0.7


def without_colours(views):
    """The same crops and mirrorings without any change of colour."""
    plain = Recipe(tuple(Colours() for _ in views.recipe.views), views.recipe.interpolation)
    views.recipe = plain
    return views


def test_paths_that_are_no_utf8_are_read(image_folder, tmp_path):
    name = os.fsdecode(b"caf\xe9 \xc3\xa9.jpg")
    (tmp_path / name).write_bytes((image_folder / "001.jpg").read_bytes())
    images = open_images(tmp_path)
    assert images.path(0) == name and len(images.digest) == 64
    assert images.read(0) == (image_folder / "001.jpg").read_bytes()


def test_a_list_may_have_any_encoding_and_come_from_find(tmp_path):
    for name in (b"cat/caf\xe9.jpg", b"dog/2\xe2\x80\xa8.jpg"):
        path = tmp_path / os.fsdecode(name)
        path.parent.mkdir()
        path.write_bytes(b"")
    names = tmp_path / "list.txt"
    names.write_bytes(b"\xef\xbb\xbf./cat/caf\xe9.jpg\r\n./dog/2\xe2\x80\xa8.jpg 7\n")
    images = open_images(tmp_path, names)
    assert images.classes == ["cat", "dog"] and len(images) == 2
    assert [images.read(number) for number in range(2)] == [b"", b""]


def test_a_link_to_a_folder_it_lies_in_is_not_followed(tmp_path):
    (tmp_path / "tree" / "cat").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    for path in ("tree/cat/1.jpg", "elsewhere/2.jpg"):
        (tmp_path / path).write_bytes(b"")
    (tmp_path / "tree" / "latest").symlink_to(".")
    (tmp_path / "tree" / "cat" / "up").symlink_to("../..")
    (tmp_path / "tree" / "more").symlink_to("../elsewhere")
    assert list_images(tmp_path / "tree") == ["cat/1.jpg", "more/2.jpg"]


def test_a_folder_that_cannot_be_listed_is_not_passed_over(tmp_path, monkeypatch):
    (tmp_path / "cat").mkdir()
    (tmp_path / "1.jpg").write_bytes(b"")
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("cat"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(PermissionError, match="cat"):
        list_images(tmp_path)


def test_16_bits_become_8_and_unknown_ranges_are_refused(tmp_path):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(4, 0)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    found = np.asarray(decode_image((tmp_path / "ramp.png").read_bytes()))
    assert np.abs(found[0, :, 0].astype(int) - np.arange(256)).max() <= 1
    for kind in (np.float32, np.int32):
        Image.fromarray(ramp.astype(kind)).save(tmp_path / "other.tif")
        with pytest.raises(ValueError, match="no value is known to be white"):
            decode_image((tmp_path / "other.tif").read_bytes())


def test_an_image_that_its_decoder_chokes_on_is_unreadable(image_folder, monkeypatch):
    dataset = PretrainImages(make_config(image_folder), open_images(image_folder))
    decode = dataset.decode

    def choking(content):
        if content == (image_folder / "001.jpg").read_bytes():
            raise TypeError("'str' object cannot be interpreted as an integer")
        return decode(content)

    monkeypatch.setattr(dataset, "decode", choking)
    assert dataset[(0, 0)][4] == [str(image_folder / "001.jpg")]


def test_labels_are_the_numbers_of_the_first_folders(tmp_path):
    for name in ("dog/1.png", "cat/old/2.png", "cat/3.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40)).save(tmp_path / name)
    images = open_images(tmp_path)
    assert images.classes == ["cat", "dog"]
    dataset = PretrainImages(make_config(tmp_path), images)
    assert {images.path(i): dataset[(0, i)][3] for i in range(3)} == {
        "cat/3.png": 0, "cat/old/2.png": 0, "dog/1.png": 1
    }  # fmt: skip
    assert class_folders(["a.jpg", "b/c.jpg"]) == ["", "b"]


@pytest.mark.parametrize("images,limit", [(100, 10), (100_000, 10), (1_281_167, 128)])
def test_a_run_bears_one_unreadable_image_in_ten_thousand(images, limit):
    assert most_unreadable(images) == limit


def test_random_keys_differ_and_repeat():
    keys = {
        random_key(seed, epoch, i) for seed in range(4) for epoch in range(5) for i in range(50)
    }
    assert len(keys) == 1000
    assert random_key(0, "order", 3) == random_key(0, "order", 3)
    assert random_key(1, 23) != random_key(12, 3)


def test_grey_images_and_palettes_become_rgb(tmp_path):
    Image.new("L", (40, 40), 128).save(tmp_path / "grey.png")
    Image.new("P", (40, 40), 3).save(tmp_path / "palette.png")
    Image.new("RGBA", (40, 40), (1, 2, 3, 4)).save(tmp_path / "alpha.png")
    dataset = PretrainImages(make_config(tmp_path), open_images(tmp_path))
    assert all(view.shape == (3, 32, 32) for i in range(3) for view in dataset[(0, i)][0])
