"""What a run folder holds for the tables: finished trials, and how the weights were made.

runs/NAME/benchmarks/BENCHMARK/ROW/seed_N/results.json   counted where DONE is beside it
runs/NAME/weights/ROW.json                               the weights' manifest
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.results import Results, read_results
from benchmarks.tables.judge import Summary, summarise, why_not_one_row
from common.errors import UserError
from common.run_folder import DONE, OWNER


@dataclass(frozen=True)
class Experiment:
    """The trials of one benchmark and row."""

    benchmark: str
    row: str
    trials: list[Results]
    folders: list[Path]
    """Each trial's, relative to the run folder."""
    pretraining: Mapping[str, Any] | None
    """Settings that its weights were pre-trained with (a.b: value); None where unknown."""

    def summary(self, key: str) -> Summary | None:
        """None where the trials may not be averaged, or one lacks the metric."""
        if why_not_one_row(self.trials) or any(key not in t.metrics for t in self.trials):
            return None
        return summarise([trial.metrics[key] for trial in self.trials])


@dataclass(frozen=True)
class Run:
    """Everything that is finished, and the names of what is not."""

    folder: Path
    experiments: dict[tuple[str, str], Experiment]
    """By benchmark and row."""
    unfinished: dict[str, tuple[str, str]]
    """Folder below benchmarks/ → benchmark and row."""


def read_run(folder: Path) -> Run:
    """The run's results.

    Raises UserError when it has none, or one was changed after it was written or is there twice.
    """
    root = folder / "benchmarks"
    trials = sorted(path for path in root.glob("*/*/seed_*") if path.is_dir())
    if not trials:
        raise UserError(f"{folder}: no benchmark results (expected {root}/BENCHMARK/ROW/seed_N)")
    finished = [p for p in trials if (p / DONE).exists() and (p / "results.json").exists()]
    found: dict[tuple[str, str], dict[int, tuple[Path, Results]]] = {}
    for path in finished:
        results = read_results(path / "results.json")
        seeds = found.setdefault((results.benchmark, results.row), {})
        if results.seed in seeds:
            raise UserError(f"{path}: the same trial as {seeds[results.seed][0]}: remove one")
        seeds[results.seed] = path, results
    experiments = {
        (benchmark, row): _experiment(folder, benchmark, row, [seeds[n] for n in sorted(seeds)])
        for (benchmark, row), seeds in found.items()
    }
    unfinished = {
        path.relative_to(root).as_posix(): (_benchmark_of(path), path.parent.name)
        for path in trials
        if path not in finished
    }
    return Run(folder, experiments, unfinished)


def _benchmark_of(folder: Path) -> str:
    """The full name in an unfinished trial's owner.json, else the folder's."""
    try:
        return json.loads((folder / OWNER).read_text(encoding="utf-8"))["benchmark"]
    except (OSError, ValueError, KeyError, TypeError):
        return folder.parts[-3]


def _experiment(
    run: Path, benchmark: str, row: str, trials: list[tuple[Path, Results]]
) -> Experiment:
    return Experiment(
        benchmark,
        row,
        [results for _, results in trials],
        [folder.relative_to(run) for folder, _ in trials],
        _pretraining(run / "weights" / f"{row}.json", trials[0][1].weights_sha256),
    )


def _pretraining(manifest: Path, weights_sha256: str | None) -> dict[str, Any] | None:
    """What the converter's manifest of these very weights records, under dotted keys."""
    if not manifest.is_file():
        return None
    try:
        facts = json.loads(manifest.read_text(encoding="utf-8"))
        its_weights, pretrain = facts["pickle_sha256"], facts["pretrain"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{manifest}: not a manifest ({error!r}): convert again") from None
    if its_weights != weights_sha256 or not pretrain or not pretrain["config"]:
        return None
    return _dotted(pretrain["config"])


def _dotted(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            settings |= _dotted(value, f"{prefix}{name}.")
        else:
            settings[f"{prefix}{name}"] = value
    return settings
