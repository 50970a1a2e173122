"""Side by side with Detectron2 itself: equal weights, batches and random draws, equal numbers."""
# ruff: noqa: E402  (imports wait for the check that Detectron2 is there)

import numpy as np
import pytest
import torch
from benchmark_fixtures import tiny_config
from golden import recipe

from benchmarks.config import FOLDER, find_config, load_config
from benchmarks.torchvision_engine import detection_data as data
from benchmarks.torchvision_engine import loader
from benchmarks.torchvision_engine.solver import build_schedule, set_learning_rate

pytest.importorskip("detectron2")
pytestmark = pytest.mark.detectron2

from detectron2.config import get_cfg
from detectron2.data import DatasetMapper, detection_utils
from detectron2.data import transforms as T
from detectron2.data.datasets.pascal_voc import load_voc_instances
from detectron2.solver import build_lr_scheduler
from side_by_side import (
    assert_equal_detections,
    assert_equal_losses_and_gradients,
    assert_equal_states,
    both,
    their_config,
)

DETECTORS = [
    file for file in sorted(FOLDER.glob("*.yaml")) if "ROI_HEADS" in load_config(file).MODEL
]

# What we mean to set differently from Detectron2's defaults and its Base-RCNN-C4.yaml.
DIFFERENT = {
    "MODEL.PIXEL_MEAN",
    "MODEL.PIXEL_STD",
    "MODEL.BACKBONE.FREEZE_AT",
    "MODEL.RESNETS.NORM",
    "MODEL.RESNETS.STRIDE_IN_1X1",
    "MODEL.ROI_HEADS.NAME",
    "INPUT.FORMAT",
    "SOLVER.CHECKPOINT_PERIOD",
    "TEST.PRECISE_BN.ENABLED",
}
# What Base-RCNN-C4.yaml sets on top of the defaults.
BASE_C4 = {
    "DATASETS.TRAIN": ("coco_2017_train",),
    "DATASETS.TEST": ("coco_2017_val",),
    "SOLVER.BASE_LR": 0.02,
    "SOLVER.STEPS": (60000, 80000),
    "SOLVER.MAX_ITER": 90000,
    "INPUT.MIN_SIZE_TRAIN": (640, 672, 704, 736, 768, 800),
    "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 6000,
}
# The same for a pyramid and Base-RCNN-FPN.yaml: masks, four convolutions and a linear layer.
DIFFERENT_FPN = {
    *(DIFFERENT - {"MODEL.ROI_HEADS.NAME"}),
    "MODEL.MASK_ON",
    "MODEL.FPN.NORM",
    "MODEL.ROI_BOX_HEAD.NUM_CONV",
    "MODEL.ROI_BOX_HEAD.NUM_FC",
    "MODEL.ROI_BOX_HEAD.NORM",
    "MODEL.ROI_MASK_HEAD.NORM",
}
STAGES, LEVELS = ("res2", "res3", "res4", "res5"), ("p2", "p3", "p4", "p5", "p6")
BASE_FPN = {
    **{key: v for key, v in BASE_C4.items() if not key.startswith("MODEL")},
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.RESNETS.OUT_FEATURES": STAGES,
    "MODEL.FPN.IN_FEATURES": STAGES,
    "MODEL.ANCHOR_GENERATOR.SIZES": ((32,), (64,), (128,), (256,), (512,)),
    "MODEL.RPN.IN_FEATURES": LEVELS,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 2000,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 1000,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 1000,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES": LEVELS[:4],
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 4,
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,
}


def flatten(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, tuple(value) if isinstance(value, list | tuple) else value


@pytest.mark.parametrize(
    "name, base, meant",
    [("base_rcnn_c4", BASE_C4, DIFFERENT), ("base_rcnn_fpn", BASE_FPN, DIFFERENT_FPN)],
    ids=["c4", "fpn"],
)
def test_the_base_file_repeats_detectron2s_defaults(name, base, meant):
    theirs = {**dict(flatten(get_cfg())), **base}
    ours = dict(flatten(load_config(FOLDER / f"{name}.yaml")))
    assert ours.keys() <= theirs.keys()
    different = {key for key, value in ours.items() if plain(value) != plain(theirs[key])}
    assert different == meant


def plain(value):
    return tuple(plain(item) for item in value) if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("file", DETECTORS, ids=lambda file: file.stem)
def test_detectron2_resolves_our_files_to_the_same_values(file):
    theirs = get_cfg()
    theirs.merge_from_file(str(file))
    resolved = dict(flatten(theirs))
    for key, value in flatten(load_config(file)):
        assert plain(resolved[key]) == plain(value), key


@pytest.mark.parametrize(
    "changes",
    [
        [],
        ["MODEL.RESNETS.STRIDE_IN_1X1", "True", "MODEL.RESNETS.DEPTH", "101"],
        ["MODEL.RESNETS.NORM", "FrozenBN", "MODEL.BACKBONE.FREEZE_AT", "2"],
        ["MODEL.BACKBONE.FREEZE_AT", "1", "MODEL.ROI_HEADS.NAME", "Res5ROIHeads"],
        ["MODEL.MASK_ON", "True", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.01"],
        ["MODEL.RPN.SMOOTH_L1_BETA", "0.2", "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA", "0.5"],
    ],
    ids=lambda changes: " ".join(changes[::2]) or "plain",
)
def test_initialisation_losses_gradients_and_detections_are_equal(coco_images, changes):
    config = tiny_config(*changes)
    ours, theirs = both(config)
    assert_equal_states(ours, theirs)
    batch = next(loader.training_batches(coco_images, config, 0, 0))
    assert_equal_losses_and_gradients(ours, theirs, batch)
    assert_equal_detections(ours, theirs, batch)


@pytest.mark.parametrize(
    "changes",
    [
        [],
        ["MODEL.MASK_ON", "False"],
        ["MODEL.FPN.NORM", "''", "MODEL.ROI_BOX_HEAD.NORM", "''", "MODEL.ROI_MASK_HEAD.NORM", "''"],
        ["MODEL.ROI_BOX_HEAD.NUM_CONV", "0", "MODEL.ROI_BOX_HEAD.NUM_FC", "2"],
        ["MODEL.RESNETS.NORM", "FrozenBN", "MODEL.BACKBONE.FREEZE_AT", "2"],
    ],
    ids=lambda changes: " ".join(changes[::2]) or "plain",
)
def test_a_pyramids_initialisation_losses_gradients_and_detections_are_equal(coco_images, changes):
    # An untrained model's scores are all alike: a low threshold gives detections to compare.
    threshold = ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.01")
    config = load_config(recipe.FOLDER / "thin_fpn_mask.yaml", [*threshold, *changes])
    ours, theirs = both(config)
    assert_equal_states(ours, theirs)
    batch = next(loader.training_batches(coco_images, config, 0, 0))
    assert_equal_losses_and_gradients(ours, theirs, batch)
    assert_equal_detections(ours, theirs, batch)


@pytest.mark.parametrize("benchmark", ["voc", "mini_voc"])
def test_every_iterations_learning_rate_is_equal(benchmark):
    config = load_config(find_config(benchmark))
    parameter = torch.nn.Parameter(torch.zeros(1))
    ours, theirs = (torch.optim.SGD([parameter], lr=config.SOLVER.BASE_LR) for _ in range(2))
    schedule, scheduler = (
        build_schedule(config.SOLVER),
        build_lr_scheduler(their_config(config), theirs),
    )
    for iteration in range(config.SOLVER.MAX_ITER):
        rate = set_learning_rate(ours, config.SOLVER, schedule, iteration)
        assert rate == theirs.param_groups[0]["lr"], iteration
        theirs.step()
        scheduler.step()


def test_annotations_are_read_as_detectron2_reads_them(images):
    folder = images[0].file.parent.parent
    theirs = load_voc_instances(str(folder), "trainval", ["disk", "square", "triangle", "cross"])
    for image, record in zip(images, theirs, strict=True):
        assert (str(image.file), image.image_id) == (record["file_name"], record["image_id"])
        assert (image.height, image.width) == (record["height"], record["width"])
        for ours, expected in zip(image.objects, record["annotations"], strict=True):
            assert ours.category == expected["category_id"]
            assert list(ours.box) == expected["bbox"]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("short_side", [48, 90, 131])
def test_samples_are_what_the_mapper_gives(images, short_side, flip):
    config = tiny_config("INPUT.MIN_SIZE_TRAIN", f"({short_side},)")
    mapper = DatasetMapper(their_config(config), is_train=True)
    flips = T.RandomFlip(prob=1.0 if flip else 0.0)
    mapper.augmentations = T.AugmentationList([mapper.augmentations.augs[0], flips])
    folder = images[0].file.parent.parent
    records = load_voc_instances(str(folder), "trainval", ["disk", "square", "triangle", "cross"])
    for image, record in zip(images, records):
        ours, theirs = data.augmented(image, config, short_side, flip), mapper(record)
        assert torch.equal(ours["image"], theirs["image"])
        assert torch.equal(ours["target"].boxes, theirs["instances"].gt_boxes.tensor)
        assert torch.equal(ours["target"].classes, theirs["instances"].gt_classes)


def test_test_images_are_what_the_mapper_gives(images):
    config = tiny_config("INPUT.FORMAT", "BGR")
    mapper = DatasetMapper(their_config(config), is_train=False)
    for image in images:
        record = {"file_name": str(image.file), "height": image.height, "width": image.width}
        assert torch.equal(data.test_sample(image, config)["image"], mapper(record)["image"])
        theirs = detection_utils.read_image(str(image.file), "RGB")
        assert np.asarray(theirs).shape == (image.height, image.width, 3)
