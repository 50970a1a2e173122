"""Segmentation sets and samples: what is read, what is refused, what training sees."""

import colorsys
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image
from segmentation_fixtures import (
    tiny_segmentor,
    write_tiny_cityscapes,
    write_tiny_voc_segmentation,
)

from benchmarks import segmentation_data as data
from benchmarks.datasets.catalog import find_set, read_set
from benchmarks.datasets.segmentation import IGNORED, open_labels
from benchmarks.torchvision_engine import loader
from common.errors import UserError

VOC, CITIES = "mini_voc_2007_seg_trainval", "mini_cityscapes_fine_sem_seg_train"


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    write_tiny_voc_segmentation(tmp_path)
    write_tiny_cityscapes(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name, count, size", [(VOC, 6, (80, 60)), (CITIES, 4, (48, 96))])
def test_every_image_is_read_with_its_labels(datasets, name, count, size):
    images = read_set(name)
    assert len(images) == count
    assert (images[0].height, images[0].width) == size
    labels = open_labels(images[0], 5)
    assert labels.shape == size and {0, IGNORED} < set(np.unique(labels)) <= {0, 1, 2, 3, 4, 255}


def remove(part):
    def change(datasets):
        next(datasets.rglob(part)).unlink()

    return change


def replace(part, pixels):
    def change(datasets):
        Image.fromarray(pixels).save(next(datasets.rglob(part)))

    return change


def unknown_label(datasets):
    file = min((datasets / "mini/VOC2007/SegmentationClass").iterdir())
    labels = np.asarray(Image.open(file)).copy()
    labels[3, 4] = 5
    Image.fromarray(labels).save(file)


LABEL, PHOTO = "SegmentationClass/000001.png", "JPEGImages/000001.jpg"
CITY_LABEL = "aachen_000000_000019_gtFine_labelTrainIds.png"


@pytest.mark.parametrize(
    "name, change, message",
    [
        (VOC, remove(LABEL), r"1 of 6 .*000001\.png"),
        (VOC, remove(PHOTO), r"1 of 6 .*000001\.jpg"),
        (VOC, remove("trainval.txt"), r"trainval\.txt is missing"),
        (VOC, replace(LABEL, np.zeros((80, 60, 3), np.uint8)), r"000001\.png: .*mode RGB"),
        (VOC, replace(PHOTO, np.zeros((80, 61, 3), np.uint8)), r"000001\.jpg: 61x80 pixels"),
        (VOC, unknown_label, r"000001\.png: holds the label 5; expected are 0 to 4"),
        (CITIES, remove(CITY_LABEL), r"1 of 4 label images .*createTrainIdLabelImgs"),
    ],
)
def test_what_is_missing_or_wrong_is_one_line(datasets, name, change, message):
    change(datasets)
    config = tiny_segmentor()
    with pytest.raises(UserError, match=message) as caught:
        for image in read_set(name):
            data.training_sample(image, config, np.random.default_rng(0))
    assert "\n" not in str(caught.value)


def test_a_list_without_the_additional_labels_is_refused(datasets):
    folder = datasets / "VOC2012"
    for part in ("JPEGImages", "SegmentationClassAug", "ImageSets/Segmentation"):
        (folder / part).mkdir(parents=True)
    names = [f"{number:06d}" for number in range(1464)]
    (folder / "ImageSets/Segmentation/trainaug.txt").write_text("\n".join(names))
    with pytest.raises(UserError, match="names 1,464 images, but the dataset has 10,582"):
        find_set("voc_2012_seg_trainaug")


def test_images_are_scaled_between_pixel_centres():
    pixels = np.random.default_rng(0).integers(0, 256, (30, 41, 3), dtype=np.uint8)
    for size in ((57, 80), (13, 20)):
        rows, columns = (
            ((np.arange(new) + 0.5) * old / new - 0.5).clip(0, old - 1)
            for new, old in zip(size, (30, 41))
        )
        expected = np.empty((*size, 3))
        for y, row in enumerate(rows):
            for x, column in enumerate(columns):
                top, left = int(row), int(column)
                corner = pixels[[top, min(top + 1, 29)]][:, [left, min(left + 1, 40)]]
                down, right = row - top, column - left
                weights = np.outer([1 - down, down], [1 - right, right])
                expected[y, x] = (corner * weights[..., None]).sum(axis=(0, 1))
        np.testing.assert_allclose(data.resize_image(pixels, size), expected, atol=1.01)


def test_labels_are_scaled_without_new_ones():
    labels = np.random.default_rng(0).choice([0, 3, 255], (30, 41)).astype(np.uint8)
    for height, width in ((57, 80), (13, 20), (30, 41)):
        found = data.resize_labels(labels, (height, width))
        for y in range(height):
            for x in range(width):
                assert found[y, x] == labels[y * 30 // height, x * 41 // width]


@pytest.mark.parametrize(
    "size, limits, expected",
    [
        ((375, 500), (512, 2048), (512, 683)),
        ((500, 100), (512, 2048), (2048, 410)),  # the longer side decides
        ((1024, 2048), (1025, 2049), (1025, 2049)),
    ],
)
def test_neither_limit_of_the_size_is_exceeded(size, limits, expected):
    assert data.scaled_size(size, *limits) == expected


def test_scales_are_drawn_evenly_from_their_range(datasets, monkeypatch):
    config, image = tiny_segmentor(), read_set(VOC)[1]
    sizes = []
    resize = data.resize_labels
    monkeypatch.setattr(
        data, "resize_labels", lambda x, size: sizes.append(size) or resize(x, size)
    )
    for seed in range(300):
        data.training_sample(image, config, np.random.default_rng(seed))
    factors = np.array([min(size) / 64 for size in sizes])
    quartiles = np.quantile(factors, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(quartiles, np.linspace(0.5, 2, 5), atol=0.12)


def test_no_class_has_too_large_a_share_of_a_crop_unless_ten_tries_fail():
    labels = np.zeros((100, 100), np.uint8)
    labels[:, 70:] = 1
    labels[:, 68:70] = IGNORED
    random = np.random.default_rng(0)
    failed = 0
    for _ in range(300):
        rows, columns = data.choose_crop(labels, (20, 20), 0.75, random)
        window = labels[rows, columns]
        assert window.shape == (20, 20)
        labelled = window[window != IGNORED]
        share = max((labelled == 0).mean(), (labelled == 1).mean())
        failed += share >= 0.75
    # A window from 81 columns is good in about 12: ten tries and the eleventh fail in 0.85^11.
    assert 0.05 < failed / 300 < 0.35
    rows, columns = data.choose_crop(labels[:9, :15], (20, 20), 0.75, random)
    assert labels[:9, :15][rows, columns].shape == (9, 15)


def test_pixels_stay_under_their_labels_and_padding_is_ignored_and_normalises_to_zero(
    datasets, monkeypatch
):
    """An image that shows its own labels is cropped, mirrored and padded like them."""
    file = datasets / "mini/VOC2007/JPEGImages/000002.jpg"
    image = next(i for i in read_set(VOC) if i.file == file)
    labels = open_labels(image, 5)
    monkeypatch.setattr(
        data, "open_image", lambda _: Image.fromarray(np.repeat(labels[..., None], 3, axis=2))
    )
    monkeypatch.setattr(  # bilinear scaling would mix the classes
        data,
        "resize_image",
        lambda pixels, size: data.resize_labels(pixels[..., 0], size)[..., None].repeat(3, 2),
    )
    config = tiny_segmentor("INPUT.COLOR_AUG_SSD", "False")
    mean = torch.tensor(config.MODEL.PIXEL_MEAN)[:, None, None]
    padded = 0
    for seed in range(40):
        sample = data.training_sample(image, config, np.random.default_rng(seed))
        shown, found = sample["image"], sample["sem_seg"]
        assert shown.shape == (3, 48, 48) and found.shape == (48, 48)
        outside = (shown == mean).all(dim=0)
        assert (found[outside] == IGNORED).all()
        assert torch.equal(shown[0][~outside], found[~outside].float())
        padded += bool(outside.any())
    assert 0 < padded < 40


def test_half_of_the_samples_are_mirrored(datasets):
    image = read_set(VOC)[1]
    whole = ("INPUT.SCALE_RANGE", "(1.0, 1.0)", "INPUT.CROP.SIZE", "(64, 80)")
    labels, config = open_labels(image, 5), tiny_segmentor(*whole)
    mirrored = 0
    for seed in range(100):
        found = data.training_sample(image, config, np.random.default_rng(seed))["sem_seg"].numpy()
        is_mirrored = np.array_equal(found, labels[:, ::-1])
        assert is_mirrored or np.array_equal(found, labels)
        mirrored += is_mirrored
    assert 35 < mirrored < 65


def test_channels_come_in_the_models_order(datasets):
    image = read_set(VOC)[0]
    for make in (data.test_sample, lambda *a: data.training_sample(*a, np.random.default_rng(3))):
        rgb = make(image, tiny_segmentor())["image"]
        bgr = make(image, tiny_segmentor("INPUT.FORMAT", "BGR"))["image"]
        shown = (rgb != rgb[:, -1:, -1:]).any(dim=0)  # the padding has no channels to swap
        assert shown.sum() > 500
        assert torch.equal(bgr[:, shown], rgb.flip(0)[:, shown])


def test_hsv_is_that_of_colorsys_to_the_nearest_step():
    pixels = np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8)
    pixels[0] = pixels[0, :, :1]  # grey
    hue, saturation, value = data.to_hsv(pixels)
    back = data.to_rgb(hue, saturation, value)
    for y, x in np.ndindex(hue.shape):
        h, s, v = colorsys.rgb_to_hsv(*(pixels[y, x] / 255))
        assert abs((180 * h - hue[y, x] + 90) % 180 - 90) <= 0.5001
        assert abs(255 * s - saturation[y, x]) <= 0.5001
        assert round(255 * v) == value[y, x]
        rgb = 255 * np.array(colorsys.hsv_to_rgb(hue[y, x] / 180, saturation[y, x] / 255, v))
        assert np.abs(back[y, x] - rgb).max() <= 0.5001


def test_colours_change_within_their_limits():
    grey = np.full((4, 4, 3), 100, np.uint8)
    levels = [
        int(data.distort_colours(grey, np.random.default_rng(s))[0, 0, 0]) for s in range(400)
    ]
    unchanged = levels.count(100) / 400
    assert 0.2 < unchanged < 0.3  # neither brightness nor contrast
    assert 0.5 * 68 - 1 <= min(levels) < 45 and 185 < max(levels) <= 1.5 * 132
    colour = np.tile(np.uint8([200, 100, 50]), (4, 4, 1))
    hues = [
        int(data.to_hsv(data.distort_colours(colour, np.random.default_rng(s)))[0][0, 0])
        for s in range(400)
    ]
    start = int(data.to_hsv(colour)[0][0, 0])
    turned = [(hue - start + 90) % 180 - 90 for hue in hues]
    assert -22 <= min(turned) < -14 and 13 < max(turned) <= 21


def test_a_sample_depends_on_seed_and_position_alone(datasets):
    images, config = read_set(VOC), tiny_segmentor()
    straight = list(islice(loader.training_batches(images, config, 3, 0), 4))
    resumed = next(loader.training_batches(images, config, 3, 3))
    other = next(loader.training_batches(images, config, 4, 0))
    for sample, again in zip(straight[3], resumed):
        assert torch.equal(sample["image"], again["image"])
        assert torch.equal(sample["sem_seg"], again["sem_seg"])
    assert not torch.equal(straight[0][0]["image"], other[0]["image"])
