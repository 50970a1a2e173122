"""What a step costs as its batch, its queue and the number of processes grow."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from common.errors import UserError
from pretrain.bench.rounds import Row, Way, compare
from pretrain.bench.steps import make_batch, runs, stepping
from pretrain.config import PretrainConfig

_BATCHES = (32, 64, 128, 256, 512)
_QUEUES = (4096, 16384, 65536, 262144)
_RANKS, _STARTS = (1, 2), 3  # processes, and how often so many are started


def growth(
    config: PretrainConfig,
    config_file: Path,
    settings: list[str],
    rounds: int,
    device: torch.device,
) -> list[Row]:
    """A row for each size of each, and the exponent fitted to the seconds of a step."""
    optim, model = config.optim, config.model
    batches = {n: replace(config, optim=replace(optim, batch_size=n)) for n in _BATCHES}
    queues = {n: replace(config, model=replace(model, queue_length=n)) for n in _QUEUES}
    rows = [
        *_grown("batch size", batches, rounds, device),
        *_grown("queue length", queues, rounds, device),
    ]
    if device.type == "cpu" or torch.cuda.device_count() >= max(_RANKS):
        speeds: dict[int, list[float]] = {ranks: [] for ranks in _RANKS}
        for _ in range(_STARTS):
            for ranks, found in speeds.items():
                found.append(_speed_of(ranks, config_file, settings, rounds))
        seconds = [optim.batch_size / statistics.median(found) for found in speeds.values()]
        rows += _fitted("processes, one thread each", _RANKS, [optim.batch_size] * 2, seconds)
    return rows


def _grown(
    what: str, configs: dict[int, PretrainConfig], rounds: int, device: torch.device
) -> list[Row]:
    named = {str(size): config for size, config in configs.items()}
    with runs(named, device) as found:
        ways: dict[str, Way] = {
            name: partial(stepping(run), make_batch(run.config)) for name, run in found.items()
        }
        seconds = [row["ms"] / 1000 for row in compare(ways, 1, rounds, device)]
    return _fitted(what, list(configs), [c.optim.batch_size for c in configs.values()], seconds)


def _fitted(what: str, sizes: Sequence[int], images: list[int], seconds: list[float]) -> list[Row]:
    """The exponent a of seconds = c · size^a, by least squares of the logarithms."""
    exponent = np.polyfit(np.log(sizes), np.log(seconds), 1)[0]
    return [
        {"what grows": what, "to": size, "images/s": count / second, "ms per step": 1000 * second}
        | {"fitted exponent of the time": float(exponent)}
        for size, count, second in zip(sizes, images, seconds)
    ]


def _speed_of(ranks: int, config_file: Path, settings: list[str], rounds: int) -> float:
    """Images/s of all together, from this same command in so many processes."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder, "found.json")
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        words = ["-m", "pretrain.bench", "--only", "step", "--config-file", config_file]
        words += ["--rounds", rounds, "--json", found, *settings]
        done = subprocess.run(
            [sys.executable, *launcher, *map(str, words)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise UserError(f"{ranks} processes: {done.stderr.strip().splitlines()[-1]}")
        rows = json.loads(found.read_text())["step"]
        return rows[-1]["images/s"]
