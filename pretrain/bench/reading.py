"""Reading sets of 10^3 to 10^6 tiny images from shards, and ordering up to 10^9."""

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from PIL import Image

from common.spread import middle_half
from pretrain.bench.rounds import Row
from pretrain.bench.steps import packed
from pretrain.config import PretrainConfig
from pretrain.images import Folder, Images, open_images
from pretrain.order import Order

_SHARD = 10_000
_READ = 65_536  # samples at most, of each way
_BATCH = 256
_WINDOW = 65_536


def reading(sizes: list[int], folder: Path) -> list[Row]:
    """A row for each size: samples/s by one process in three orders, from memory and from storage
    whose cache was dropped, and memory after reading. The shards are made in `folder`."""
    rows = []
    for size in sizes:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            rows.append(_read(Path(place), size))
    return rows


def _read(place: Path, size: int) -> Row:
    started = time.perf_counter()
    packed(_tiny(place, size), place, _SHARD)
    row: Row = {"samples": size, "packed per s": size / (time.perf_counter() - started)}
    root = place / "shards"
    started = time.perf_counter()
    open_images(root)
    row["opened in ms"] = 1000 * (time.perf_counter() - started)
    row["index MB"] = (root / "index.npy").stat().st_size / 1e6
    orders = _orders(size)
    for name, numbers in orders.items():
        window = _WINDOW if name == "windowed" else 0
        _drop_cache(root)
        row[f"{name}, storage"] = _speed(open_images(root, window=window), numbers)
        row[f"{name}, cached"] = _speed(open_images(root, window=window), numbers)
    private, shared = _in_child(lambda: _touch(root, orders["random"]))
    return row | {"private MB": private, "shared MB": shared}


def ordering(sizes: list[int]) -> list[Row]:
    """A row for each size: milliseconds to compute which images make a batch of 256."""
    rows = []
    for size in sizes:
        row: Row = {"images": size}
        for name, window in (("random", 0), ("windowed", _WINDOW)):
            order = _order(size, window)
            times = []
            for batch in range(30):
                positions = np.arange(batch * _BATCH, (batch + 1) * _BATCH) % size
                started = time.perf_counter()
                order.numbers(batch, positions)
                times.append(1000 * (time.perf_counter() - started))
            row[f"{name}, ms"] = middle_half(times)["median"]
        rows.append(row)
    return rows


def _order(size: int, window: int) -> Order:
    config = PretrainConfig()
    return Order(size, replace(config, data=replace(config.data, window=window)), 0)


def _orders(size: int) -> dict[str, np.ndarray]:
    """Which samples are read one after another."""
    places = np.arange(min(size, _READ))
    return {
        "random": _order(size, 0).numbers(0, places),
        "windowed": _order(size, _WINDOW).numbers(0, places),
        "sequential": places,
    }


def _tiny(folder: Path, size: int) -> Folder:
    """So many paths of a few JPEGs of 32 x 32 pixels."""
    random, files = np.random.RandomState(0), []
    for number in range(16):
        pixels = random.randint(0, 256, (32, 32, 3)).astype(np.uint8)
        files.append(f"{number}.jpg")
        Image.fromarray(pixels).save(folder / files[-1])
    return Folder(folder, (files * (size // 16 + 1))[:size])


def _speed(images: Images, numbers: np.ndarray) -> float:
    started = time.perf_counter()
    for number in numbers.tolist():
        images.read(number)
    return len(numbers) / (time.perf_counter() - started)


def _drop_cache(folder: Path) -> None:
    """Make the kernel forget the files' pages."""
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def _touch(root: Path, numbers: np.ndarray) -> tuple[float, float]:
    """MB that opening the index and reading these add to the process, its own and shared."""
    before = _memory()
    images = open_images(root)
    _speed(images, numbers)
    after = _memory()
    return after[0] - before[0], after[1] - before[1]


def _memory() -> tuple[float, float]:
    """MB of this process: private, and shared with files or other processes."""
    lines = [line.split() for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]]
    size = {words[0]: int(words[1]) / 1000 for words in lines}
    private = size["Private_Dirty:"]
    return private, size["Rss:"] - private


def _in_child(work: Callable[[], tuple[float, float]]) -> tuple[float, float]:
    """What `work` returns, done in a process of its own."""

    def run(connection: Connection) -> None:
        connection.send(work())

    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=run, args=(there,))
    process.start()
    found = here.recv()
    process.join()
    return found
