"""How long a training step of each configuration takes, and its ratio to the first one's.

python -m pretrain.bench configs/pretrain/densecl_mini.yaml configs/pretrain/moco_v2_mini.yaml

One step of each in turn, round after round, so that whatever else the machine does falls on all
alike; the medians are compared. Views are random pixels on the device's side of the data loader.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from common import distributed
from common.config import load_config
from common.errors import run_command
from common.shutdown import StopRequest
from pretrain.config import PretrainConfig, check
from pretrain.data import Batch
from pretrain.images import Folder
from pretrain.precision import choose
from pretrain.run import Run, build_run
from pretrain.train import train_step
from pretrain.views import RECIPES

_WARM_UP = 3  # rounds that are not counted


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m pretrain.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("configs", nargs="+", type=Path, metavar="CONFIG.yaml")
    parser.add_argument("--rounds", type=int, default=20, help="steps of each (default: 20)")
    parser.add_argument("--batch-size", type=int, help="default: each configuration's own")
    arguments = parser.parse_args()
    configs = {
        path.stem: _with_batch(load_config(PretrainConfig, path), arguments.batch_size)
        for path in arguments.configs
    }
    seconds = measure(configs, max(arguments.rounds, 1))
    show(configs, seconds)


def measure(configs: dict[str, PretrainConfig], rounds: int) -> dict[str, float]:
    """Median seconds of a step, by name."""
    device = distributed.start(next(iter(configs.values())).launch.device)
    with tempfile.TemporaryDirectory() as folder:
        runs = {name: _run(name, config, device, folder) for name, config in configs.items()}
    batches = {name: _batch(config) for name, config in configs.items()}
    stop = StopRequest()
    times: dict[str, list[float]] = {name: [] for name in configs}
    for _ in range(_WARM_UP + rounds):
        for name, run in runs.items():
            started = time.perf_counter()
            train_step(run, batches[name], stop)
            if device.type == "cuda":
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values[_WARM_UP:]) for name, values in times.items()}


def show(configs: dict[str, PretrainConfig], seconds: dict[str, float]) -> None:
    """A line for each configuration."""
    first = next(iter(seconds.values()))
    table = Table("configuration", "ms per step", "images/s", "ratio to the first")
    for name, value in seconds.items():
        speed = configs[name].optim.batch_size / value
        table.add_row(name, f"{1000 * value:.1f}", f"{speed:.0f}", f"{value / first:.3f}")
    Console().print(table)


def _with_batch(config: PretrainConfig, batch_size: int | None) -> PretrainConfig:
    if batch_size is not None:
        config = replace(config, optim=replace(config.optim, batch_size=batch_size))
    check(config, world_size=1)
    return config


def _run(name: str, config: PretrainConfig, device: torch.device, folder: str) -> Run:
    files = [f"{number % 4}/{number}" for number in range(config.optim.batch_size)]
    run = build_run(config, Path(folder, name), device, Folder(Path(folder), files))
    run.folder.mkdir()
    choose(run)
    return run


def _batch(config: PretrainConfig) -> Batch:
    count, size = config.optim.batch_size, config.data.image_size
    views = len(RECIPES[config.data.augmentation].views)
    shape = (views, count, 3, size, size)
    generator = torch.Generator().manual_seed(0)
    return Batch(
        views=torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8),
        corners=torch.tensor([0.0, 0.0, size, size]).expand(views, count, 4),
        labels=torch.arange(count) % 4,
        unreadable=[],
    )


if __name__ == "__main__":
    run_command(main)
