"""The torchvision engine's Mask R-CNN gives Detectron2's numbers, as recorded in tests/golden."""

from pathlib import Path

import numpy as np
import pytest
import torch
from golden import recipe
from golden.checks import assert_close, assert_state_is_detectron2s, first_k, golden, images

from benchmarks.config import load_config
from benchmarks.torchvision_engine.boxes import Target
from benchmarks.torchvision_engine.fpn import assign_levels
from benchmarks.torchvision_engine.masks import of_class, paste, rasterize
from benchmarks.torchvision_engine.model import build_model
from benchmarks.torchvision_engine.solver import build_optimizer
from benchmarks.weights import Backbone, load_backbone, prove_loaded
from common.errors import UserError


def config(*changes):
    return load_config(recipe.FOLDER / "thin_fpn_mask.yaml", changes)


def model(*changes):
    built = build_model(config(*changes))
    built.load_state_dict(recipe.state("fpn_state_spec.json"))
    return built


def test_state_dict_is_detectron2s():
    assert_state_is_detectron2s(build_model(config()), "fpn_state_spec.json")


def test_a_backbone_is_loaded_below_the_pyramid():
    source, detector = model(), build_model(config())
    tensors = {
        name: value.numpy()
        for name, value in source.backbone.bottom_up.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    load_backbone(detector, Backbone(Path("unused"), "", tensors))
    assert prove_loaded(detector, Backbone(Path("unused"), "", tensors)) == len(tensors) == 265


def test_every_evaluation_stage():
    expected, detector, batch = golden("fpn_eval.npz"), model().eval(), images(with_polygons=True)
    with torch.no_grad():
        pixels, sizes = detector.preprocess(batch)
        assert_close(pixels, expected["input"])
        assert_close(sizes, expected["image_sizes"], 0)
        pyramid, pooled_levels = detector.features(pixels)
        rpn = detector.proposal_generator
        anchors = rpn.anchors(pyramid)
        logits, deltas = rpn.rpn_head(pyramid)
        for level, feature in enumerate(pyramid):
            assert_close(feature, expected[f"feat.p{level + 2}"])
            assert_close(anchors[level], expected[f"anchors.{level}"], 0)
            count, per_cell, height, width = expected[f"rpn_logits.{level}"].shape
            cells = (count, height, width)
            level_logits = logits[level].view(*cells, per_cell).permute(0, 3, 1, 2)
            level_deltas = deltas[level].view(*cells, 4 * per_cell).permute(0, 3, 1, 2)
            assert_close(level_logits, expected[f"rpn_logits.{level}"])
            assert_close(level_deltas, expected[f"rpn_deltas.{level}"])
        proposals, _ = rpn(pyramid, sizes, None)
        for number, boxes in enumerate(proposals):
            assert_close(boxes, expected[f"prop_boxes.{number}"])
        heads = detector.roi_heads
        pooled = heads.pool(pooled_levels, proposals, heads.box_settings)
        assert_close(pooled[:8], expected["pooled"])
        assert_close(heads.box_head(pooled), expected["box_features"])
        class_logits, box_deltas = heads.predict(pooled_levels, proposals)
        assert_close(class_logits, expected["cls_logits"])
        assert_close(box_deltas, expected["box_deltas"])


def test_detections_before_and_after_rescaling():
    expected, detector, batch = golden("fpn_eval.npz"), model().eval(), images(with_polygons=True)
    with torch.no_grad():
        pixels, sizes = detector.preprocess(batch)
        pyramid, pooled_levels = detector.features(pixels)
        proposals, _ = detector.proposal_generator(pyramid, sizes, None)
        raw, _ = detector.roi_heads(pooled_levels, proposals, sizes, None)
        final = detector(batch)
    for number, found in enumerate(raw):
        # Two threads move Detectron2's own probabilities by 1.4e-4.
        wanted = expected[f"raw_maskprob.{number}"]
        np.testing.assert_allclose(found.masks[:, None], wanted, rtol=0, atol=5e-4)
    for number, found in enumerate(final):
        shape = tuple(expected[f"out_masks_shape.{number}"])
        wanted = np.unpackbits(expected[f"out_masks_packed.{number}"], count=np.prod(shape))
        assert found.masks.shape == shape and found.masks.dtype == torch.bool
        # Probabilities at the threshold fall to either side: 4 of 6 million pixels were seen.
        assert (found.masks.numpy() != wanted.reshape(shape)).sum() <= 20
    for stage, detections in (("raw", raw), ("out", final)):
        for number, found in enumerate(detections):
            for field in ("boxes", "scores", "classes"):
                assert_close(getattr(found, field), expected[f"{stage}_{field}.{number}"])


def test_first_training_step(monkeypatch):
    first_k(monkeypatch)
    expected, detector = golden("fpn_train.npz"), model().train()
    optimizer = build_optimizer(config().SOLVER, detector)
    losses = detector(images(with_polygons=True))
    assert len(losses) == 5
    for name, value in losses.items():
        assert_close(value, expected[f"{name}.step0"])
    sum(losses.values()).backward()
    parameters = dict(detector.named_parameters())
    # Another CPU's rounding moves few gradients far: 2 % at most, 0.03 % in the median were seen.
    norms = [parameters[name].grad.double().norm().item() for name in expected["grad_names"]]
    used = expected["grad_norms"] > 0  # the sample has nothing on p5
    assert not np.array(norms)[~used].any() and used.sum() == len(used) - 3
    errors = np.abs(np.array(norms)[used] / expected["grad_norms"][used] - 1)
    assert np.median(errors) < 1e-3 and errors.max() < 0.05
    for key in expected.files:
        if key.startswith("grad."):
            gradient = parameters[key.removeprefix("grad.")].grad.numpy()
            error = np.linalg.norm(gradient - expected[key]) / np.linalg.norm(expected[key])
            assert error < 0.05, key
    optimizer.step()
    state = detector.state_dict()
    norms = [state[name].double().norm().item() for name in expected["step1_names"]]
    assert_close(norms, expected["step1_norms"], 1e-3)


def test_sampled_anchors_and_proposals(monkeypatch):
    first_k(monkeypatch)
    expected, detector, batch = golden("fpn_train.npz"), model().train(), images(with_polygons=True)
    pixels, sizes = detector.preprocess(batch)
    pyramid, _ = detector.features(pixels)
    rpn, targets = detector.proposal_generator, [image["target"] for image in batch]
    labels, _ = rpn.label_anchors(torch.cat(rpn.anchors(pyramid)), targets)
    assert_close(labels, expected["anchor_labels"], 0)
    proposals, _ = rpn(pyramid, sizes, targets)
    for number, (boxes, target) in enumerate(zip(proposals, targets)):
        assert_close(boxes, expected[f"train_prop_boxes.{number}"])
        sample = detector.roi_heads.sample(boxes, target)
        assert_close(sample.boxes, expected[f"samp_boxes.{number}"])
        assert_close(sample.classes, expected[f"samp_classes.{number}"], 0)
        objects = sample.classes < 4
        wanted = expected[f"samp_gt_boxes.{number}"][objects.numpy()]
        assert_close(sample.target_boxes[objects], wanted)
        assert_close(target.boxes[sample.target_indices[objects]], wanted)


def test_random_sampling_draws_as_detectron2():
    expected = golden("fpn_train.npz")
    for seed in range(3):
        detector = model().train()
        torch.manual_seed(seed)
        for name, value in detector(images(with_polygons=True)).items():
            assert_close(value, expected[f"{name}.seed{seed}"])


def test_a_box_goes_to_the_level_of_its_size():
    # 111.99995 and 223.9999 are where torchvision's epsilon would choose the next level.
    sides = torch.tensor([0.0, 111.99995, 112.0, 223.9999, 224.0, 447.9, 448.0, 5000.0])
    boxes = torch.stack([torch.zeros_like(sides), torch.zeros_like(sides), sides, sides], dim=1)
    assert assign_levels(boxes).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_mask_is_rasterised_within_the_box_and_pasted_back():
    square = np.array([10.0, 10, 20, 10, 20, 20, 10, 20])
    box = np.array([10, 10, 30, 20], np.float32)  # twice as wide as the square, and as high
    mask = rasterize([square], box, 28)
    assert mask[:, :14].all() and not mask[:, 14:].any()
    (pasted,) = paste(mask[None].float(), torch.from_numpy(box)[None], 40, 50)
    rows, columns = torch.where(pasted)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 19, 10, 19)
    assert len(rows) == 100


def test_each_mask_is_that_of_its_class():
    logits = torch.arange(3 * 4).reshape(3, 4, 1, 1)
    assert of_class(logits, torch.tensor([2, 0, 3])).flatten().tolist() == [2, 4, 11]


def test_an_image_without_objects_has_finite_losses():
    batch = images(with_polygons=True)
    batch[1]["target"] = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), [])
    losses = model().train()(batch)
    assert all(torch.isfinite(value) for value in losses.values())


def test_an_image_without_detections_has_no_masks():
    found = model("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "1.0").eval()(images(with_polygons=True))
    assert [image.masks.shape for image in found] == [(0, 240, 304), (0, 100, 90)]


def test_boxes_alone_need_no_masks():
    detector = build_model(config("MODEL.MASK_ON", "False"))
    batch = [
        {**image, "target": image["target"]._replace(polygons=None)}
        for image in images(with_polygons=True)
    ]
    losses = detector.train()(batch)
    assert "loss_mask" not in losses
    assert not any(name.startswith("roi_heads.mask") for name in detector.state_dict())
    with pytest.raises(UserError, match="the training set has no masks"):
        model().train()(batch)


@pytest.mark.parametrize(
    "key, value",
    [
        ("MODEL.FPN.IN_FEATURES", "['res3', 'res4', 'res5']"),
        ("MODEL.ROI_HEADS.NAME", "CascadeROIHeads"),
        ("MODEL.ROI_MASK_HEAD.NORM", "GN"),
    ],
)
def test_what_is_not_built_is_said(key, value):
    with pytest.raises(UserError, match=f"{key} is .* engine builds"):
        build_model(config(key, value))
