"""The benchmark command on Detectron2 itself: it runs, stops, continues and reports alike."""

import json
import signal
import subprocess
import time

import pytest
import torch
from benchmark_fixtures import (
    ROOT,
    command,
    environment,
    run,
    tiny_config,
    trunk,
    write_pickle,
    write_tiny_voc,
)

from benchmarks.results import read_results
from benchmarks.torchvision_engine.evaluate import evaluate
from benchmarks.torchvision_engine.model import build_model

pytest.importorskip("detectron2")
pytestmark = pytest.mark.detectron2


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_pickle(tmp_path_factory.mktemp("weights") / "ours.pkl", trunk(tiny_config()))


def words(weights, folder):
    return ["--weights", str(weights), "--seed", "1", "--output", str(folder)]


def test_stops_at_a_signal_continues_and_gives_the_metrics_of_its_model(
    datasets, weights, tmp_path, monkeypatch
):
    folder = tmp_path / "run"
    process = subprocess.Popen(
        command(*words(weights, folder), engine="detectron2"),
        cwd=ROOT,
        env=environment(datasets),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not (folder / "checkpoints" / "step_00000002.pth").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert not (folder / "DONE").exists()
    # The newest checkpoint is damaged: the one before it serves.
    newest = max((folder / "checkpoints").glob("*.pth"))
    newest.write_bytes(newest.read_bytes()[:1000])

    done = run(datasets, *words(weights, folder), engine="detectron2")
    assert done.returncode == 0, done.stderr
    assert "continuing after iteration" in done.stderr and "is damaged" in done.stderr
    results = read_results(folder / "results.json")
    assert (results.engine, results.row, results.restarts) == ("detectron2", "ours", 1)
    assert results.schedule == {"iterations": 8, "batch": 2}

    # Detectron2's final model, evaluated by the torchvision engine.
    monkeypatch.setenv("DETECTRON2_DATASETS", str(datasets))
    model = build_model(tiny_config())
    model.load_state_dict(torch.load(folder / "model_final.pth", weights_only=True)["model"])
    ours = evaluate(model, tiny_config(), stop=False)
    assert ours == pytest.approx(results.metrics, abs=1e-9)


def test_an_unreadable_image_is_one_line(datasets, weights, tmp_path):
    broken = tmp_path / "datasets"
    folder = write_tiny_voc(broken, train=2, test=1)
    for image in (folder / "JPEGImages").glob("*.jpg"):
        image.write_bytes(image.read_bytes()[:300])
    done = run(broken, *words(weights, tmp_path / "run"), engine="detectron2")
    assert done.returncode == 2
    assert "not a readable image" in done.stderr and "Traceback" not in done.stderr


def test_what_is_measured_once_is_recorded_once_and_where_it_was_measured(tmp_path):
    from detectron2.utils.events import EventStorage

    from benchmarks.detectron2_engine.trainer import _Writer

    writer = _Writer(tmp_path, first=0, last=4)
    with EventStorage(0) as storage:
        for iteration in range(4):
            storage.put_scalar("lr", iteration, smoothing_hint=False)
            if iteration == 1:
                storage.put_scalar("metrics/AP", 50.0, smoothing_hint=False)
            if iteration >= 2:
                writer.write()
            storage.step()
        storage.put_scalar("metrics/AP", 60.0, smoothing_hint=False)
        writer.write()
    writer.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 2, "AP": 50.0},
        {"step": 3, "lr": 2},
        {"step": 4, "lr": 3},
        {"step": 4, "AP": 60.0},
    ]
