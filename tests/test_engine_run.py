"""Whole runs of the tiny detector: interrupted in every way, they end bit-equal."""

import io
import os
import signal
import sys
import time

import processes
import pytest
import torch
from benchmark_fixtures import TINY_FPN, command

from benchmarks.results import read_results
from common.errors import run_command


@pytest.fixture(scope="module")
def uninterrupted(datasets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "straight"
    processes.run(child, 1, words(folder), str(datasets))
    return folder


@pytest.mark.parametrize("benchmark", ["mini_coco", "mini_cityscapes_instance"])
def test_masks_of_two_processes_are_evaluated_together(datasets, tmp_path, benchmark):
    folder = tmp_path / "two"
    short = ["SOLVER.MAX_ITER", "2", "TEST.PRECISE_BN.ENABLED", "False"]
    request = [benchmark, "--weights", "random", "--engine", "torchvision", *TINY_FPN, *short]
    processes.run(child, 2, [*request, "--output", str(folder)], str(datasets))
    results = read_results(folder / "results.json")
    assert results.device == "2 x CPU"
    assert {"APm", "APm50"} <= results.metrics.keys()
    assert ("APb" in results.metrics) == (benchmark == "mini_coco")


def words(folder, *more):
    return command("--weights", "random", "--seed", "3", "--output", str(folder), *more)[3:]


def child(arguments, datasets):
    """The command itself, in a child process."""
    os.environ["DETECTRON2_DATASETS"] = datasets
    sys.argv = ["benchmarks", *arguments]
    sys.stdout = sys.stderr = io.StringIO()
    from benchmarks.__main__ import main

    run_command(main)


def begin_and_signal(folder, datasets, number, after):
    """Start a run, send it a signal once `after` is there; its exit code."""
    (process,) = processes.start(child, 1, words(folder), str(datasets))
    deadline = time.monotonic() + 60
    while not (folder / "checkpoints" / after).exists():
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, number)
    processes.join([process])
    return process.exitcode


def final_model(folder):
    return torch.load(folder / "model_final.pth", weights_only=True)["model"]


def assert_equal_ends(folder, expected):
    ours, theirs = final_model(folder), final_model(expected)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    found = read_results(folder / "results.json")
    assert found.metrics == read_results(expected / "results.json").metrics
    return found


def test_a_finished_run_says_what_it_did(uninterrupted):
    results = read_results(uninterrupted / "results.json")
    assert (results.benchmark, results.row, results.seed) == ("mini_voc_r50_c4", "random", 3)
    assert (results.engine, results.restarts) == ("torchvision", 0)
    assert results.schedule == {"iterations": 8, "batch": 2}
    assert results.trained_on == ["mini_voc_2007_trainval"]
    assert {"AP", "AP50", "AP75", "AP50-disk", "AP50-cross"} <= results.metrics.keys()
    assert (uninterrupted / "DONE").exists()
    assert 0 < results.seconds < 300


@pytest.mark.parametrize("after", ["step_00000002.pth", "step_00000006.pth"])
def test_kill_9_and_resume_ends_bit_equal(datasets, uninterrupted, tmp_path, after):
    folder = tmp_path / "killed"
    assert begin_and_signal(folder, datasets, signal.SIGKILL, after) == -signal.SIGKILL
    assert not (folder / "DONE").exists()
    processes.run(child, 1, words(folder), str(datasets))
    assert assert_equal_ends(folder, uninterrupted).restarts == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_stop_signal_saves_and_the_same_command_continues(
    datasets, uninterrupted, tmp_path, number
):
    folder = tmp_path / "stopped"
    assert begin_and_signal(folder, datasets, number, "step_00000002.pth") == 0
    assert not (folder / "DONE").exists() and not (folder / "results.json").exists()
    processes.run(child, 1, words(folder), str(datasets))
    assert_equal_ends(folder, uninterrupted)


def test_a_damaged_checkpoint_is_passed_over(datasets, uninterrupted, tmp_path):
    folder = tmp_path / "damaged"
    begin_and_signal(folder, datasets, signal.SIGKILL, "step_00000004.pth")
    newest = max((folder / "checkpoints").glob("*.pth"))
    newest.write_bytes(newest.read_bytes()[:1000])
    processes.run(child, 1, words(folder), str(datasets))
    assert_equal_ends(folder, uninterrupted)


def test_periodic_evaluation_changes_nothing_in_the_training(datasets, uninterrupted, tmp_path):
    folder = tmp_path / "evaluated"
    more = ["TEST.EVAL_PERIOD", "3"]
    processes.run(child, 1, words(folder, *more), str(datasets))
    assert_equal_ends(folder, uninterrupted)


def test_seeds_give_different_models(datasets, uninterrupted, tmp_path):
    processes.run(child, 1, [*words(tmp_path / "other"), "--seed", "4"], str(datasets))
    ours, theirs = final_model(tmp_path / "other"), final_model(uninterrupted)
    name = "backbone.res2.0.conv1.weight"
    assert not torch.equal(ours[name], theirs[name])


def test_two_processes_train_and_evaluate_together(datasets, tmp_path):
    folder = tmp_path / "two"
    processes.run(child, 2, words(folder), str(datasets))
    results = read_results(folder / "results.json")
    assert results.device == "2 x CPU"
    assert results.schedule["batch"] == 2
