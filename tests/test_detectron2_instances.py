"""Instance benchmarks side by side with Detectron2: data, 100 iterations and the final AP."""
# ruff: noqa: E402  (imports wait for the check that Detectron2 is there)

import subprocess
import sys
from dataclasses import replace

import cityscapesscripts.evaluation
import numpy as np
import pycocotools.mask
import pytest
import torch
from benchmark_fixtures import ROOT, TINY, TINY_FPN, trunk, write_pickle
from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling as official  # noqa: N813

from benchmarks.config import find_config, load_config
from benchmarks.datasets.catalog import read_set
from benchmarks.datasets.cityscapes import CITYSCAPES_SETS
from benchmarks.datasets.coco import COCO_SETS
from benchmarks.evaluation.cityscapes_instances import cityscapes_metrics, cityscapes_predictions
from benchmarks.evaluation.coco_ap import coco_metrics, coco_predictions
from benchmarks.torchvision_engine import detection_data as data
from benchmarks.torchvision_engine.evaluate import evaluate
from benchmarks.torchvision_engine.loader import training_batches
from benchmarks.weights import load_backbone, read_backbone

pytest.importorskip("detectron2")
pytestmark = pytest.mark.detectron2

from detectron2.data import DatasetCatalog, DatasetMapper
from detectron2.data import transforms as T
from detectron2.data.datasets.cityscapes import load_cityscapes_instances
from detectron2.data.datasets.coco import load_coco_json
from detectron2.evaluation import CityscapesInstanceEvaluator, inference_on_dataset
from detectron2.structures import Boxes, BoxMode, Instances
from side_by_side import (
    assert_equal_detections,
    assert_equal_states,
    both,
    their_config,
    train_together,
)

from benchmarks.detectron2_engine import data as their_data
from benchmarks.detectron2_engine.evaluators import METRICS, evaluator

INTERNAL = "deeplearning.projects.cityscapesApi"  # where Detectron2 looks for cityscapesscripts

# Each benchmark's changes; mini_coco10 differs from mini_coco in nothing but its list of images.
TRIALS = {
    "mini_voc": TINY,
    "mini_coco": TINY_FPN,
    "mini_coco_c4": [*TINY, "MODEL.ROI_MASK_HEAD.CONV_DIM", "16"],
    "mini_cityscapes_instance": TINY_FPN,
}


@pytest.fixture
def here(datasets, monkeypatch):
    """The tiny datasets are the ones that both engines find."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(datasets))


def their_records(name="mini_coco_2017_train"):
    dataset = COCO_SETS[name]
    return load_coco_json(str(dataset.annotations), str(dataset.images), "some_coco")


def assert_equal_records(images, records):
    """Files, sizes, ids, classes, boxes and outlines, once their crowds are left out."""
    for image, record in zip(images, records, strict=True):
        assert str(image.file) == record["file_name"]
        assert image.image_id == str(record["image_id"])
        assert (image.height, image.width) == (record["height"], record["width"])
        theirs = [a for a in record["annotations"] if not a["iscrowd"]]
        for thing, expected in zip(image.objects, theirs, strict=True):
            assert thing.category == expected["category_id"]
            box = BoxMode.convert(expected["bbox"], expected["bbox_mode"], BoxMode.XYXY_ABS)
            assert list(thing.box) == list(box)
            for outline, polygon in zip(thing.polygons, expected["segmentation"], strict=True):
                np.testing.assert_array_equal(outline, polygon)


def test_coco_is_read_as_detectron2_reads_it(here, coco_images):
    assert_equal_records(coco_images, their_records())


def test_a_part_is_the_same_images_in_detectron2(here, tmp_path):
    (tmp_path / "part.txt").write_text("4\n1\n")
    whole = COCO_SETS["mini_coco_2017_train"]
    part = replace(whole, name="some_part", part=tmp_path / "part.txt")
    their_data._register_coco(part)
    assert_equal_records(part.read(), DatasetCatalog.get("some_part"))
    assert len(part.read()) == 2
    DatasetCatalog.pop("some_part")


@pytest.mark.filterwarnings("ignore:The 'resolution' argument:DeprecationWarning")
def test_cityscapes_is_read_as_detectron2_reads_it(here):
    their_data.register_datasets()
    dataset = CITYSCAPES_SETS["mini_cityscapes_fine_instance_seg_train"]
    folders = (dataset.path / kind / dataset.split for kind in ("leftImg8bit", "gtFine"))
    theirs = load_cityscapes_instances(*map(str, folders))
    assert any(a["iscrowd"] for record in theirs for a in record["annotations"])
    theirs.sort(key=lambda record: record["file_name"])
    assert_equal_records(dataset.read(), theirs)
    assert_equal_records(dataset.read(), DatasetCatalog.get(dataset.name))


def test_cityscapes_is_read_by_a_program_that_handles_signals(here):
    """Detectron2's own loader waits for ever for its pool of processes, which inherit them."""
    program = (
        "from common.shutdown import StopRequest; stop = StopRequest();"
        "from benchmarks.detectron2_engine.data import DatasetCatalog, register_datasets;"
        "register_datasets(); DatasetCatalog.get('mini_cityscapes_fine_instance_seg_train')"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=100, check=True)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("short_side", [48, 91])
def test_samples_are_what_the_mapper_gives(here, coco_images, short_side, flip):
    config = load_config(find_config("mini_coco"), ["INPUT.MIN_SIZE_TRAIN", f"({short_side},)"])
    mapper = DatasetMapper(their_config(config), is_train=True)
    flips = T.RandomFlip(prob=1.0 if flip else 0.0)
    mapper.augmentations = T.AugmentationList([mapper.augmentations.augs[0], flips])
    for image, record in zip(coco_images, their_records(), strict=True):
        ours, theirs = data.augmented(image, config, short_side, flip), mapper(record)
        assert torch.equal(ours["image"], theirs["image"])
        target, instances = ours["target"], theirs["instances"]
        assert torch.equal(target.boxes, instances.gt_boxes.tensor)
        assert torch.equal(target.classes, instances.gt_classes)
        if len(instances):
            for mine, their in zip(target.polygons, instances.gt_masks.polygons, strict=True):
                for outline, polygon in zip(mine, their, strict=True):
                    np.testing.assert_array_equal(outline, polygon)


@pytest.mark.parametrize("benchmark", TRIALS)
def test_iterations_from_one_pickle_end_at_the_same_ap(here, tmp_path, benchmark):
    iterations = 100
    # Low, so that a barely trained model detects something.
    threshold = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.01"]
    steps = ["SOLVER.MAX_ITER", str(iterations), "SOLVER.STEPS", f"({iterations - 10},)"]
    config = load_config(find_config(benchmark), [*TRIALS[benchmark], *steps, *threshold])
    images = read_set(config.DATASETS.TRAIN[0])
    backbone = read_backbone(write_pickle(tmp_path / "ours.pkl", trunk(config)), config)
    ours, theirs = both(config)
    for model in (ours, theirs):
        load_backbone(model, backbone)
    train_together(ours, theirs, images, config)
    assert_equal_states(ours, theirs)
    found = evaluate(ours, config, stop=False)
    their_data.register_datasets()
    (name,) = config.DATASETS.TEST
    loader = their_data.test_loader(their_config(config), name)
    expected = inference_on_dataset(theirs, loader, evaluator(name))[METRICS]
    assert found == pytest.approx(expected, abs=1e-6)
    assert_equal_detections(ours, theirs, next(training_batches(images, config, 0, 0)))


def test_both_evaluations_of_the_same_detections_are_equal(here):
    """True boxes and masks, moved a little more from object to object, and some twice."""
    their_data.register_datasets()
    name = "mini_coco_2017_val"
    dataset, theirs = COCO_SETS[name], evaluator(name)
    theirs.reset()
    kept = []
    for image in dataset.read():
        found = detections(image)
        kept += coco_predictions(image.image_id, *(x.numpy() for x in found))
        theirs.process([{"image_id": int(image.image_id)}], [{"instances": instances(*found)}])
    expected = theirs.evaluate()[METRICS]
    ids = [image.image_id for image in dataset.read()]
    ours = coco_metrics(kept, dataset.annotations, ids, dataset.classes, with_masks=True)
    assert ours == pytest.approx(expected, abs=1e-9)
    assert 0 < ours["APb75"] < ours["APb50"] and ours["APm50"] > 0


def test_both_evaluations_of_the_same_streets_are_equal(here, monkeypatch):
    """Detectron2's own evaluation, not the one that this project puts in its place."""
    # What it would leave where it was called, which its JSON cannot hold with today's numpy.
    monkeypatch.setattr(official, "writeDict2JSON", lambda *unused: None)
    their_data.register_datasets()
    for module in (cityscapesscripts.evaluation, official):
        monkeypatch.setitem(sys.modules, f"{INTERNAL}.{module.__name__}", module)
    name = "mini_cityscapes_fine_instance_seg_val"
    dataset, theirs = CITYSCAPES_SETS[name], CityscapesInstanceEvaluator(name)
    theirs._metadata.gt_dir = str(dataset.path / "gtFine/val")
    theirs.reset()
    kept = []
    for image in dataset.read():
        found = detections(image)
        kept += cityscapes_predictions(image.image_id, *(x.numpy() for x in found[1:]))
        theirs.process([{"file_name": str(image.file)}], [{"instances": instances(*found)}])
    expected = theirs.evaluate()["segm"]
    truths = {image.image_id: dataset.truth(image.file) for image in dataset.read()}
    ours = cityscapes_metrics(kept, truths, dataset.classes)
    assert 0 < ours["APm"] < ours["APm50"]
    assert (ours["APm"], ours["APm50"]) == pytest.approx((expected["AP"], expected["AP50"]))


def instances(boxes, scores, classes, masks):
    """Detections as Detectron2's models return them."""
    found = Instances(tuple(masks.shape[1:]))
    found.pred_boxes, found.scores, found.pred_classes = Boxes(boxes), scores, classes
    found.pred_masks = masks
    return found


def detections(image):
    """Boxes (D,4), scores (D,), classes (D,) and masks (D,H,W): each object and a worse double."""
    things = [thing for thing in image.objects for _ in range(2)]
    boxes = torch.tensor([thing.box for thing in things], dtype=torch.float32).reshape(-1, 4)
    shift = torch.arange(len(things)) % 5
    boxes += shift[:, None]
    scores = 1 / (2 + shift + torch.arange(len(things)) / 100)
    classes = torch.tensor([thing.category for thing in things], dtype=torch.int64)
    masks = torch.zeros(len(things), image.height, image.width, dtype=torch.bool)
    for number, thing in enumerate(things):
        runs = pycocotools.mask.frPyObjects(
            [outline.tolist() for outline in thing.polygons], image.height, image.width
        )
        inside = pycocotools.mask.decode(pycocotools.mask.merge(runs)).astype(bool)
        masks[number] = torch.from_numpy(inside).roll(int(shift[number]), 1)
    return boxes, scores, classes, masks
