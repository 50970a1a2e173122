"""Class scores window by window, and the segmentor around them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from benchmark_fixtures import write_pickle
from segmentation_fixtures import SLIDING, tiny_segmentor, write_tiny_voc_segmentation

from benchmarks.checks import check
from benchmarks.sliding_window import image_scores
from benchmarks.torchvision_engine.model import build_model
from benchmarks.weights import load_backbone, read_backbone
from common.errors import UserError


def naive(score, image, window, stride, size):
    """Pixel by pixel: the mean over the windows that hold the pixel."""
    height, width = image.shape[1:]
    found = [[[] for _ in range(width)] for _ in range(height)]
    tops = sorted({min(y, max(height - window, 0)) for y in range(0, height, stride)})
    lefts = sorted({min(x, max(width - window, 0)) for x in range(0, width, stride)})
    if len(tops) > 1 and tops[-2] + window >= height:
        tops.pop()
    if len(lefts) > 1 and lefts[-2] + window >= width:
        lefts.pop()
    for top in tops:
        for left in lefts:
            part = image[:, top : top + window, left : left + window]
            scores = score(part[None])[0]
            for y, x in np.ndindex(*scores.shape[1:]):
                found[top + y][left + x].append(scores[:, y, x])
    total = torch.stack([torch.stack([torch.stack(p).mean(0) for p in row]) for row in found])
    return F.interpolate(total.permute(2, 0, 1)[None], size, mode="bilinear", align_corners=True)[0]


def score(images):
    """Scores that depend on where in its window a pixel is."""
    ramp = torch.arange(images.shape[3]) * torch.arange(images.shape[2])[:, None]
    return torch.cat(
        [images[:, :2] + 0.01 * ramp, images[:, :1].mean((2, 3), True) * images[:, 1:2]], 1
    )


@pytest.mark.parametrize(
    "height, width, window, stride",
    [(20, 40, 20, 12), (21, 35, 20, 20), (33, 17, 16, 9), (10, 12, 20, 12), (20, 31, 20, 11)],
)
def test_overlapping_windows_are_averaged(height, width, window, stride):
    image = torch.randn(3, height, width, generator=torch.Generator().manual_seed(0))
    found = image_scores(score, image, 3, window, stride, (30, 37), align_corners=True)
    torch.testing.assert_close(found, naive(score, image, window, stride, (30, 37)))


def test_no_window_is_the_whole_image():
    image = torch.randn(3, 20, 30)
    whole = image_scores(score, image, 3, 0, 0, (20, 30), align_corners=False)
    assert torch.equal(whole, score(image[None])[0])


@pytest.mark.parametrize("align_corners", ["True", "False"])
def test_scores_are_scaled_by_the_configured_rule(align_corners):
    config = tiny_segmentor("MODEL.SEM_SEG_HEAD.ALIGN_CORNERS", align_corners)
    model = build_model(config).eval()
    image = {"image": torch.randint(0, 256, (3, 49, 65)), "height": 98, "width": 70}
    with torch.no_grad():
        (found,) = model([image])
        small = model.sem_seg_head(model.backbone(model.normalise(image["image"])[None])["res5"])
    assert small.shape[2:] == (7, 9)  # a pixel in eight
    rule = {"mode": "bilinear", "align_corners": align_corners == "True"}
    expected = F.interpolate(F.interpolate(small, (49, 65), **rule), (98, 70), **rule)[0]
    torch.testing.assert_close(found, expected)


def test_the_loss_is_the_mean_over_all_pixels_and_the_auxiliary_heads_is_weighted():
    model = build_model(tiny_segmentor())
    target = torch.randint(0, 5, (2, 48, 48))
    target[:, :24] = 255
    scores = torch.randn(2, 5, 48, 48)
    of_labelled = F.cross_entropy(scores[:, :, 24:], target[:, 24:])
    torch.testing.assert_close(model.loss(scores, target), of_labelled / 2)
    images = [{"image": torch.rand(3, 48, 48) * 255, "sem_seg": labels} for labels in target]
    losses = []
    for weight in ("0.4", "0.8"):
        torch.manual_seed(0)
        config = tiny_segmentor("MODEL.SEM_SEG_HEAD.AUXILIARY.LOSS_WEIGHT", weight)
        losses.append(build_model(config)(images))
    assert losses[0]["loss_sem_seg"] == losses[1]["loss_sem_seg"]
    torch.testing.assert_close(2 * losses[0]["loss_auxiliary"], losses[1]["loss_auxiliary"])


def test_the_first_block_of_a_dilated_stage_has_half_the_dilation():
    backbone = build_model(tiny_segmentor()).backbone
    for stage, expected in (("res3", [1] * 4), ("res4", [1, *[2] * 5]), ("res5", [2, 4, 4])):
        blocks = getattr(backbone, stage)
        assert [block.conv2.dilation[0] for block in blocks] == expected
        assert [block.conv2.padding[0] for block in blocks] == expected
    assert backbone(torch.zeros(1, 3, 64, 96))["res5"].shape[2:] == (8, 12)


def test_the_pickles_backbone_loads_whole_and_no_head_counts_as_backbone(tmp_path):
    config = tiny_segmentor()
    model = build_model(config)
    tensors = {
        name.removeprefix("backbone."): value.numpy() + 1
        for name, value in model.state_dict().items()
        if name.startswith("backbone.") and not name.endswith("num_batches_tracked")
    }
    backbone = read_backbone(write_pickle(tmp_path / "ours.pkl", tensors), config)
    load_backbone(model, backbone)
    assert torch.equal(
        model.backbone.res5[2].conv3.weight, torch.from_numpy(tensors["res5.2.conv3.weight"])
    )
    del tensors["res5.2.conv3.weight"]
    backbone = read_backbone(write_pickle(tmp_path / "part.pkl", tensors), config)
    with pytest.raises(UserError, match="1 backbone tensors are missing"):
        load_backbone(model, backbone)


@pytest.mark.parametrize(
    "changes, message",
    [
        (["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "21"], "NUM_CLASSES is 21, but mini_voc.* has 5"),
        (["DATASETS.TRAIN", "['mini_voc_2007_trainval']"], "is not a dataset for semantic"),
        ([*SLIDING, "TEST.SLIDING_WINDOW.STRIDE", "40"], "SIZE 33 and STRIDE 40 leave pixels out"),
        ([*SLIDING, "TEST.SLIDING_WINDOW.STRIDE", "0"], "leave pixels out"),
    ],
)
def test_what_does_not_fit_is_one_line(datasets, tmp_path, monkeypatch, changes, message):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(datasets))
    write_tiny_voc_segmentation(datasets)
    with pytest.raises(UserError, match=message):
        check(tiny_segmentor(*changes), torch.device("cpu"))
