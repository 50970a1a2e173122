"""Colours, blur and mirroring on the device: each operation against torchvision's on floats.

Both ways of making views draw the same numbers; how often each happens, and in which range, is
held against the recipes over 10,000 draws.
"""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from PIL import Image
from torchvision.transforms import ColorJitter, RandomResizedCrop

from pretrain.config import Data, Launch, Optim, PretrainConfig, with_colours
from pretrain.data import PretrainImages, data_loader, decode_image, decode_tensor
from pretrain.device_views import augment
from pretrain.images import open_images
from pretrain.views import (
    FACTORS,
    GREY,
    JITTER,
    MEAN,
    MIRROR,
    ORDER,
    RECIPES,
    SIGMA,
    SOLARISE,
    STD,
    Colours,
    Views,
    draw,
    draw_crop,
    random_key,
)

ADJUST = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
GREY_VALUE = 12  # an image of one colour has no hue
EVERYTHING = Colours((0.8, 0.8, 0.8, 0.4), 0.5, 0.5, 0.5, 0.5)


@pytest.fixture(scope="module")
def crops():
    """(6,3,40,40) uint8: noise, blocks, one of a single colour, one black and white."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (6, 3, 40, 40), generator=generator, dtype=torch.uint8)
    images[1] = images[1, :, ::10, ::10].repeat_interleave(10, 1).repeat_interleave(10, 2)
    images[2] = GREY_VALUE
    images[3] = (images[3] > 127) * 255
    return images


def nothing(count):
    drawn = torch.zeros(count, 13)
    drawn[:, ORDER] = torch.arange(4.0)
    return drawn


def expected_of(crop, drawn, grey_first):
    """One image, one operation after another, as torchvision computes them on floats."""
    image = tv.to_dtype(crop, torch.float32, scale=True)
    grey = bool(drawn[GREY])
    if grey and grey_first:
        image = tv.rgb_to_grayscale(image, 3)
    if drawn[JITTER]:
        for number in drawn[ORDER].int().tolist():
            image = ADJUST[number](image, drawn[FACTORS][number].item())
    if grey and not grey_first:
        image = tv.rgb_to_grayscale(image, 3)
    if drawn[SIGMA]:
        image = tv.gaussian_blur(image, [17, 17], [drawn[SIGMA].item()] * 2)
    if drawn[SOLARISE]:
        image = tv.solarize(image, 128 / 255)
    if drawn[MIRROR]:
        image = tv.horizontal_flip(image)
    return tv.normalize(image, MEAN, STD)


def assert_as_torchvision(crops, drawn, colours=EVERYTHING):
    found = augment(crops, drawn, colours)
    assert found.dtype == torch.float32
    assert found.is_contiguous(memory_format=torch.channels_last)
    expected = torch.stack([expected_of(*pair, colours.grey_first) for pair in zip(crops, drawn)])
    # In units of a level of 255 this is a tenth of one at most, as the deviation is 0.22 and more.
    torch.testing.assert_close(found, expected, atol=1e-5 / min(STD), rtol=0)


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("extreme", [0, 1])
def test_one_adjustment(crops, number, extreme):
    drawn = nothing(len(crops))
    drawn[:, JITTER] = 1
    drawn[:, FACTORS] = torch.tensor([1.0, 1.0, 1.0, 0.0])
    drawn[:, FACTORS][:, number] = ((0.2, 1.8), (0.2, 1.8), (0.2, 1.8), (-0.4, 0.4))[number][
        extreme
    ]
    assert_as_torchvision(crops, drawn)


@pytest.mark.parametrize("column, value", [(GREY, 1), (SIGMA, 0.1), (SIGMA, 2.0), (MIRROR, 1)])
def test_one_other_change(crops, column, value):
    drawn = nothing(len(crops))
    drawn[:, column] = value
    assert_as_torchvision(crops, drawn)


def test_what_the_networks_compute_in_changes_no_pixel(crops):
    random = torch.Generator().manual_seed(4)
    drawn = torch.tensor([draw(EVERYTHING, random) for _ in range(len(crops))])
    with torch.autocast("cpu", torch.bfloat16):
        found = augment(crops, drawn, EVERYTHING)
    assert torch.equal(found, augment(crops, drawn, EVERYTHING))


def test_solarising(crops):
    drawn = nothing(len(crops))
    drawn[:, SOLARISE] = 1
    assert_as_torchvision(crops, drawn)


@pytest.mark.parametrize("recipe", RECIPES)
def test_whatever_a_recipe_draws(recipe):
    """Each image of a batch with its own operations in its own order."""
    generator = torch.Generator().manual_seed(5)
    crops = torch.randint(0, 256, (64, 3, 24, 24), generator=generator, dtype=torch.uint8)
    for colours in RECIPES[recipe].views:
        random = torch.Generator().manual_seed(11)
        drawn = torch.tensor([draw(colours, random) for _ in range(len(crops))])
        assert_as_torchvision(crops, drawn, colours)


@pytest.mark.parametrize("recipe", RECIPES)
def test_how_often_and_how_much(recipe):
    """Over 10,000 draws: shares within four standard errors, ranges filled and never left."""
    draws = 10_000
    for colours in RECIPES[recipe].views:
        random = torch.Generator().manual_seed(1)
        drawn = torch.tensor([draw(colours, random) for _ in range(draws)])
        shares = {
            JITTER: colours.jitter_probability,
            GREY: colours.grey_probability,
            SIGMA: colours.blur_probability,
            SOLARISE: colours.solarise_probability,
            MIRROR: 0.5,
        }
        for column, share in shares.items():
            error = 4 * (share * (1 - share) / draws) ** 0.5
            assert (drawn[:, column] > 0).double().mean() == pytest.approx(share, abs=error + 1e-9)
        jittered = drawn[drawn[:, JITTER] > 0]
        for number, amount in enumerate(colours.jitter if len(jittered) else ()):
            factors = jittered[:, FACTORS][:, number]
            centre = 0.0 if number == 3 else 1.0
            assert_uniform(factors, centre - amount, centre + amount)
            for place in range(4):  # each operation is as often first, second, ...
                assert (jittered[:, ORDER][:, place] == number).double().mean() == pytest.approx(
                    0.25, abs=4 * (0.1875 / len(jittered)) ** 0.5
                )
        if colours.blur_probability:
            assert_uniform(drawn[drawn[:, SIGMA] > 0][:, SIGMA], 0.1, 2.0)


def assert_uniform(values, low, high):
    """Kolmogorov-Smirnov against the uniform distribution; 1.95 / sqrt(n) is its 0.1 % limit."""
    assert values.min() >= low - 1e-6 and values.max() <= high + 1e-6
    sorted_values = np.sort(values.double().numpy())
    ideal = (sorted_values - low) / (high - low)
    distance = np.abs(ideal - np.arange(1, len(ideal) + 1) / len(ideal)).max()
    assert distance < 1.95 / len(ideal) ** 0.5 + 1 / len(ideal)


@pytest.mark.parametrize("width, height", [(500, 375), (64, 96), (300, 60), (40, 400), (1, 5)])
def test_crops_are_drawn_as_torchvision_draws_them(width, height):
    """10,000 times the same, from generators in the same state."""
    image, random = torch.empty(3, height, width), torch.Generator().manual_seed(2)
    torch.manual_seed(2)
    for _ in range(10_000):
        expected = RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3])
        assert draw_crop(width, height, 0.2, random) == expected


def test_factors_and_their_order_are_drawn_as_torchvision_draws_them():
    colours = Colours((0.8, 0.4, 0.3, 0.2), 1.0)
    jitter = ColorJitter(*colours.jitter)
    random = torch.Generator().manual_seed(2)
    torch.manual_seed(2)
    for _ in range(1000):
        drawn = draw(colours, random)
        torch.rand(1)  # whether at all
        order, *factors = jitter.get_params(
            *(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
        )
        torch.rand(1)  # the mirroring
        assert drawn[ORDER] == order.tolist() and drawn[FACTORS] == factors


# --- the two ways side by side ---


@pytest.fixture(scope="module")
def photo():
    """A smooth picture as a JPEG of 500 x 375 pixels."""
    small = np.random.RandomState(0).randint(0, 256, (12, 16, 3)).astype(np.uint8)
    content = io.BytesIO()
    Image.fromarray(small).resize((500, 375), Image.BICUBIC).save(content, "JPEG", quality=90)
    return content.getvalue()


def test_a_jpeg_has_the_pixels_that_pil_finds(photo):
    found, expected = decode_tensor(photo), np.array(decode_image(photo))
    assert torch.equal(found.permute(1, 2, 0), torch.from_numpy(expected))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_other_kinds_of_images_are_read_as_pil_reads_them(mode):
    file = io.BytesIO()
    image = Image.effect_noise((40, 30), 90).convert("RGB").convert(mode)
    image.save(file, "JPEG" if mode in ("L", "CMYK") else "PNG")
    found = decode_tensor(file.getvalue()).permute(1, 2, 0)
    assert torch.equal(found, torch.from_numpy(np.array(decode_image(file.getvalue()))))


@pytest.mark.parametrize("content", [b"", b"\\xff\\xd8\\xff", b"text"])
def test_what_pil_cannot_read_is_not_read(photo, content):
    for broken in (content, photo[:3000]):
        with pytest.raises((OSError, ValueError, SyntaxError)):
            decode_tensor(broken)


@pytest.mark.parametrize("recipe", RECIPES)
def test_both_ways_cut_draw_and_look_alike(photo, recipe):
    make_views, differences = Views(recipe, 96, 0.2), []
    for number in range(20):
        key = random_key("alike", number)
        views, corners, drawn = make_views(decode_image(photo), key)
        crops, same_corners, same_drawn = make_views(decode_tensor(photo), key)
        assert torch.equal(corners, same_corners) and torch.equal(drawn, same_drawn)
        for view, crop, changes, colours in zip(views, crops, drawn, make_views.recipe.views):
            ours = augment(crop[None], changes[None], colours)[0]
            theirs = tv.normalize(tv.to_dtype(view, torch.float32, scale=True), MEAN, STD)
            differences.append((ours - theirs).abs() * 255 * torch.tensor(STD)[:, None, None])
    levels = torch.stack(differences)
    assert levels.mean() < 2  # of 255: PIL rounds after each operation


def test_a_plain_crop_is_within_a_level_of_pils(photo):
    make_views = Views("supervised", 224, 0.2)
    for number in range(10):
        key = random_key("crop", number)
        view, _, drawn = make_views(decode_image(photo), key)
        crop = make_views(decode_tensor(photo), key)[0]
        if drawn[0, MIRROR]:
            crop = [crop[0].flip(-1)]
        assert (view[0].int() - crop[0].int()).abs().max() <= 1


@pytest.mark.parametrize("workers, first_step", [(0, 0), (2, 3)])
def test_the_loader_ships_crops_and_what_was_drawn(image_folder, workers, first_step):
    config = PretrainConfig(
        data=Data(root=str(image_folder), image_size=32, colours="device"),
        optim=Optim(epochs=1, batch_size=8),
        launch=Launch(workers=workers),
    )
    images = open_images(image_folder)
    batches = list(data_loader(config, images, first_step, pin_memory=False))
    assert len(batches) == 6 - first_step
    assert batches[0].views.shape == (2, 8, 3, 32, 32) and batches[0].drawn.shape == (2, 8, 13)
    assert batches[0].views.dtype == torch.uint8
    item = PretrainImages(config, images)[(0, 5)]
    on_cpu = replace(config, data=replace(config.data, colours="cpu"))
    again = PretrainImages(on_cpu, images)[(0, 5)]
    assert torch.equal(item[2], again[2]) and not torch.equal(item[0][0], again[0][0])


@pytest.mark.parametrize(
    "given, device, found",
    [("auto", "cpu", "cpu"), ("auto", "cuda", "device"), ("cpu", "cuda", "cpu")],
)
def test_who_changes_the_colours_is_decided_once(given, device, found):
    config = PretrainConfig(data=Data(colours=given))
    assert with_colours(config, device).identity()["data"]["colours"] == found
