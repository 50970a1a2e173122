"""From the command line's choices to the stages, in an order in which they can run.

data → pretrain/METHOD-DATA → convert/METHOD-DATA → benchmarks/BENCHMARK/ROW/seed_N → tables

Nothing here imports torch or another package of the pipeline: planning is instant.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError, did_you_mean
from pipeline.stage import Stage

PRETRAIN_CONFIGS = Path("configs/pretrain")
BENCHMARK_CONFIGS = Path("configs/benchmarks")
MINIATURE = Path("datasets/mini")

# What --pretrain means: METHOD_SUFFIX.yaml under configs/pretrain.
SOURCES = {"IN": "imagenet_200ep", "CC": "coco_800ep", "MINI": "mini"}
# What --benchmarks means: the names `python -m benchmarks` knows, and the files they stand for.
BENCHMARKS = {"voc": "voc_r50_c4_24k", "mini_voc": "mini_voc_r50_c4"}
RANDOM = "random"  # the row of a backbone that was never pre-trained


@dataclass(frozen=True)
class Choices:
    """What to run, and where its files go."""

    source: str  # a key of SOURCES
    folder: Path
    epochs: int | None = None  # None: the configuration's own
    methods: Sequence[str] = ("densecl",)
    benchmarks: Sequence[str] = ("voc",)
    trials: int = 1

    @property
    def is_miniature(self) -> bool:
        """Whether it is the generated data that a CPU is enough for."""
        return self.source == "MINI"


def plan(choices: Choices) -> list[Stage]:
    """The stages, each after those it needs.

    Raises UserError for a method or benchmark that has no configuration file.
    """
    configs = {method: _pretrain_config(method, choices.source) for method in choices.methods}
    benchmarks = [_benchmark(name, choices) for name in choices.benchmarks]
    stages = [_data()] if choices.is_miniature else []
    data = tuple(stage.name for stage in stages)
    for method, config in configs.items():
        stages += _weights(method, config, choices, data)
    for benchmark in benchmarks:
        for row in (*(f"{method}-{choices.source}" for method in configs), RANDOM):
            stages += [
                _trial(benchmark, row, seed, choices, data) for seed in range(1, choices.trials + 1)
            ]
    return [*stages, _tables(choices.folder, stages)]


def _data() -> Stage:
    return Stage(
        name="data",
        words=("-m", "common.miniature", str(MINIATURE)),
        outputs=(MINIATURE / "DONE",),
        owns=(MINIATURE,),
    )


def _weights(
    method: str, config: Path, choices: Choices, data: tuple[str, ...]
) -> tuple[Stage, Stage]:
    row = f"{method}-{choices.source}"
    folder = choices.folder / "pretrain" / row
    pickle = choices.folder / "weights" / f"{row}.pkl"
    epochs = () if choices.epochs is None else (f"optim.epochs={choices.epochs}",)
    pretrain = Stage(
        name=f"pretrain/{row}",
        words=("-m", "pretrain", "--config-file", str(config), "--output", str(folder), *epochs),
        outputs=(folder / "DONE",),
        needs=data,
        configs=(config,),
        owns=(folder,),  # not replaceable: days of work, so its own refusal is shown instead
        on_every_gpu=not choices.is_miniature,
    )
    manifest = pickle.with_suffix(".json")
    convert = Stage(
        name=f"convert/{row}",
        words=("-m", "converters", str(folder), str(pickle)),
        outputs=(pickle, manifest),
        needs=(pretrain.name,),
        owns=(pickle, manifest),
        replaceable=True,
    )
    return pretrain, convert


def _trial(benchmark: str, row: str, seed: int, choices: Choices, data: tuple[str, ...]) -> Stage:
    name = f"benchmarks/{benchmark}/{row}/seed_{seed}"
    folder = choices.folder / name
    weights = RANDOM if row == RANDOM else str(choices.folder / "weights" / f"{row}.pkl")
    words = ("-m", "benchmarks", benchmark, "--weights", weights, "--row", row)
    return Stage(
        name=name,
        words=(*words, "--seed", str(seed), "--output", str(folder)),
        outputs=(folder / "results.json", folder / "DONE"),
        needs=data if row == RANDOM else (*data, f"convert/{row}"),
        configs=(BENCHMARK_CONFIGS / f"{BENCHMARKS[benchmark]}.yaml",),
        owns=(folder,),
        replaceable=True,
        on_every_gpu=not choices.is_miniature,
    )


def _tables(folder: Path, stages: Sequence[Stage]) -> Stage:
    trials = tuple(stage.name for stage in stages if stage.name.startswith("benchmarks/"))
    words = ("-m", "benchmarks.tables", str(folder))
    return Stage(name="tables", words=words, outputs=(), needs=trials, always=True)


def _pretrain_config(method: str, source: str) -> Path:
    ending = f"_{SOURCES[source]}.yaml"
    available = {path.name.removesuffix(ending) for path in PRETRAIN_CONFIGS.glob(f"*{ending}")}
    if method not in available:
        raise UserError(
            f"--methods {method}: no {PRETRAIN_CONFIGS / (method + ending)}"
            f"{did_you_mean(method, available)}: available are {_listed(available)}"
        )
    return PRETRAIN_CONFIGS / f"{method}{ending}"


def _benchmark(name: str, choices: Choices) -> str:
    """The benchmark's full name: in a miniature run, voc stands for mini_voc."""
    prefix = "mini_" if choices.is_miniature else ""
    available = {
        known.removeprefix(prefix)
        for known, stem in BENCHMARKS.items()
        if known.startswith("mini_") == choices.is_miniature
        and (BENCHMARK_CONFIGS / f"{stem}.yaml").is_file()
    }
    short = name.removeprefix(prefix)
    if short not in available:
        raise UserError(
            f"--benchmarks {name}: no such benchmark for --pretrain {choices.source}"
            f"{did_you_mean(short, available)}: available are {_listed(available)}"
        )
    return prefix + short


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "none"
