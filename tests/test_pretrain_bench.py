"""What is timed is the thing itself, beside a reference that computes the same."""

import json
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from common.config import load_config
from common.errors import run_command
from pretrain.bench import __main__ as bench
from pretrain.bench import growth
from pretrain.bench.agreement import TOLERANCE, agreement
from pretrain.bench.parts import generate
from pretrain.bench.peers import LightlyStep
from pretrain.bench.reading import ordering, reading
from pretrain.bench.reference import PlainStep
from pretrain.bench.roofline import ByteCounter, peak_memory
from pretrain.bench.rounds import compare
from pretrain.bench.steps import make_batch, runs
from pretrain.config import PretrainConfig
from pretrain.images import Folder, list_images
from pretrain.train import train_step
from pretrain.views import normalise

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
TINY = """
method: {method}
data: {{image_size: 32, augmentation: {augmentation}}}
model: {{width: 4, hidden: 8, embedding: 8, queue_length: 64, bn_group: 4}}
optim: {{batch_size: 8, precision: fp32}}
launch: {{device: cpu, workers: 0}}
"""


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "densecl.yaml"
    path.write_text(TINY.format(method="densecl", augmentation="moco_v2"))
    return path


def run_bench(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["bench", *map(str, words)])
    bench.main()


def test_ratios_are_of_the_first():
    """Work that is nine times as much takes longer; by how much, the machine decides."""

    def work(times):
        return lambda: sum(range(100_000 * times))

    slow, fast = compare({"slow": work(9), "fast": work(1)}, 10, 5, CPU)
    assert slow["times as fast"] == 1 and fast["times as fast"] > 2
    assert fast["low"] <= fast["ms"] <= fast["high"]
    assert fast["images/s"] == pytest.approx(10 / fast["ms"] * 1000)
    assert fast["from"] <= fast["times as fast"] <= fast["to"]


@pytest.mark.parametrize("negatives", ["pooled", "local"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_plain_step_is_the_same_step(config_file, negatives, optimizer):
    """A fresh ResNet amplifies the rounding of float32, so losses agree to 3e-5 only."""
    settings = [f"loss.negatives={negatives}", f"optim.optimizer={optimizer}", "data.colours=cpu"]
    config = load_config(PretrainConfig, config_file, [*settings, "data.image_size=64"])
    with runs({"run": config}, CPU) as found:
        run = found["run"]
        with torch.no_grad():  # a query that differs from its key
            for parameter in run.model.query.parameters():
                parameter.mul_(1.01)
        plain, batch = PlainStep(config, run.model, CPU), make_batch(config)
        losses, _ = train_step(run, batch, stop=False)
        assert plain(batch) == pytest.approx(losses.total.item(), rel=1e-3)
        queues = (run.model.global_queue, run.model.dense_queue)
        for ours, theirs, pointer in zip(queues, plain.queues, plain.pointers):
            torch.testing.assert_close(ours.rows, theirs.T, rtol=0, atol=5e-3)
            assert ours.pointer == pointer
        for ours, theirs in zip(run.model.key.parameters(), plain.key.parameters()):
            torch.testing.assert_close(ours, theirs)


def test_the_step_of_lightlys_parts_is_the_same_step(config_file):
    """From the same weights and queues, where nothing is shuffled: one group has all images."""
    pytest.importorskip("lightly.loss", reason="needs lightly: pip install --no-deps lightly")
    settings = ["model.bn_group=8", "loss.negatives=local", "data.colours=cpu"]
    config = load_config(PretrainConfig, config_file, [*settings, "data.image_size=64"])
    with runs({"run": config}, CPU) as found:
        model = found["run"].model
        plain, theirs = PlainStep(config, model, CPU), LightlyStep(config, CPU, half=False)
        with torch.no_grad():
            for ours, copied in zip(model.query.parameters(), theirs.query.parameters()):
                copied.copy_(ours.view_as(copied))
        theirs.key.load_state_dict(theirs.query.state_dict())
        for queue, loss in zip((model.global_queue, model.dense_queue), theirs.losses):
            loss.memory_bank.bank.copy_(queue.rows)
        batch = make_batch(config)
        views = [normalise(view) for view in batch.views]
        assert theirs(*views) == pytest.approx(plain(batch), rel=1e-3)
        for ours, copied in zip(plain.query.parameters(), theirs.query.parameters()):
            apart = (ours.grad - copied.grad.view_as(ours)).norm() / ours.grad.norm()
            assert apart < 0.02  # a fresh ResNet amplifies rounding


def test_peers_are_timed_beside_this_one(config_file, tmp_path, monkeypatch, capsys):
    words = ["--config-file", config_file, "--only", "peers", "--rounds", 1]
    if find_spec("lightly") is None:
        monkeypatch.setattr(sys, "argv", ["bench", *map(str, words)])
        with pytest.raises(SystemExit):
            run_command(bench.main)
        assert "pip install --no-deps lightly" in capsys.readouterr().err
        return
    run_bench(monkeypatch, *words, "--json", tmp_path / "found.json")
    rows = json.loads((tmp_path / "found.json").read_text())["peers"]
    assert [row["way"].partition(",")[0] for row in rows] == [
        "lightly", "this one by PIL", "this one", "lightly", "lightly", "this one"
    ]  # fmt: skip


def test_bfloat16_and_colours_on_the_device_train_as_the_plain_step_does(config_file, image_folder):
    settings = ["data.image_size=64", "model.width=8", "model.hidden=32", "model.embedding=16"]
    settings += ["optim.batch_size=16", "model.bn_group=8", f"data.root={image_folder}"]
    settings += ["optim.precision=bf16", "data.colours=device"]
    config = load_config(PretrainConfig, config_file, settings)
    rows = agreement(config, CPU, steps=40)
    assert [row["steps"] for row in rows] == ["1 to 20", "21 to 40"]
    for row in rows:
        assert 0 < abs(row["difference"]) < TOLERANCE
        ours = row["bf16, colours by the device"]
        assert ours / row["plain"] - 1 == pytest.approx(row["difference"])
    assert rows[1]["plain"] < rows[0]["plain"] * (1 - TOLERANCE)


def test_bytes_are_those_that_operators_touch():
    a, b = torch.ones(100), torch.ones(100)
    with ByteCounter() as counter:
        c = a + b
    assert counter.bytes == 3 * 400
    with ByteCounter() as counter:
        c.view(10, 10).T[2:]
    assert counter.bytes == 0
    with ByteCounter() as counter:
        c.add_(1)
    assert counter.bytes == 2 * 400
    matrix = torch.ones(20, 30)
    with ByteCounter() as counter, FlopCounterMode(display=False) as flops:
        matrix @ matrix.T
    assert counter.bytes == 4 * (600 + 600 + 400)
    assert flops.get_total_flops() == 2 * 20 * 30 * 20


def test_peak_memory_sees_what_was_let_go():
    def forgetful():
        torch.ones(50_000_000).sum()

    before = peak_memory(lambda: None, CPU)
    assert 150e6 < peak_memory(forgetful, CPU) - before < 300e6


def test_the_exponent_of_a_power_law_is_found():
    sizes = [32, 64, 128, 256]
    rows = growth._fitted("x", sizes, [1] * 4, [3 * size**0.7 for size in sizes])
    assert [row["fitted exponent of the time"] for row in rows] == pytest.approx([0.7] * 4)
    assert rows[0]["ms per step"] == pytest.approx(3000 * 32**0.7)


def test_steps_grow_in_all_directions(config_file, monkeypatch):
    monkeypatch.setattr(growth, "_BATCHES", (4, 8))
    monkeypatch.setattr(growth, "_QUEUES", (16, 32))
    monkeypatch.setattr(growth, "_STARTS", 1)
    config = load_config(PretrainConfig, config_file)
    rows = growth.growth(config, config_file, ["optim.batch_size=16"], 1, CPU)
    assert [(row["what grows"], row["to"]) for row in rows] == [
        ("batch size", 4), ("batch size", 8), ("queue length", 16), ("queue length", 32),
        ("processes, one thread each", 1), ("processes, one thread each", 2),
    ]  # fmt: skip
    assert all(row["images/s"] > 0 for row in rows)


def test_reading_counts_what_it_reads(tmp_path):
    (row,) = reading([3000], tmp_path)
    assert row["samples"] == 3000 and row["index MB"] == pytest.approx(0.048, abs=0.001)
    for order in ("random", "windowed", "sequential"):
        assert row[f"{order}, cached"] > 1000 and row[f"{order}, storage"] > 100
    assert not list(tmp_path.iterdir())
    assert all(row["random, ms"] > 0 for row in ordering([1000, 10**9]))


def test_the_command_writes_what_it_shows(config_file, tmp_path, monkeypatch, capsys):
    byol = tmp_path / "byol.yaml"
    byol.write_text(TINY.format(method="byol", augmentation="byol"))
    words = ["--config-file", config_file, "--config-file", byol, "--rounds", 1]
    only = ["parts", "step", "end-to-end", "roofline"]
    images = tmp_path / "images"
    images.mkdir()
    generate(images)
    json_file = tmp_path / "found.json"
    handler = signal.getsignal(signal.SIGINT)
    run_bench(
        monkeypatch, *words, "--only", ",".join(only), "--images", images, "--json", json_file
    )
    assert signal.getsignal(signal.SIGINT) is handler  # Ctrl-C ends it
    found, shown = json.loads(json_file.read_text()), capsys.readouterr().out
    assert found["environment"]["cpu"] and found["settings"]["byol"]["method"] == "byol"
    ways = [row["way"] for row in found["step"]]
    assert ways == ["densecl, plain: fp32, NCHW, loops", "densecl, fp32", "byol, fp32"]
    sources = [row["images from"] for row in found["end-to-end"]]
    assert sources[1:] == ["files", "shards", "views at hand"] and "plain" in sources[0]
    assert len(found["parts"]) == 12
    assert 0 < found["roofline"][0]["share reached"] < 2
    for section in only:
        for row in found[section]:
            assert row.get("way", row.get("images from", "fp32")) in shown


def test_generated_images_are_as_imagenets(tmp_path):
    images = Folder(tmp_path, list_images(generate(tmp_path)))
    sizes = [len(images.read(number)) for number in range(len(images))]
    assert 60_000 < np.mean(sizes) < 120_000


def test_a_mistake_is_one_line(config_file, tmp_path, monkeypatch, capsys):
    larger = tmp_path / "larger.yaml"
    content = TINY.format(method="moco", augmentation="moco_v2")
    larger.write_text(content.replace("batch_size: 8", "batch_size: 16"))
    for words, message in [
        (["--config-file", tmp_path / "nowhere.yaml"], "nowhere.yaml"),
        (["--config-file", config_file, "--config-file", larger], "add optim.batch_size=N"),
        (["--config-file", config_file, "optim.batch_size=7"], "bn_group"),
        (["--only", "parts,stp"], "--only stp: no such section (did you mean step?)"),
        (["--config-file", config_file, "--only", "agreement"], "datasets/imagenet/train"),
        (["--config-file", config_file, "--only", "parts", "--images", "/nowhere"], "/nowhere"),
    ]:
        monkeypatch.setattr(sys, "argv", ["bench", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            run_command(bench.main)
        error = capsys.readouterr().err
        assert left.value.code == 2 and error.count("\n") == 1 and message in error


def test_it_runs_as_a_command(config_file):
    words = ["--config-file", config_file, "--only", "ordering,step", "--rounds", "1"]
    command = [sys.executable, "-m", "pretrain.bench", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "1,000,000,000" in done.stdout and "densecl, fp32" in done.stdout
