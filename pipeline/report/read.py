"""A run folder's files as records.

Nothing here fails because of what a file holds: what is missing or damaged is listed in
`Run.problems`, and the page says so.
"""

import json
import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from common.errors import UserError
from common.files import fingerprint
from pipeline.graph import FAILED, GRAPH, Records, load_graph, load_records, with_blocked
from pipeline.progress import last_line

PARTS = (GRAPH, "pretrain", "weights", "benchmarks", "tables")  # of a run folder

Points = list[tuple[float, float]]  # (step, value), both finite
Tree = dict[str, Any]  # a JSON object or YAML mapping

PRETRAINING_CURVES = (
    *("loss", "loss_global", "loss_dense", "top1_global", "top1_dense"),
    *("cosine_global", "cosine_dense", "match_entropy", "lr", "images_per_second"),
)
TRAINING_LOSS = "total_loss"
_IN_PART = re.compile("-|_(small|medium|large)$")  # metrics of one class, or of one size of objects


@dataclass(frozen=True)
class Pretraining:
    """pretrain/NAME."""

    name: str
    curves: dict[str, Points]
    config: Tree
    environment: Tree
    done: Tree  # empty while it is unfinished


@dataclass(frozen=True)
class Trial:
    """benchmarks/BENCHMARK/ROW/seed_N."""

    benchmark: str
    row: str
    seed: str
    path: Path  # below the run folder
    results: Tree  # empty while it is unfinished, or where results.json cannot be believed
    curves: dict[str, Points]  # training loss; metrics, but for those of one class or size


@dataclass(frozen=True)
class Run:
    """All that the page tells, but for tables and pictures, which are read when they are shown."""

    folder: Path
    stages: Records
    last_words: dict[str, str]  # of the failed stages: the last line of each one's log
    pretrainings: list[Pretraining]
    weights: dict[str, Tree]  # manifests by name
    trials: list[Trial]
    problems: list[str]


def read_run(folder: Path) -> Run:
    """Read `folder`; pre-trainings and trials in the order in which the plan had them."""
    files = Files(folder)
    stages = _stages(folder, files.problems)
    order = list(stages)

    def planned(path: Path) -> tuple[int, str]:
        name = str(path.relative_to(folder))
        return (order.index(name) if name in order else len(order), name)

    pretrainings = sorted(filter(Path.is_dir, folder.glob("pretrain/*")), key=planned)
    trials = sorted(filter(Path.is_dir, folder.glob("benchmarks/*/*/seed_*")), key=planned)
    manifests = sorted(folder.glob("weights/*.json"))
    return Run(
        folder=folder,
        stages=stages,
        last_words={
            name: last_line(folder, name)
            for name, record in stages.items()
            if record.state == FAILED
        },
        pretrainings=[_pretraining(path, files) for path in pretrainings],
        weights={path.stem: files.tree(path) for path in manifests},
        trials=[_trial(path, files) for path in trials],
        problems=files.problems,
    )


class Files:
    """Reads files of a run folder and remembers what was wrong with them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.problems: list[str] = []

    def tree(self, path: Path) -> Tree:
        """The mapping in a JSON or YAML file; an empty one, and a problem, where there is none."""
        try:
            text = path.read_text(encoding="utf-8")
            content = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
        except FileNotFoundError:
            return self._problem(path, "missing")
        except (OSError, ValueError, yaml.YAMLError):
            return self._problem(path, "damaged")
        return content if isinstance(content, dict) else self._problem(path, "not a mapping")

    def results(self, path: Path) -> Tree:
        """results.json, if it is as it was written."""
        content = self.tree(path)
        recorded = content.pop("content_sha256", None)
        if content and recorded != fingerprint(content):
            return self._problem(path, "changed after it was written: its hash does not match")
        return content

    def curves(self, path: Path, names: Collection[str]) -> dict[str, Points]:
        """The curves called `names` that metrics.jsonl holds; none where there is no such file."""
        curves: dict[str, Points] = {}
        damaged = 0
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return {}
        for line in lines:
            try:
                values = json.loads(line)
                step = float(values["step"])
            except (ValueError, TypeError, KeyError):
                damaged += 1
                continue
            for name in names:
                value = values.get(name)
                if isinstance(value, int | float) and math.isfinite(value):
                    curves.setdefault(name, []).append((step, float(value)))
        if damaged:
            self._problem(path, f"{damaged} of {len(lines)} lines damaged")
        return curves

    def _problem(self, path: Path, what: str) -> Tree:
        self.problems.append(f"{path.relative_to(self.folder)}: {what}")
        return {}


def _stages(folder: Path, problems: list[str]) -> Records:
    try:
        entries = load_graph(folder)
        stages = with_blocked(entries, load_records(folder, entries))
    except (UserError, OSError):
        problems.append(f"{GRAPH}: damaged")
        return {}
    if not stages:
        problems.append(f"{GRAPH}: missing, so nothing is known about what was to run")
    stages.pop("report", None)  # the stage that writes this page
    return stages


def _pretraining(path: Path, files: Files) -> Pretraining:
    return Pretraining(
        name=path.name,
        curves=files.curves(path / "metrics.jsonl", PRETRAINING_CURVES),
        config=files.tree(path / "config.yaml"),
        environment=files.tree(path / "env.json"),
        done=files.tree(path / "DONE") if (path / "DONE").exists() else {},
    )


def _trial(path: Path, files: Files) -> Trial:
    results = files.results(path / "results.json") if (path / "DONE").exists() else {}
    metrics = [name for name in results.get("metrics", {}) if not _IN_PART.search(name)]
    curves = files.curves(path / "metrics.jsonl", (TRAINING_LOSS, *metrics))
    last = results.get("schedule", {}).get("iterations")
    for name in metrics if last else ():  # the last evaluation may stand in the results alone
        curve = curves.setdefault(name, [])
        if not curve or curve[-1][0] < last:
            curve.append((float(last), results["metrics"][name]))
    benchmark, row, seed = path.parts[-3:]
    return Trial(
        benchmark=benchmark,
        row=row,
        seed=seed.removeprefix("seed_"),
        path=path.relative_to(files.folder),
        results=results,
        curves=curves,
    )
