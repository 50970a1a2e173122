"""What the parts of pre-training cost beside the usual way of doing them, on this machine.

python -m pretrain.bench_parts [--images FOLDER] [--json FILE]

Two views of an image, by PIL and with colours left to the device, and InfoNCE against a queue of
65,536, from a whole matrix of logits and chunk by chunk. One of each in turn, round after round in
one thread and one process: medians, and the range of the middle half of the rounds.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console
from rich.table import Table

from common.environment import describe_environment
from common.errors import run_command
from common.files import write_json
from common.spread import middle_half
from pretrain.config import Data, PretrainConfig
from pretrain.data import PretrainImages
from pretrain.images import Folder, list_images
from pretrain.loss import info_nce

_ROWS, _QUEUE, _WIDTH = 392, 65536, 128  # 8 images of 7×7 positions
_GENERATED = 48  # images, where no folder is given


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(
        prog="python -m pretrain.bench_parts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--images", type=Path, help="default: generated JPEGs of 500 x 375 pixels")
    parser.add_argument("--rounds", type=int, default=15, help="of each (default: 15)")
    parser.add_argument("--json", type=Path, help="where to write the numbers as well")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        images = arguments.images or generate(Path(folder))
        found = {
            "two views of an image": measure(views_of(images), arguments.rounds),
            "InfoNCE, forward and backward": measure(losses(), arguments.rounds),
        }
    show(found)
    if arguments.json:
        write_json(arguments.json, {"parts": found, "environment": describe_environment()})


def views_of(images: Path) -> dict[str, Callable[[], Any]]:
    """The same images by both ways, a few at a time: the reference first."""
    folder = Folder(images, list_images(images))
    numbers = torch.randperm(len(folder), generator=torch.Generator().manual_seed(0))
    chosen = numbers[:16].tolist()

    def reader(colours: str) -> Callable[[], Any]:
        dataset = PretrainImages(
            PretrainConfig(data=Data(root=str(images), colours=colours)), folder
        )
        return lambda: [dataset[(0, number)] for number in chosen]

    return {"by PIL": reader("cpu"), "crops, colours left to the device": reader("device")}


def losses() -> dict[str, Callable[[], Any]]:
    """InfoNCE by both ways: the reference first."""
    generator = torch.Generator().manual_seed(0)
    rows = [F.normalize(torch.randn(n, _WIDTH, generator=generator)) for n in (_ROWS, _ROWS)]
    queue = F.normalize(torch.randn(_QUEUE, _WIDTH, generator=generator))
    query, key = rows[0].requires_grad_(), rows[1]

    def naive() -> None:
        positive = (query * key).sum(1, keepdim=True)
        logits = torch.cat([positive, query @ queue.T], 1) / 0.2
        F.cross_entropy(logits, torch.zeros(_ROWS, dtype=torch.long)).backward()

    return {
        "a matrix of logits": naive,
        "chunk by chunk": lambda: info_nce(query, key, queue, 0.2).backward(),
    }


def measure(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, float]]:
    """CPU seconds of each way: median, quartiles, and the first one's median over its own."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, run in ways.items():
            started = time.process_time()
            run()
            if number:  # the first round warms up
                times[name].append(time.process_time() - started)
    first = statistics.median(next(iter(times.values())))
    results = {}
    for name, values in times.items():
        spread = middle_half(values)
        results[name] = {**spread, "ratio": first / spread["median"]}
    return results


def show(found: dict[str, dict[str, dict[str, float]]]) -> None:
    """A table: how many times as fast as the usual way."""
    table = Table("part", "way", "CPU ms", "middle half", "times as fast")
    for part, ways in found.items():
        for name, value in ways.items():
            middle = f"{1000 * value['low']:.1f} to {1000 * value['high']:.1f}"
            table.add_row(
                part, name, f"{1000 * value['median']:.1f}", middle, f"{value['ratio']:.2f}"
            )
    Console().print(table)


def generate(folder: Path) -> Path:
    """JPEGs as large and as detailed as ImageNet's: about 90 kB each."""
    generator = np.random.RandomState(0)
    for number in range(_GENERATED):
        coarse = generator.randint(0, 256, (12, 16, 3)).astype(np.uint8)
        pixels = np.array(Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC))
        noise = generator.normal(0, 12, pixels.shape)
        noisy = Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))
        noisy.save(folder / f"{number}.jpg", "JPEG", quality=90)
    return folder


if __name__ == "__main__":
    run_command(main)
