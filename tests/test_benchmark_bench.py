"""The engines' timer: both do the same work in turn, and the ratio is that of their speeds."""

import json
import sys

import pytest
import torch
from benchmark_fixtures import TINY, TINY_FPN

from benchmarks import bench
from common.errors import run_command


@pytest.fixture
def call(datasets, monkeypatch, tmp_path):
    """Run the command in this process; what it wrote."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(datasets))

    def calling(*words):
        file = tmp_path / "found.json"
        monkeypatch.setattr(sys, "argv", ["bench", *words, "--json", str(file)])
        run_command(bench.main)
        return json.loads(file.read_text())

    return calling


@pytest.mark.detectron2
@pytest.mark.parametrize(
    "benchmark, words", [("mini_voc", TINY), ("mini_coco", TINY_FPN)], ids=["c4", "fpn"]
)
def test_both_engines_train_the_same_model_in_turn(call, monkeypatch, capsys, benchmark, words):
    pytest.importorskip("detectron2")
    norms, original = [], torch.optim.SGD.step

    def record(optimizer, *rest):
        result = original(optimizer, *rest)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norms.append(sorted(p.detach().double().norm().item() for p in parameters))
        return result

    monkeypatch.setattr(torch.optim.SGD, "step", record)
    found = call(benchmark, "--iterations", "2", "--batch-size", "2", *words)
    assert len(norms) == 2 * (3 + 2)
    assert norms[0::2] == norms[1::2] and norms[0] != norms[2]
    ours, theirs = (found["engines"][name] for name in ("torchvision", "detectron2"))
    assert found["settings"]["SOLVER.IMS_PER_BATCH"] == 2
    assert min(engine["loader_samples_per_second"] for engine in (ours, theirs)) > 0
    assert f"{found['ratio']['median']:.3f} times Detectron2's" in capsys.readouterr().out


@pytest.mark.detectron2
def test_what_detectron2_cannot_do_here_is_timed_without_it(call, capsys):
    pytest.importorskip("detectron2")
    words = ["--iterations", "1", "--batch-size", "2", *TINY, "SOLVER.AMP.ENABLED", "True"]
    found = call("mini_voc", *words, "MODEL.DEVICE", "cpu")
    assert list(found["engines"]) == ["torchvision"] and "ratio" not in found
    assert "the torchvision engine alone: SOLVER.AMP.ENABLED" in capsys.readouterr().out


def test_the_ratio_is_of_each_rounds_speeds():
    seconds = {"torchvision": [1.0, 2.0, 4.0], "detectron2": [3.0, 2.0, 8.0]}
    found = bench.summary(seconds, {"torchvision": 5.0, "detectron2": 6.0})
    assert found["ratio"] == {"low": 1.5, "median": 2.0, "high": 2.5}
    ours = found["engines"]["torchvision"]
    assert ours["seconds_per_step"] == {"low": 1.5, "median": 2.0, "high": 3.0}
    assert (ours["iterations_per_second"], ours["loader_samples_per_second"]) == (0.5, 5.0)


def test_without_detectron2_one_line_says_so(call, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith("detectron2")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "benchmarks.detectron2_engine", raising=False)
    monkeypatch.setitem(sys.modules, "detectron2", None)
    found = call("mini_voc", "--iterations", "1", *TINY)
    assert list(found["engines"]) == ["torchvision"] and "ratio" not in found
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("the torchvision engine alone: Detectron2 is not importable")


@pytest.mark.parametrize(
    "words, message",
    [
        (["mini_vox"], "did you mean mini_voc"),
        (["mini_voc", "--iterations", "0"], "--iterations 0: at least 1"),
        (["mini_voc", "--weights", "nowhere.pkl"], "nowhere.pkl: no such file"),
        (["mini_voc07_svm"], "no training steps"),
    ],
)
def test_a_mistake_is_one_line(call, capsys, words, message):
    with pytest.raises(SystemExit) as left:
        call(*words)
    error = capsys.readouterr().err
    assert left.value.code == 2 and error.count("\n") == 1 and message in error
