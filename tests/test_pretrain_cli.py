"""`python -m pretrain` as its users meet it: launchers, signals, mistakes."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from common.checkpoint import latest_good, load_checkpoint
from common.config import load_config
from pretrain.config import PretrainConfig

ROOT = Path(__file__).parent.parent
TINY = """
data: {image_size: 32}
model: {width: 4, hidden: 8, embedding: 8, queue_length: 16, bn_group: 4}
optim: {epochs: 2, batch_size: 16, precision: fp32}
launch: {device: cpu, workers: 0, log_every: 1}
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


def command(config, output, *settings, launcher=("-m",)):
    words = ["pretrain", "--config-file", config, "--output", output, *settings]
    return [sys.executable, *launcher, *map(str, words)]


def pretrain(*arguments, environment=None, **options):
    return subprocess.run(
        command(*arguments, **options),
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def assert_one_clear_line(done, *words):
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    for word in words:
        assert word in line


def test_a_run_from_the_command_line(config, image_folder, tmp_path):
    output = tmp_path / "run"
    root = f"data.root={image_folder}"
    done = pretrain(config, output, root)
    assert done.returncode == 0, done.stderr
    assert {p.name for p in output.iterdir()} >= {
        "DONE", "config.yaml", "env.json", "metrics.jsonl", "log.txt", "tensorboard", "checkpoints"
    }  # fmt: skip
    state = load_checkpoint(latest_good(output / "checkpoints"))
    assert state["format"] == "densecl-pipeline"
    assert state["step"] == 2 * (48 // 16)
    assert "step 6/6" in (output / "log.txt").read_text()

    again = pretrain(config, output, root)
    assert (again.returncode, "already finished" in again.stdout) == (0, True)
    other = pretrain(config, output, root, "optim.lr=0.1")
    assert_one_clear_line(other, str(output), "optim.lr = 0.03, now 0.1")
    assert (output / "DONE").exists()


def test_torchrun_and_slurm_tasks_give_the_same_result(config, image_folder, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    root = f"data.root={image_folder}"
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}", "-m")
    done = pretrain(config, tmp_path / "torchrun", root, launcher=torchrun)
    assert done.returncode == 0, done.stderr

    slurm = {
        "SLURM_JOB_ID": "4242", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2",
        "SLURM_JOB_NUM_NODES": "1", "SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "localhost",
        "MASTER_PORT": str(port),
    }  # fmt: skip
    tasks = [
        subprocess.Popen(
            command(config, tmp_path / "slurm", root),
            cwd=ROOT,
            env={**os.environ, **slurm, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)},
            stderr=subprocess.PIPE,
        )
        for i in range(2)
    ]
    for task in tasks:
        _, errors = task.communicate(timeout=120)
        assert task.returncode == 0, errors
    states = [
        load_checkpoint(latest_good(tmp_path / name / "checkpoints"))["model"]
        for name in ("torchrun", "slurm")
    ]
    for name, value in states[0].items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, states[1][name]), name


def test_a_stop_signal_to_the_whole_group_saves_and_exits_0(config, image_folder, tmp_path):
    """As Ctrl-C in a terminal, or SLURM, sends it: to the workers as well."""
    output = tmp_path / "run"
    words = [f"data.root={image_folder}", "optim.epochs=500", "launch.workers=2"]
    process = subprocess.Popen(command(config, output, *words), cwd=ROOT, start_new_session=True)
    deadline = time.monotonic() + 60
    while not (output / "metrics.jsonl").exists() or not (output / "metrics.jsonl").read_text():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(60) == 0
    assert latest_good(output / "checkpoints") is not None
    assert not (output / "DONE").exists()
    assert "the same command continues" in (output / "log.txt").read_text()


MISTAKES = {
    "optim.lrr=1": ["unknown key optim.lrr", "did you mean optim.lr?"],
    "optim.lr=fast": ["optim.lr", "'fast'"],
    "optim.epochs=1.5": ["optim.epochs", "1.5"],
    "epochs": ["'epochs'", "key=value"],
    "data.root=/nowhere": ["/nowhere", "no such folder"],
    "optim.batch_size=64": ["48 images", "optim.batch_size = 64"],
    "optim.batch_size=18": ["model.bn_group = 4", "18"],
    "optim.batch_size=-1": ["optim.batch_size = -1"],
    "model.depth=18": ["model.depth = 18", "50"],
    "optim.precision=fp8": ["optim.precision = fp8", "bf16"],
    "launch.device=tpu": ["launch.device = tpu"],
    "launch.workers=-1": ["launch.workers = -1"],
    "data.min_crop_area=2": ["data.min_crop_area = 2", "at most 1"],
    "data.list_file=/nowhere.txt": ["/nowhere.txt"],
    "model.init_backbone=/nowhere.pkl": ["/nowhere.pkl", "no such file"],
    f"model.init_backbone={__file__}": ["test_pretrain_cli.py"],
    "method=supervised data.augmentation=supervised": ["1 class folders", "at least two"],
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_one_clear_line(
    config, image_folder, tmp_path, monkeypatch, capsys
):
    words = (f"data.root={image_folder}", "launch.device=cuda")
    run_in_process(monkeypatch, config, tmp_path / "run", *words)
    assert "no GPU that PyTorch" in capsys.readouterr().err


@pytest.mark.parametrize("killed", [True, False])
def test_a_worker_that_dies_ends_the_run(config, image_folder, tmp_path, killed):
    """Killed, as for want of memory: one line. Raising what nobody expects: its traceback."""
    output, words = tmp_path / "run", [f"data.root={image_folder}", "launch.workers=2"]
    patch = "" if killed else "import pretrain.views; pretrain.views.draw = None; "
    program = f"{patch}import runpy; runpy.run_module('pretrain', run_name='__main__')"
    line = [sys.executable, "-c", program, *command(config, output, *words, "optim.epochs=500")[3:]]
    process = subprocess.Popen(line, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    if killed:
        deadline = time.monotonic() + 60
        while not (output / "metrics.jsonl").exists() or not (output / "metrics.jsonl").read_text():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)
    error = process.communicate(timeout=60)[1].strip().splitlines()[-1]
    assert process.returncode == (2 if killed else 1)
    assert ("error: a worker process was killed" if killed else "TypeError") in error


@pytest.mark.parametrize("setting", MISTAKES)
def test_a_mistake_is_one_clear_line(config, image_folder, tmp_path, setting, monkeypatch, capsys):
    run_in_process(
        monkeypatch, config, tmp_path / "run", f"data.root={image_folder}", *setting.split()
    )
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    for word in MISTAKES[setting]:
        assert word in errors[0]
    assert not (tmp_path / "run").exists()


def run_in_process(monkeypatch, config, output, *settings):
    """The command in this process: it prints what a user sees, without seconds of imports."""
    from common.errors import run_command
    from pretrain.__main__ import main

    monkeypatch.setattr(sys, "argv", command(config, output, *settings)[2:])
    with pytest.raises(SystemExit) as left:
        run_command(main)
    assert left.value.code == 2


@pytest.mark.parametrize(
    "content,words",
    [
        ("optim: {lerning_rate: 1}", ["optim.lerning_rate"]),
        ("optim: [", ["not valid YAML"]),
        ("- a list", ["expected a mapping"]),
    ],
)
def test_a_broken_config_file_is_named(tmp_path, content, words, monkeypatch, capsys):
    config = tmp_path / "broken.yaml"
    config.write_text(content)
    run_in_process(monkeypatch, config, tmp_path / "run")
    error = capsys.readouterr().err
    for word in [str(config), *words]:
        assert word in error


def test_a_foreign_folder_is_left_alone(config, image_folder, tmp_path, monkeypatch, capsys):
    output = tmp_path / "thesis"
    output.mkdir()
    (output / "chapter1.tex").write_text("precious")
    run_in_process(monkeypatch, config, output, f"data.root={image_folder}")
    assert "not empty and not made by this program" in capsys.readouterr().err
    assert [p.name for p in output.iterdir()] == ["chapter1.tex"]


def test_a_path_through_a_file_is_one_clear_line(config, image_folder, monkeypatch, capsys):
    run_in_process(monkeypatch, config, config / "run", f"data.root={image_folder}")
    assert "is a file, not a folder" in capsys.readouterr().err


def test_no_write_permission_is_one_clear_line(config, image_folder, tmp_path, monkeypatch, capsys):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    if os.geteuid() == 0:  # root may write anywhere but to a read-only file system
        mount = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(locked)]
        if subprocess.run(mount, check=False, capture_output=True).returncode:
            pytest.skip("root here may not mount a read-only file system")
    try:
        run_in_process(monkeypatch, config, locked / "run", f"data.root={image_folder}")
    finally:
        subprocess.run(["umount", str(locked)], check=False, capture_output=True)
    error = capsys.readouterr().err
    assert f"error: {locked}" in error
    assert "choose another folder" in error


def test_unreadable_images_are_listed_and_too_many_stop_the_run(config, image_folder, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(image_folder, images)
    names = sorted(images.glob("*.jpg"))
    for path in names[:3]:
        path.write_bytes(path.read_bytes()[:200])
    done = pretrain(config, tmp_path / "few", f"data.root={images}")
    assert done.returncode == 0
    assert (tmp_path / "few" / "unreadable.txt").read_text().split() == [str(p) for p in names[:3]]
    for path in names[3:12]:
        path.write_bytes(b"")
    done = pretrain(config, tmp_path / "many", f"data.root={images}")
    assert_one_clear_line(done, str(images), "cannot be read", "unreadable.txt")


def test_a_loss_that_is_not_finite_stops_before_the_update(config, image_folder, tmp_path):
    output = tmp_path / "run"
    done = pretrain(config, output, f"data.root={image_folder}", "optim.lr=1e30")
    assert_one_clear_line(done, "the loss is not finite", "optim.lr")
    (evidence,) = output.glob("not_finite_step_*_rank_0.pth")
    state = torch.load(evidence, weights_only=True)
    assert state["views"].shape == (2, 16, 3, 32, 32)
    assert not (output / "DONE").exists()


@pytest.mark.parametrize("name", [p.name for p in (ROOT / "configs/pretrain").glob("*.yaml")])
def test_every_published_config_loads_and_differs_from_the_defaults(name):
    import yaml

    from pretrain.config import check

    path = ROOT / "configs/pretrain" / name
    config, defaults = load_config(PretrainConfig, path), PretrainConfig()
    check(config, world_size=1)
    for group, settings in (yaml.safe_load(path.read_text()) or {}).items():
        default = getattr(defaults, group)
        if not isinstance(settings, dict):
            assert default != settings, group
            continue
        for key, value in settings.items():
            assert getattr(default, key) != value, f"{group}.{key}"


@pytest.mark.parametrize("batch_size", [1024, 4096])
def test_larger_batches_are_named_and_differ_by_their_rules_alone(batch_size):
    name = f"densecl_bs{batch_size}_imagenet_200ep.yaml"
    found = load_config(PretrainConfig, ROOT / "configs/pretrain" / name)
    published, ratio = PretrainConfig(), batch_size / 256
    assert found.model.key_momentum == pytest.approx(0.999**ratio, abs=1e-5)
    expected = replace(
        published,
        model=replace(published.model, key_momentum=found.model.key_momentum),
        optim=replace(
            published.optim, batch_size=batch_size, lr=round(0.03 * ratio, 9), warmup_epochs=5
        ),
    )
    assert found.identity() == expected.identity()
    assert "Not published" in (ROOT / "configs/pretrain" / name).read_text().splitlines()[0]
