"""From the command line's choices to the stages, in an order in which they can run.

data → pretrain/METHOD-DATA → convert/METHOD-DATA → benchmarks/BENCHMARK/ROW/seed_N
     → tables → report

Nothing here imports torch or another package of the pipeline: planning is instant.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.benchmarks import benchmark_files
from common.errors import UserError, did_you_mean
from pipeline.stage import Stage

PRETRAIN_CONFIGS = Path("configs/pretrain")
MINIATURE = Path("datasets/mini")

# What --pretrain means: METHOD_SUFFIX.yaml under configs/pretrain.
SOURCES = {"IN": "imagenet_200ep", "CC": "coco_800ep", "MINI": "mini"}
ALL = "all"  # --benchmarks: all that go with a ResNet-50
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
    benchmarks = _benchmarks(choices)
    stages = [_data()] if choices.is_miniature else []
    data = tuple(stage.name for stage in stages)
    for method, config in configs.items():
        stages += _weights(method, config, choices, data)
    for benchmark, config in benchmarks.items():
        for row in (*(f"{method}-{choices.source}" for method in configs), RANDOM):
            stages += [
                _trial(benchmark, config, row, seed, choices, data)
                for seed in range(1, choices.trials + 1)
            ]
    return [*stages, _tables(choices.folder, stages), _report(choices.folder)]


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


def _trial(
    benchmark: str, config: Path, row: str, seed: int, choices: Choices, data: tuple[str, ...]
) -> Stage:
    name = f"benchmarks/{benchmark}/{row}/seed_{seed}"
    folder = choices.folder / name
    weights = RANDOM if row == RANDOM else str(choices.folder / "weights" / f"{row}.pkl")
    words = ("-m", "benchmarks", benchmark, "--weights", weights, "--row", row)
    return Stage(
        name=name,
        words=(*words, "--seed", str(seed), "--output", str(folder)),
        outputs=(folder / "results.json", folder / "DONE"),
        needs=data if row == RANDOM else (*data, f"convert/{row}"),
        configs=(config,),
        owns=(folder,),
        replaceable=True,
        on_every_gpu=not choices.is_miniature,
    )


def _tables(folder: Path, stages: Sequence[Stage]) -> Stage:
    trials = tuple(stage.name for stage in stages if stage.name.startswith("benchmarks/"))
    words = ("-m", "benchmarks.tables", str(folder))
    index = folder / "tables" / "tables.json"
    return Stage(name="tables", words=words, outputs=(index,), needs=trials, always=True)


def _report(folder: Path) -> Stage:
    return Stage(
        name="report",
        words=("-m", "pipeline.report", str(folder)),
        outputs=(folder / "report.html",),
        needs=("tables",),
        always=True,
    )


def _pretrain_config(method: str, source: str) -> Path:
    ending = f"_{SOURCES[source]}.yaml"
    available = {path.name.removesuffix(ending) for path in PRETRAIN_CONFIGS.glob(f"*{ending}")}
    if method not in available:
        raise UserError(
            f"--methods {method}: no {PRETRAIN_CONFIGS / (method + ending)}"
            f"{did_you_mean(method, available)}: available are {_listed(available)}"
        )
    return PRETRAIN_CONFIGS / f"{method}{ending}"


def _benchmarks(choices: Choices) -> dict[str, Path]:
    """Full names of the chosen benchmarks and their files; in a miniature run, voc is mini_voc."""
    prefix = "mini_" if choices.is_miniature else ""
    available = {
        name.removeprefix(prefix): file
        for name, file in benchmark_files().items()
        if name.startswith("mini_") == choices.is_miniature
    }
    chosen: dict[str, Path] = {}
    for word in choices.benchmarks:
        short = word.removeprefix(prefix)
        if word == ALL:
            chosen |= {name: file for name, file in available.items() if "r101" not in file.stem}
        elif short in available:
            chosen[short] = available[short]
        else:
            raise UserError(
                f"--benchmarks {word}: no such benchmark for --pretrain {choices.source}"
                f"{did_you_mean(short, available)}: available are {ALL}, {', '.join(available)}"
            )
    return {prefix + name: file for name, file in chosen.items()}


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "none"
