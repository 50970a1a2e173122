"""VOC07 SVMs: labels, features, samples and AP against naive versions; the command as a whole."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from benchmark_fixtures import (
    run_to_end,
    write_annotation,
    write_tiny_voc,
)
from PIL import Image
from segmentation_fixtures import write_tiny_voc_segmentation
from torchvision.transforms.functional import resize

from benchmarks.checks import check
from benchmarks.config import find_config, load_config
from benchmarks.datasets.catalog import find_set, read_set
from benchmarks.svm import features, full, low_shot
from benchmarks.svm.classifier import average_precision, new_svm, unconverged_is_fine
from benchmarks.svm.features import OneClass
from common.errors import UserError
from common.shutdown import StopRequest

TINY = (
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", "4", "MODEL.RESNETS.RES2_OUT_CHANNELS", "16"),
    *("MODEL.RESNETS.WIDTH_PER_GROUP", "4", "SVM.COSTS", "(0.01,1.0)"),
)


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    write_tiny_voc(tmp_path, train=16, test=6)
    return tmp_path


def settings(**changes):
    known = {"COSTS": [1e-4, 0.1, 10.0], "FOLDS": 3, "SHOTS": [1, 3]}
    return SimpleNamespace(**known, **{"CHOOSE_COST_ON": "cross_validation", **changes})


def clusters(count=120, seed=0):
    """Points whose first coordinate tells, with noise, who is positive; some are difficult."""
    random = np.random.RandomState(seed)
    labels = np.where(random.random_sample(count) < 0.3, 1, -1).astype(np.int8)
    points = random.standard_normal((count, 5)) + 1.2 * labels[:, None] * [1, 0, 0, 0, 0]
    labels[::11] = 0
    return OneClass(points.astype(np.float32), labels)


def naive_ap(scores, labels):
    """Mean over the positives, best first, of the best precision there or later."""
    ranked = [label for _, label in sorted(zip(-scores, labels), key=lambda x: x[0]) if label != 0]
    precision = [ranked[: n + 1].count(1) / (n + 1) for n in range(len(ranked))]
    return np.mean([max(precision[n:]) for n, label in enumerate(ranked) if label == 1])


def test_average_precision_is_the_area_under_the_best_precisions():
    train, test = clusters(), clusters(seed=1)
    svm = new_svm(0.1, 0).fit(train.features, train.labels == 1)
    expected = naive_ap(svm.decision_function(test.features), test.labels.tolist())
    assert average_precision(svm, test) == pytest.approx(expected, rel=1e-12)
    assert 0.5 < expected < 1


def test_a_class_is_there_difficult_or_absent(datasets):
    folder = datasets / "mini/VOC2007"
    box = (1, 2, 30, 40)
    things = [("disk", box, 0), ("disk", box, 1), ("square", box, 1), ("square", box, 1)]
    write_annotation(folder, "000001", 64, 80, things)
    write_annotation(folder, "000002", 64, 80, [("square", box, 1), ("square", box, 0)])
    labels = features.class_labels(read_set("mini_voc_2007_trainval"), 4)
    assert labels[:2].tolist() == [[1, 0, -1, -1], [-1, 1, -1, -1]]


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_features_are_pooled_windows_of_res5_at_unit_length(datasets, order):
    config = load_config(find_config("mini_voc07_svm"), [*TINY, "INPUT.FORMAT", order])
    torch.manual_seed(0)
    model = features.FrozenBackbone(config).eval()
    dataset = find_set("mini_voc_2007_test")
    found = features.extract(model, dataset, config, StopRequest())
    image = dataset.read()[2]
    square = resize(Image.open(image.file), 256).resize((224, 224), Image.BILINEAR)
    pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1).float()
    pixels = pixels if order == "RGB" else pixels.flip(0)
    mean, std = (
        torch.tensor(v)[:, None, None] for v in (config.MODEL.PIXEL_MEAN, config.MODEL.PIXEL_STD)
    )
    with torch.no_grad():
        feature = model.backbone(((pixels - mean) / std)[None])["res5"][0].double()
    windows = [feature[:, y : y + 6, x : x + 6].mean((1, 2)) for y in (0, 1) for x in (0, 1)]
    expected = torch.stack(windows, dim=1).flatten()
    expected /= expected.norm() + 1e-5
    np.testing.assert_allclose(found.features[2], expected.numpy(), rtol=1e-4, atol=1e-7)


def test_the_cost_is_the_one_that_the_named_choice_prefers():
    train, test = clusters(), clusters(seed=1)
    positive = train.labels == 1
    with unconverged_is_fine():
        at_test = {
            cost: average_precision(new_svm(cost, 0).fit(train.features, positive), test)
            for cost in settings().COSTS
        }
    flattered = full.evaluate_class("x", train, test, settings(CHOOSE_COST_ON="test"), 0, 1)
    assert flattered["AP"] == pytest.approx(100 * max(at_test.values()))
    honest = full.evaluate_class("x", train, test, settings(), 0, 2)
    assert honest["AP"] == pytest.approx(100 * at_test[honest["cost"]])


def test_too_few_images_of_a_class_are_refused():
    train, test = clusters(), clusters(seed=1)
    rare = OneClass(train.features, np.where(np.arange(120) < 2, 1, -1).astype(np.int8))
    with pytest.raises(UserError, match="bird: 2 training"):
        full.evaluate_class("bird", rare, test, settings(), 0, 1)
    with pytest.raises(UserError, match=r"bird: 2 training images show it, .* asks for 3"):
        orders = low_shot.read_orders(120)
        low_shot.evaluate_class_on_few("bird", rare, test, settings(), orders, 0, 1)


def test_samples_are_committed_and_hold_k_and_19_k_images():
    random = np.random.RandomState(0)
    orders = low_shot.read_orders(5011)
    assert len(orders) == 5
    for order in orders:
        np.testing.assert_array_equal(order, random.permutation(5011))
    labels = clusters(count=120).labels
    smaller: set[int] = set()
    for shots in (1, 2, 3):
        (sample, *_) = (low_shot.draw(labels, order, shots) for order in low_shot.read_orders(120))
        assert [int((labels[sample] == wanted).sum()) for wanted in (1, 0, -1)] == [
            shots,
            0,
            min(19 * shots, int((labels == -1).sum())),
        ]
        assert smaller <= set(sample.tolist())
        smaller = set(sample.tolist())


def test_few_images_are_judged_on_the_images_of_the_other_samples():
    train, test = clusters(400), clusters(seed=1)
    orders = low_shot.read_orders(400)
    found = low_shot.evaluate_class_on_few("x", train, test, settings(), orders, 0, 1)
    for shots in (1, 3):
        samples = [low_shot.draw(train.labels, order, shots) for order in orders]
        everything = set(np.concatenate(samples).tolist())
        by_cost = {}
        for cost in settings().COSTS:
            aps = []
            for sample in samples:
                svm = new_svm(cost, 0).fit(train.features[sample], train.labels[sample] == 1)
                others = sorted(everything - set(sample.tolist()))
                scores = svm.decision_function(train.features[others])
                aps.append(naive_ap(scores, train.labels[others].tolist()))
            by_cost[cost] = np.mean(aps)
        assert found[str(shots)]["cost"] == max(by_cost, key=by_cost.get)
        assert len(found[str(shots)]["AP"]) == 5


def test_means_over_samples_are_of_each_samples_mean_over_classes():
    found = {"a": {"2": {"AP": [10, 20]}}, "b": {"2": {"AP": [30, 60]}}}
    metrics = low_shot.mean_over_samples(found)
    assert metrics == pytest.approx(
        {"mAP_k2": 30, "mAP_k2-min": 20, "mAP_k2-max": 40, "mAP_k2-std": 200**0.5}
    )


def run(datasets, *words):
    command = (sys.executable, "-m", "benchmarks", "mini_voc07_svm", "--weights", "random", *words)
    return run_to_end(datasets, command)


def test_the_command_goes_on_with_the_classes_that_are_missing(datasets):
    output = datasets / "out"
    words = ("--output", str(output), *TINY)
    done = run(datasets, *words)
    assert done.returncode == 0, done.stderr
    first = json.loads((output / "results.json").read_text())
    assert first["metrics"]["mAP"] == pytest.approx(
        np.mean(
            [first["metrics"][f"AP-{name}"] for name in ("disk", "square", "triangle", "cross")]
        )
    )
    (output / "DONE").unlink()
    (output / "classes/disk.json").unlink()
    (output / "classes/square.json").write_text(
        '{"AP": 12.5, "cost": 1.0, "examples": [1, 1, -1, 0]}'
    )
    assert run(datasets, *words).returncode == 0
    second = json.loads((output / "results.json").read_text())
    assert second["metrics"]["AP-square"] == 12.5
    assert second["metrics"]["AP-disk"] == first["metrics"]["AP-disk"]
    shown = json.loads((output / "examples/examples.json").read_text())
    assert [entry["image"] for entry in shown] == ["000017", "000018", "000020", "000021"]
    for entry in shown:
        for file in entry["files"].values():
            Image.open(output / "examples" / file).verify()
    assert (second["restarts"], second["schedule"]) == (1, {})


@pytest.mark.parametrize(
    "words, message",
    [
        (("SVM.CHOOSE_COST_ON", "testset"), "choose one of ('cross_validation', 'test')"),
        (("--engine", "detectron2"), "torchvision's only"),
        (("SVM.SHOTZ", "(1,)"), "did you mean SVM.SHOTS"),
    ],
)
def test_mistakes_are_one_line(datasets, words, message):
    done = run(datasets, "--output", str(datasets / "out"), *words)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert message in done.stderr


@pytest.mark.parametrize(
    "sets, message",
    [
        (("DATASETS.TEST", "('mini_voc_2007_seg_test',)"), "not a VOC set"),
        (("DATASETS.TRAIN", "('mini_voc_2007_test','mini_voc_2007_trainval')"), "exactly one set"),
    ],
)
def test_sets_that_svms_cannot_use_are_refused(datasets, sets, message):
    write_tiny_voc_segmentation(datasets)
    config = load_config(find_config("mini_voc07_svm"), sets)
    with pytest.raises(UserError, match=message):
        check(config, torch.device("cpu"))
