"""The torchvision engine's segmentor gives Detectron2's numbers, as recorded in tests/golden."""

import numpy as np
import pytest
import torch
from golden import recipe
from golden.checks import assert_close, assert_state_is_detectron2s, golden

from benchmarks.config import load_config
from benchmarks.torchvision_engine.model import build_model
from common.errors import UserError

CHANGES = {
    "d8": [],
    "os16": [
        *("MODEL.RESNETS.RES4_DILATION", "1"),
        *("MODEL.RESNETS.RES5_DILATION", "2"),
    ],
}
both_strides = pytest.mark.parametrize("variant", CHANGES)


def config(changes=()):
    return load_config(recipe.FOLDER / "thin_fcn.yaml", changes)


def segmentor(variant):
    """With the golden weights, and without dropout."""
    built = build_model(config(CHANGES[variant]))
    built.load_state_dict(recipe.state(f"fcn_{variant}_state_spec.json"))
    built.sem_seg_head.dropout.p = 0.0
    return built


def image(seed, height=96, width=128):
    pixels = recipe.make_image(seed, height, width)
    labels = torch.from_numpy(recipe.make_image(seed + 50, height, width)[..., 0] // 52).long()
    labels[:5] = 255
    tensor = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
    return {"image": tensor, "sem_seg": labels, "height": 70, "width": 90}


def images():
    return [image(3), image(4)]


@both_strides
def test_state_dict_is_detectron2s(variant):
    model = build_model(config(CHANGES[variant]))
    assert_state_is_detectron2s(model, f"fcn_{variant}_state_spec.json")


@both_strides
def test_every_evaluation_stage(variant):
    expected, model, batch = golden(f"fcn_{variant}.npz"), segmentor(variant).eval(), images()
    features, logits = [], []  # image by image
    model.backbone.register_forward_hook(lambda _, __, output: features.append(output["res5"]))
    model.sem_seg_head.register_forward_hook(lambda _, __, output: logits.append(output))
    with torch.no_grad():
        scores = model(batch)
    assert_close(torch.cat(features)[:, :16], expected["feat.res5.first16ch"])
    assert_close(torch.cat(logits), expected["logits"])
    for number, found in enumerate(scores):
        assert_close(found, expected[f"out.{number}"])


@both_strides
def test_loss_and_gradients(variant):
    expected, model = golden(f"fcn_{variant}.npz"), segmentor(variant).train()
    losses = model(images())
    assert list(losses) == ["loss_sem_seg"]
    assert_close(losses["loss_sem_seg"], expected["loss_sem_seg"])
    losses["loss_sem_seg"].backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert sorted(gradients) == sorted(expected["grad_names"])
    # Another CPU's rounding moves few gradients far.
    norms = [gradients[name].double().norm().item() for name in expected["grad_names"]]
    errors = np.abs(norms / expected["grad_norms"] - 1)
    assert np.median(errors) < 1e-3 and errors.max() < 0.05


@both_strides
def test_images_of_different_and_odd_sizes(variant):
    batch = [image(3), image(4, 83, 101)]
    model = segmentor(variant).eval()
    with torch.no_grad():
        assert [score.shape for score in model(batch)] == [(5, 70, 90)] * 2
    model.train()
    loss = model(batch)["loss_sem_seg"]
    # What pads the smaller image's labels counts as ignored.
    padded = torch.full((96, 128), 255)
    padded[:83, :101] = batch[1]["sem_seg"]
    batch[1]["sem_seg"] = padded
    assert model(batch)["loss_sem_seg"] == loss
    assert torch.isfinite(model([image(5, 83, 101)])["loss_sem_seg"])


def test_dropout_acts_in_training_only():
    model = segmentor("d8")
    model.sem_seg_head.dropout.p = 0.1
    batch = images()
    assert model.train()(batch)["loss_sem_seg"] != model(batch)["loss_sem_seg"]
    with torch.no_grad():
        assert torch.equal(model.eval()(batch)[0], model(batch)[0])


@pytest.mark.parametrize(
    "key, value",
    [
        ("RESNETS.RES5_MULTI_GRID", "[1, 2, 4]"),
        ("RESNETS.RES4_DILATION", "4"),
        ("RESNETS.STEM_TYPE", "deeplab"),
        ("BACKBONE.NAME", "build_resnet_backbone"),
        ("SEM_SEG_HEAD.AUXILIARY.LOSS_WEIGHT", "0.4"),  # without res4 among the OUT_FEATURES
    ],
)
def test_what_is_not_built_is_refused(key, value):
    with pytest.raises(UserError, match="torchvision engine builds"):
        build_model(config([f"MODEL.{key}", value]))


@pytest.mark.detectron2
@both_strides
def test_equal_seeds_give_detectron2s_trunk(variant):
    pytest.importorskip("detectron2")
    from detectron2.config import get_cfg
    from detectron2.layers import ShapeSpec
    from detectron2.modeling import build_backbone
    from detectron2.projects.deeplab import add_deeplab_config

    theirs = get_cfg()
    add_deeplab_config(theirs)
    theirs.set_new_allowed(True)
    theirs.merge_from_other_cfg(config(CHANGES[variant]))
    torch.manual_seed(0)
    expected = build_backbone(theirs, ShapeSpec(channels=3)).eval()
    torch.manual_seed(0)
    found = build_model(config(CHANGES[variant])).backbone.eval()
    weights = found.state_dict()
    for name, value in expected.state_dict().items():
        assert torch.equal(weights[name], value), name
    pixels = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(found(pixels)["res5"], expected(pixels)["res5"])
