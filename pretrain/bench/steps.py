"""Training steps on views at hand, and the same fed by the data loader."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import torch

from common import distributed
from common.spread import middle_half
from pretrain.bench.reference import PlainStep
from pretrain.bench.rounds import Row, Way, compare, wait_for
from pretrain.config import PretrainConfig, with_colours
from pretrain.data import PREFETCHED, Batch, data_loader
from pretrain.images import Folder, Images, open_images
from pretrain.methods.densecl import DenseCL
from pretrain.precision import choose
from pretrain.run import Run, build_run
from pretrain.train import settle, train_step
from pretrain.views import RECIPES, draw

Step = Callable[[Batch], Any]

PLAIN = "plain: fp32, NCHW, loops"


@contextmanager
def runs(configs: dict[str, PretrainConfig], device: torch.device) -> Iterator[dict[str, Run]]:
    """Each configuration's run before its first step, with what it computes in decided."""
    with tempfile.TemporaryDirectory() as folder:
        yield {name: start(config, device, Path(folder, name)) for name, config in configs.items()}


def start(config: PretrainConfig, device: torch.device, folder: Path) -> Run:
    """A run in a new folder, on images of four classes."""
    files = [f"{number % 4}/{number}" for number in range(config.optim.batch_size)]
    config = with_colours(config, device.type)
    run = build_run(config, folder, device, Folder(folder, files))
    folder.mkdir(exist_ok=True)
    choose(run)
    return run


def steps(configs: dict[str, PretrainConfig], rounds: int, device: torch.device) -> list[Row]:
    """A row for each configuration; before them a plain step of the first, where that is DenseCL.

    With several processes a row is the main one's.
    """
    with runs(configs, device) as found:
        ways: dict[str, Way] = {}
        name, first = next(iter(found.items()))
        if isinstance(first.model, DenseCL) and distributed.world_size() == 1:
            plain = PlainStep(first.config, first.model, device)
            changed = make_batch(
                replace(first.config, data=replace(first.config.data, colours="cpu"))
            )
            ways[f"{name}, {PLAIN}"] = partial(plain, changed)
        for name, run in found.items():
            ways[f"{name}, {run.precision}"] = partial(stepping(run), make_batch(run.config))
        (images,) = {config.optim.batch_size for config in configs.values()}
        return [{"part": "a training step"} | r for r in compare(ways, images, rounds, device)]


def stepping(run: Run) -> Step:
    """One more step of the run on a batch; its loss, on the device."""

    def step(batch: Batch) -> torch.Tensor:
        losses, notice = train_step(run, batch, stop=False)
        run.notices.append(notice)
        run.step += 1
        settle(run, pending=1)
        return losses.total.detach()

    return step


def make_batch(config: PretrainConfig) -> Batch:
    """This process's part of a step: views of random pixels, as its loader would hand them over."""
    count, size = config.optim.batch_size // distributed.world_size(), config.data.image_size
    recipe = RECIPES[config.data.augmentation].views
    generator = torch.Generator().manual_seed(0)
    shape = (len(recipe), count, 3, size, size)
    drawn = [[draw(colours, generator) for _ in range(count)] for colours in recipe]
    return Batch(
        views=pinned(torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)),
        corners=torch.tensor([0.0, 0.0, size, size]).expand(len(recipe), count, 4),
        labels=torch.arange(count) % 4,
        unreadable=[],
        drawn=pinned(torch.tensor(drawn)) if config.data.colours == "device" else None,
    )


def pinned(tensor: torch.Tensor) -> torch.Tensor:
    """Where a GPU can fetch it from by itself, if there is one."""
    return tensor.pin_memory() if torch.cuda.is_available() else tensor


def end_to_end(
    config: PretrainConfig, images: Folder, rounds: int, device: torch.device
) -> list[Row]:
    """Images/s from files to updated weights, beside the step on views at hand.

    The plain way, for DenseCL, reads by PIL and steps as `PlainStep`. Each way in turn, `rounds`
    times. The wait is the share of the time in which the step had no batch to go on with. What
    the loading processes have prepared at the start is used up before the clock runs.
    """
    prepared = PREFETCHED * config.launch.workers
    counts = prepared + 4, max(4 * prepared, 12)
    needed = sum(counts) * config.optim.batch_size
    many = repeated(images, needed)
    with runs({"run": config}, device) as found, tempfile.TemporaryDirectory() as folder:
        run = found["run"]
        shards = packed(many, Path(folder), 1000)
        at_hand = make_batch(run.config)
        ways: dict[str, Callable[[], tuple[float, float]]] = {}
        if isinstance(run.model, DenseCL):
            plain = PlainStep(run.config, run.model, device)
            by_pil = replace(run.config, data=replace(run.config.data, colours="cpu"))
            ways[f"files, {PLAIN}, views by PIL"] = lambda: feed(
                plain, loaded(by_pil, many), counts, device
            )
        step = stepping(run)
        ways["files"] = lambda: feed(step, loaded(run.config, many), counts, device)
        ways["shards"] = lambda: feed(step, loaded(run.config, shards), counts, device)
        ways["views at hand"] = lambda: feed(step, repeat(at_hand), counts, device)
        found_of: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                found_of[name].append(way())
    return [_speed(name, values, config.optim.batch_size) for name, values in found_of.items()]


def repeated(images: Folder, count: int) -> Folder:
    """So many, again from the first after the last."""
    return Folder(images.root, [images.path(n % len(images)) for n in range(count)])


def _speed(name: str, found: list[tuple[float, float]], batch_size: int) -> Row:
    speeds = middle_half([batch_size / seconds for seconds, _ in found])
    wait = middle_half([share for _, share in found])["median"]
    return {"images from": name, "images/s": speeds["median"], "low": speeds["low"]} | {
        "high": speeds["high"],
        "wait": wait,
    }


def feed(
    step: Step, batches: Iterator[Batch], counts: tuple[int, int], device: torch.device
) -> tuple[float, float]:
    """Seconds of a step that takes its batches from there, and the share of waiting for them.

    counts: how many steps first, and how many of them are timed then.
    """
    first, timed = counts
    for _ in range(first):
        step(next(batches))
    wait_for(device)
    started, waited = time.perf_counter(), 0.0
    for _ in range(timed):
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        step(batch)
    wait_for(device)
    seconds = time.perf_counter() - started
    return seconds / timed, waited / seconds


def loaded(config: PretrainConfig, images: Images) -> Iterator[Batch]:
    """The loader's batches, as a run gets them."""
    return iter(data_loader(config, images, 0, pin_memory=torch.cuda.is_available()))


def packed(images: Folder, folder: Path, shard_size: int) -> Images:
    """Shards of the images, made in a new folder there by the command that users have."""
    listed, target = folder / "list.txt", folder / "shards"
    listed.write_text("".join(f"{images.path(n)}\n" for n in range(len(images))))
    words = [images.root, target, "--list-file", listed, "--shard-size", shard_size]
    command = [sys.executable, "-m", "pretrain.pack", *map(str, words)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return open_images(target)
