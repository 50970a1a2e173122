"""The segmentor beside Detectron2's: equal weights, samples and random draws, equal numbers."""
# ruff: noqa: E402  (imports wait for the check that Detectron2 is there)

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmark_fixtures import ROOT, environment
from PIL import Image
from segmentation_fixtures import SLIDING, TINY, tiny_segmentor, write_tiny_voc_segmentation

from benchmarks.config import FOLDER, find_config, load_config
from benchmarks.datasets.catalog import read_set
from benchmarks.results import read_results
from benchmarks.torchvision_engine import loader
from benchmarks.torchvision_engine.evaluate import evaluate
from benchmarks.torchvision_engine.model import build_model
from benchmarks.torchvision_engine.solver import build_optimizer, build_schedule, set_learning_rate

pytest.importorskip("detectron2")
pytestmark = pytest.mark.detectron2

from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from detectron2.modeling import build_model as build_theirs
from detectron2.projects.deeplab import add_deeplab_config
from detectron2.solver import build_optimizer as build_their_optimizer

from benchmarks import detectron2_engine
from benchmarks.detectron2_engine.trainer import Trainer
from benchmarks.evaluation.mean_iou import image_confusion, mean_iou_metrics

MEAN_OVER_LABELLED = ["MODEL.SEM_SEG_HEAD.MEAN_OVER_IGNORED", "False"]
STRIDE_16 = ["MODEL.RESNETS.RES4_DILATION", "1", "MODEL.RESNETS.RES5_DILATION", "2"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("datasets")
        write_tiny_voc_segmentation(folder)
        patch.setenv("DETECTRON2_DATASETS", str(folder))
        yield read_set("mini_voc_2007_seg_trainval")


def both(config):
    """Our model and Detectron2's, from one seed, and Detectron2's configuration."""
    theirs = detectron2_engine.detectron2_config(config, 0, Path("unused"))
    torch.manual_seed(0)
    ours = build_model(config).train()
    torch.manual_seed(0)
    return ours, build_theirs(theirs).train(), theirs


def assert_equal_states(ours, theirs):
    ours, theirs = ours.state_dict(), theirs.state_dict()
    assert list(ours) == list(theirs)
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


@pytest.mark.parametrize("changes", [[], SLIDING, MEAN_OVER_LABELLED, STRIDE_16], ids=str)
def test_initialisation_losses_gradients_and_scores_are_equal(images, changes):
    config = tiny_segmentor(*changes)
    ours, theirs, _ = both(config)
    assert_equal_states(ours, theirs)
    batch = next(loader.training_batches(images, config, 0, 0))
    losses = []
    for model in (ours, theirs):
        torch.manual_seed(5)  # of the dropout
        losses.append(model(batch))
        sum(losses[-1].values()).backward()
    assert losses[0].keys() == losses[1].keys() == {"loss_sem_seg", "loss_auxiliary"}
    for name, value in losses[0].items():
        assert torch.equal(value, losses[1][name]), name
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter.grad, gradients[name]), name
    ours.eval(), theirs.eval()
    for test_batch in loader.test_batches(images[:2], config):
        with torch.no_grad():
            (found,), (expected,) = ours(test_batch), theirs(test_batch)
        assert found.shape == (5, test_batch[0]["height"], test_batch[0]["width"])
        assert torch.equal(found, expected["sem_seg"])


# What we mean to set differently from Detectron2's defaults, DeepLab's among them, and what
# they do not have (PointRend's COLOR_AUG_SSD needs OpenCV to be imported).
DIFFERENT = {
    *("DATASETS.TRAIN", "DATASETS.TEST"),
    *("DATALOADER.ASPECT_RATIO_GROUPING", "DATALOADER.FILTER_EMPTY_ANNOTATIONS"),
    *("INPUT.FORMAT", "INPUT.MIN_SIZE_TRAIN", "INPUT.MAX_SIZE_TRAIN", "INPUT.MIN_SIZE_TEST"),
    *("INPUT.MAX_SIZE_TEST", "INPUT.CROP.SIZE", "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA"),
    *("MODEL.META_ARCHITECTURE", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD"),
    *("MODEL.BACKBONE.FREEZE_AT", "MODEL.BACKBONE.NAME", "MODEL.RESNETS.NORM"),
    *("MODEL.RESNETS.OUT_FEATURES", "MODEL.RESNETS.STEM_TYPE", "MODEL.RESNETS.STRIDE_IN_1X1"),
    *("MODEL.RESNETS.RES4_DILATION", "MODEL.RESNETS.RES5_DILATION"),
    *("MODEL.RESNETS.RES5_MULTI_GRID", "MODEL.SEM_SEG_HEAD.CONVS_DIM"),
    *("MODEL.SEM_SEG_HEAD.IN_FEATURES", "MODEL.SEM_SEG_HEAD.NAME", "MODEL.SEM_SEG_HEAD.NORM"),
    *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", "SOLVER.BASE_LR", "SOLVER.CHECKPOINT_PERIOD"),
    *("SOLVER.LR_SCHEDULER_NAME", "SOLVER.MAX_ITER", "SOLVER.WEIGHT_DECAY"),
    "SOLVER.WEIGHT_DECAY_NORM",
}
OURS = {
    *("INPUT.COLOR_AUG_SSD", "INPUT.SCALE_RANGE", "SOLVER.POLY_LR_MIN"),
    *("MODEL.SEM_SEG_HEAD.ALIGN_CORNERS", "MODEL.SEM_SEG_HEAD.MEAN_OVER_IGNORED"),
    *("MODEL.SEM_SEG_HEAD.AUXILIARY.CONVS_DIM", "MODEL.SEM_SEG_HEAD.AUXILIARY.LOSS_WEIGHT"),
    *("TEST.SLIDING_WINDOW.SIZE", "TEST.SLIDING_WINDOW.STRIDE"),
}


def flatten(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, list(value) if isinstance(value, tuple) else value


def test_the_base_file_repeats_detectron2s_defaults_elsewhere():
    defaults = get_cfg()
    add_deeplab_config(defaults)
    theirs, ours = dict(flatten(defaults)), dict(flatten(load_config(FOLDER / "base_fcn.yaml")))
    assert ours.keys() - theirs.keys() == OURS
    assert {key for key in ours.keys() & theirs.keys() if ours[key] != theirs[key]} == DIFFERENT


@pytest.mark.parametrize("name", ["voc_seg", "cityscapes", "mini_voc_seg", "mini_cityscapes"])
def test_detectron2_resolves_our_files_to_the_same_values(name):
    config = load_config(find_config(name))
    resolved = dict(flatten(detectron2_engine.detectron2_config(config, 0, Path("unused"))))
    for key, value in flatten(config):
        assert resolved[key] == value, key


def test_one_hundred_training_steps_are_equal(images):
    config = tiny_segmentor("SOLVER.MAX_ITER", "100", "INPUT.CROP.SIZE", "(32, 32)")
    ours, theirs, their_config = both(config)
    optimizer = build_optimizer(config.SOLVER, ours)
    their_optimizer = build_their_optimizer(their_config, theirs)
    schedule = build_schedule(config.SOLVER)
    scheduler = Trainer.build_lr_scheduler(their_config, their_optimizer)
    batches = loader.training_batches(images, config, 0, 0)
    for step in range(100):
        batch = next(batches)
        rate = set_learning_rate(optimizer, config.SOLVER, schedule, step)
        assert rate == pytest.approx(their_optimizer.param_groups[0]["lr"], rel=1e-12)
        totals = []
        for model, optim in ((ours, optimizer), (theirs, their_optimizer)):
            torch.manual_seed(step)
            totals.append(sum(model(batch).values()))
            optim.zero_grad()
            totals[-1].backward()
            optim.step()
        assert totals[0].item() == pytest.approx(totals[1].item(), rel=1e-5), step
        scheduler.step()
    found, expected = (evaluate_with(model, config) for model in (ours, theirs))
    assert found == pytest.approx(expected, abs=0.01)


def evaluate_with(model, config):
    """The torchvision engine's metrics of either engine's model."""

    def scores(batch):
        return [x["sem_seg"] if isinstance(x, dict) else x for x in model(batch)]

    model.eval()
    scores.eval = model.eval
    return evaluate(scores, config, stop=False)


def test_miou_is_that_of_detectron2s_evaluator(images):
    classes = ("background", "disk", "square", "triangle", "cross")
    records = [{"file_name": str(i.file), "sem_seg_file_name": str(i.labels)} for i in images]
    DatasetCatalog.register("test_semantic", lambda: records)
    MetadataCatalog.get("test_semantic").set(stuff_classes=classes, ignore_label=255)
    theirs = SemSegEvaluator("test_semantic", distributed=False)
    theirs.reset()
    random, confusion = np.random.default_rng(0), 0
    for image, record in zip(images, records):
        truth = np.asarray(Image.open(image.labels))
        guessed = np.where(random.random(truth.shape) < 0.6, truth % 255, random.integers(0, 5))
        confusion = confusion + image_confusion(image, guessed, 5)
        one_hot = torch.nn.functional.one_hot(torch.from_numpy(guessed).long(), 5)
        theirs.process([record], [{"sem_seg": one_hot.permute(2, 0, 1)}])
    expected = theirs.evaluate()["sem_seg"]
    found = mean_iou_metrics(confusion, classes)
    pairs = {"mIoU": "mIoU", "mAcc": "mACC", "pixel_acc": "pACC"}
    pairs |= {f"IoU-{name}": f"IoU-{name}" for name in classes}
    for ours, name in pairs.items():
        assert found[ours] == pytest.approx(expected[name], abs=1e-9), name
    DatasetCatalog.remove("test_semantic")


def test_a_whole_run_gives_the_metrics_of_its_model(images, tmp_path):
    datasets = images[0].file.parents[3]
    words = ["mini_voc_seg", "--weights", "random", "--engine", "detectron2", "--output"]
    command = [sys.executable, "-m", "benchmarks", *words, str(tmp_path / "run"), *TINY]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(datasets), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    results = read_results(tmp_path / "run" / "results.json")
    model = build_model(tiny_segmentor())
    model.load_state_dict(torch.load(tmp_path / "run/model_final.pth", weights_only=True)["model"])
    assert evaluate(model, tiny_segmentor(), stop=False) == pytest.approx(results.metrics, abs=1e-9)
