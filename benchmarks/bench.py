"""How long a training step of a benchmark takes on the torchvision engine and on Detectron2.

python -m benchmarks.bench mini_voc
python -m benchmarks.bench voc --iterations 5 --batch-size 2 MODEL.DEVICE cpu

Both engines train the same model, from the same weights, on the same batches, which are prepared
before the clock starts. A step of each in turn, so that whatever else the machine does falls on
both alike: medians, and the range of the middle half. Then each engine's data loader by itself.
Where Detectron2 is not importable, the torchvision engine alone is timed.
"""

import argparse
import importlib
import time
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.checks import check
from benchmarks.config import find_config, identity, load_config
from benchmarks.run import RANDOM, device_type, find_engine
from benchmarks.weights import Backbone, read_backbone
from common import distributed
from common.benchmarks import benchmark_files
from common.environment import describe_environment
from common.errors import UserError, run_command
from common.files import write_json
from common.spread import middle_half

_WARM_UP = 3  # steps of each engine that are not counted
_BATCHES = 8  # at most, used again and again


def main() -> None:
    """Measure, print, and write."""
    arguments = _parse_arguments()
    config = _configuration(arguments.benchmark, arguments.settings, arguments.batch_size)
    backbone = None
    if arguments.weights != RANDOM:
        backbone = read_backbone(Path(arguments.weights), config)
    engines = find_engines(config)
    seconds = time_steps(engines, config, backbone, arguments.iterations)
    speeds = {
        name: loader_speed(engine, config, arguments.iterations) for name, engine in engines.items()
    }
    found = summary(seconds, speeds)
    show(found)
    if arguments.json:
        facts = {"benchmark": arguments.benchmark, "iterations": arguments.iterations}
        rest = {
            "settings": {**identity(config), "MODEL.DEVICE": config.MODEL.DEVICE},
            "environment": describe_environment(),
        }
        write_json(arguments.json, {**facts, **found, **rest})


def find_engines(config: Any) -> dict[str, ModuleType]:
    """Each importable engine's half of this: `training_step` and `loaded_batches`."""
    names = ["torchvision"]
    try:
        _, detectron2 = find_engine("detectron2", config)
        detectron2.detectron2_config(config, 0, Path("unused"))
        names.append("detectron2")
    except UserError as error:
        print(f"the torchvision engine alone: {error}")
    return {name: importlib.import_module(f"benchmarks.{name}_engine.bench") for name in names}


def time_steps(
    engines: dict[str, ModuleType], config: Any, backbone: Backbone | None, iterations: int
) -> dict[str, list[float]]:
    """Seconds of each training step of each engine, round by round.

    Each round begins with the other engine, and both steps with the same random draws, so that
    they sample alike.
    """
    loaded = engines["torchvision"].loaded_batches(config)
    batches = list(islice(loaded, min(iterations, _BATCHES)))
    steps = {name: e.training_step(config, backbone, batches) for name, e in engines.items()}
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    order = list(engines)
    for iteration in range(_WARM_UP + iterations):
        for name in order:
            torch.manual_seed(iteration)
            started = time.perf_counter()
            steps[name](iteration)
            if config.MODEL.DEVICE == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - started)
        order.reverse()
    return {name: values[_WARM_UP:] for name, values in seconds.items()}


def loader_speed(engine: ModuleType, config: Any, iterations: int) -> float:
    """Samples per second of the engine's data loader, with nothing else to do.

    What its workers have prepared while they were started is not counted.
    """
    batches = engine.loaded_batches(config)
    prefetched = 2 * config.DATALOADER.NUM_WORKERS
    for _ in islice(batches, prefetched + 1):
        pass
    started = time.perf_counter()
    samples = sum(len(batch) for batch in islice(batches, iterations))
    return samples / (time.perf_counter() - started)


def summary(seconds: dict[str, list[float]], speeds: dict[str, float]) -> dict[str, Any]:
    """What is shown and written: each engine's step and loader, and the ratio of their speeds.

    `seconds` of each engine's steps; `speeds`, the samples per second of each one's loader. The
    ratio is the torchvision engine's iterations per second over Detectron2's, round by round.
    """
    steps = {name: middle_half(values) for name, values in seconds.items()}
    engines = {
        name: {
            "seconds_per_step": step,
            "iterations_per_second": 1 / step["median"],
            "loader_samples_per_second": speeds[name],
        }
        for name, step in steps.items()
    }
    if "detectron2" not in seconds:
        return {"engines": engines}
    pairs = zip(seconds["detectron2"], seconds["torchvision"])
    return {"engines": engines, "ratio": middle_half([theirs / ours for theirs, ours in pairs])}


def show(found: dict[str, Any]) -> None:
    """A line for each engine, and how they compare."""
    table = Table("engine", "ms per step", "middle half", "it/s", "loader samples/s")
    for name, engine in found["engines"].items():
        milliseconds = {key: 1000 * value for key, value in engine["seconds_per_step"].items()}
        table.add_row(
            name,
            f"{milliseconds['median']:.1f}",
            f"{milliseconds['low']:.1f} to {milliseconds['high']:.1f}",
            f"{engine['iterations_per_second']:.3g}",
            f"{engine['loader_samples_per_second']:,.3g}",
        )
    Console().print(table)
    if "ratio" in found:
        low, median, high = (found["ratio"][key] for key in ("low", "median", "high"))
        print(
            f"torchvision does {median:.3f} times Detectron2's iterations/s "
            f"(middle half {low:.3f} to {high:.3f})"
        )


def _configuration(benchmark: str, settings: list[str], batch_size: int | None) -> Any:
    """The benchmark's, proven to be trainable here. Raises UserError where it is not."""
    if batch_size is not None:
        settings = [*settings, "SOLVER.IMS_PER_BATCH", str(batch_size)]
    config = load_config(find_config(benchmark), settings)
    if "SVM" in config:
        raise UserError(f"{benchmark}: SVMs on frozen features have no training steps to time")
    check(config, distributed.start(device_type(config)))
    return config


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("benchmark", help=f"{', '.join(benchmark_files())}, or a YAML file")
    parser.add_argument("--weights", default=RANDOM, metavar="FILE.pkl", help="default: random")
    parser.add_argument("--iterations", type=int, default=20, help="of each engine (default: 20)")
    parser.add_argument("--batch-size", type=int, help="default: the configuration's own")
    parser.add_argument("--json", type=Path, help="where to write the numbers as well")
    parser.add_argument("settings", nargs="*", metavar="KEY VALUE", help="keys to change")
    arguments = parser.parse_intermixed_args()
    if arguments.iterations < 1:
        raise UserError(f"--iterations {arguments.iterations}: at least 1 is needed")
    return arguments


if __name__ == "__main__":
    run_command(main)
