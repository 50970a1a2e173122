"""From the command line's choices to the stages, in an order in which they can run.

data → pretrain/METHOD-DATA → convert/METHOD-DATA → benchmarks/BENCHMARK/ROW/seed_N
     → correspondence → tables → report

Nothing here imports torch or another package of the pipeline: planning is instant.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.benchmarks import benchmark_files
from common.errors import UserError, did_you_mean
from common.files import read_yaml
from pipeline.stage import Stage

PRETRAIN_CONFIGS = Path("configs/pretrain")
MINIATURE = Path("datasets/mini")

# What --pretrain means: METHOD_SUFFIX.yaml under configs/pretrain, the suffix being a pattern.
SOURCES = {"IN": "imagenet_*ep", "CC": "coco_*ep", "MINI": "mini"}
ABLATIONS = Path("configs/ablations.yaml")
ALL = "all"  # --benchmarks: all that go with a ResNet-50, but the study's
RANDOM = "random"  # the row of a backbone that was never pre-trained


@dataclass(frozen=True)
class Choices:
    """What to run, and where its files go."""

    source: str  # a key of SOURCES
    folder: Path
    epochs: int | None = None  # None: the configuration's own
    methods: Sequence[str] = ("densecl",)
    benchmarks: Sequence[str] = ("voc",)  # empty: the ablation's own
    trials: int = 1
    ablation: str | None = None  # a table of ABLATIONS

    @property
    def is_miniature(self) -> bool:
        """Whether it is the generated data that a CPU is enough for."""
        return self.source == "MINI"


@dataclass(frozen=True)
class Row:
    """One pre-training: METHOD-SOURCE[-SETTING], a file, and settings changed in it."""

    name: str
    config: Path
    settings: tuple[str, ...] = ()


def plan(choices: Choices) -> list[Stage]:
    """The stages, each after those it needs.

    Raises UserError for a method, ablation or benchmark that has no configuration.
    """
    rows = _rows(choices)
    benchmarks = _benchmarks(choices)
    stages = [_data()] if choices.is_miniature else []
    data = tuple(stage.name for stage in stages)
    for pretraining in rows:
        stages += _weights(pretraining, choices, data)
    for benchmark, config in benchmarks.items():
        for row in (*(row.name for row in rows), RANDOM):
            stages += [
                _trial(benchmark, config, row, seed, choices, data)
                for seed in range(1, choices.trials + 1)
            ]
    stages.append(_correspondence(rows, choices))
    return [*stages, _tables(choices.folder, stages), _report(choices.folder)]


def _data() -> Stage:
    return Stage(
        name="data",
        words=("-m", "common.miniature", str(MINIATURE)),
        outputs=(MINIATURE / "DONE",),
        owns=(MINIATURE,),
    )


def _weights(row: Row, choices: Choices, data: tuple[str, ...]) -> tuple[Stage, Stage]:
    folder = choices.folder / "pretrain" / row.name
    pickle = choices.folder / "weights" / f"{row.name}.pkl"
    words = ("-m", "pretrain", "--config-file", str(row.config), "--output", str(folder))
    pretrain = Stage(
        name=f"pretrain/{row.name}",
        words=(*words, *row.settings),
        outputs=(folder / "DONE",),
        needs=data,
        configs=(row.config,),
        owns=(folder,),  # not replaceable: days of work, so its own refusal is shown instead
        on_every_gpu=not choices.is_miniature,
        resumes=True,
    )
    manifest = pickle.with_suffix(".json")
    convert = Stage(
        name=f"convert/{row.name}",
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
        resumes=True,
    )


def _correspondence(rows: Sequence[Row], choices: Choices) -> Stage:
    """Drawn on the miniature's validation images, or on some of those that were trained on."""
    pickles = [choices.folder / "weights" / f"{row.name}.pkl" for row in rows]
    images, size = str(MINIATURE / "imagenet" / "val"), "192"
    if not choices.is_miniature:
        trained_on = read_yaml(rows[0].config).get("data", {})
        images, size = trained_on.get("root", "datasets/imagenet/train"), "448"
    folder = choices.folder / "correspondence"
    words = ("-m", "pretrain.correspondence", "--weights", RANDOM, *map(str, pickles))
    return Stage(
        name="correspondence",
        words=(*words, "--images", images, "--size", size, "--output", str(folder)),
        outputs=(folder / "correspondence.json",),
        needs=tuple(f"convert/{row.name}" for row in rows),
        owns=(folder,),
        replaceable=True,
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
        needs=("correspondence", "tables"),
        always=True,
    )


def _rows(choices: Choices) -> list[Row]:
    """The pre-trainings of the chosen methods, or of an ablation."""
    epochs = () if choices.epochs is None else (f"optim.epochs={choices.epochs}",)
    wanted: dict[str, dict[str, list[str]]] = {name: {} for name in choices.methods}
    if choices.ablation is not None:
        wanted = _ablation(choices.ablation, choices.source)[0]
    rows = []
    for method, changes in wanted.items():
        config, name = _pretrain_config(method, choices.source), f"{method}-{choices.source}"
        rows.append(Row(name, config, epochs))
        rows += [Row(f"{name}-{s}", config, (*epochs, *words)) for s, words in changes.items()]
    return rows


def _ablation(name: str, source: str) -> tuple[dict[str, dict[str, list[str]]], list[str]]:
    """Of a table of ABLATIONS: by method, what each setting changes; and its benchmarks."""
    tables = read_yaml(ABLATIONS)
    if name not in tables:
        raise UserError(
            f"--ablation {name}: not in {ABLATIONS}{did_you_mean(name, tables)}: "
            f"available are {', '.join(tables)}"
        )
    methods = dict(tables[name])
    benchmarks, own = methods.pop("benchmarks"), methods.pop("MINI", {})
    if source == "MINI":
        methods |= own
    return methods, benchmarks


def _pretrain_config(method: str, source: str) -> Path:
    pattern = f"_{SOURCES[source]}.yaml"
    family = pattern.partition("*")[0].removesuffix(".yaml")  # _imagenet_, _coco_, _mini
    files = PRETRAIN_CONFIGS.glob(f"*{pattern}")
    available = {path.stem.rpartition(family)[0]: path for path in files}
    if method not in available:
        raise UserError(
            f"--methods {method}: no {PRETRAIN_CONFIGS / (method + pattern)}"
            f"{did_you_mean(method, available)}: available are {_listed(set(available))}"
        )
    return available[method]


def _benchmarks(choices: Choices) -> dict[str, Path]:
    """Full names of the chosen benchmarks and their files; in a miniature run, voc is mini_voc."""
    prefix = "mini_" if choices.is_miniature else ""
    available = {
        name.removeprefix(prefix): file
        for name, file in benchmark_files().items()
        if name.startswith("mini_") == choices.is_miniature
    }
    chosen: dict[str, Path] = {}
    for word in choices.benchmarks or _ablation(choices.ablation or "", choices.source)[1]:
        short = word.removeprefix(prefix)
        if word == ALL:
            usual = (name for name in available if not re.search("r101|study", name))
            chosen |= {name: available[name] for name in usual}
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
