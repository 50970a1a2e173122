"""Published numbers, and when a run's own reproduce them.

configs/paper_tables.json holds the numbers with their sources. A table there that names one of our
benchmarks is compared with the runs of that benchmark; the others are kept for reference.
"""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.config import config_sha256, find_config, load_config
from benchmarks.results import Results

FILE = Path(__file__).parent.parent / "configs" / "paper_tables.json"
RULE = "reproduced: |ours − paper| ≤ max(2·std/√n, published noise)"


@dataclass(frozen=True)
class PaperRow:
    """One line of a published table."""

    label: str
    """The paper's words for the pre-training."""
    row: str | None
    """Our name of it."""
    epochs: int | None
    """How long the paper pre-trained."""
    values: dict[str, float | None]
    """By metric; None where the number could not be found."""


@dataclass(frozen=True)
class PaperTable:
    """A published table and the conditions under which a run may be held against it."""

    id: str
    title: str
    benchmark: str
    metrics: list[str]
    noise: dict[str, float]
    """Published standard deviation of one trial, by metric."""
    schedule: dict[str, int]
    trained_on: list[str]
    rows: list[PaperRow]


@dataclass(frozen=True)
class Summary:
    """Several trials of one number. std is the sample's (n - 1), None for a single trial."""

    mean: float
    std: float | None
    n: int


def paper_tables(file: Path = FILE) -> list[PaperTable]:
    """The tables that one of our benchmarks reproduces."""
    content = json.loads(file.read_text(encoding="utf-8"))
    return [_paper_table(table) for table in content["tables"] if "benchmark" in table]


def summarise(values: Sequence[float]) -> Summary:
    """Mean, sample standard deviation and number of one or more values."""
    std = statistics.stdev(values) if len(values) > 1 else None
    return Summary(statistics.fmean(values), std, len(values))


def is_reproduced(ours: Summary, paper: float, noise: float) -> bool:
    """RULE. Both are printed with one decimal, so a last digit of the sum is forgiven."""
    allowed = max(2 * (ours.std or 0.0) / math.sqrt(ours.n), noise)
    return abs(ours.mean - paper) <= allowed + 1e-9


def why_not_one_row(trials: Sequence[Results]) -> str | None:
    """Why these trials are not repetitions of one experiment; None when they are."""
    for field, what in (
        ("config_sha256", "settings"),
        ("weights_sha256", "weights"),
        ("engine", "engines"),
        ("schedule", "schedules"),
        ("trained_on", "training sets"),
    ):
        different = {str(getattr(trial, field)) for trial in trials}
        if len(different) > 1:
            return f"trials of {len(different)} different {what}"
    return None


def why_not_comparable(
    table: PaperTable, row: PaperRow, trials: Sequence[Results], weights: Path
) -> str | None:
    """Why these trials of one row cannot be held against the paper's; None when they can.

    weights: the folder of the run's converted backbones and their manifests.
    """
    trial = trials[0]
    if (mixed := why_not_one_row(trials)) is not None:
        return mixed
    if trial.schedule != table.schedule:
        return f"{_schedule(trial.schedule)}, the paper's {_schedule(table.schedule)}"
    if sorted(trial.trained_on) != sorted(table.trained_on):
        return f"trained on {' + '.join(trial.trained_on)}"
    if trial.config_sha256 != config_sha256(load_config(find_config(table.benchmark))):
        return f"settings differ from configs/benchmarks/{table.benchmark}.yaml"
    epochs = _pretraining_epochs(weights / f"{row.row}.json", trial.weights_sha256)
    if epochs is not None and epochs != row.epochs:
        return f"pre-trained for {epochs} epochs, the paper's for {row.epochs}"
    return None


def _paper_table(table: dict[str, Any]) -> PaperTable:
    rows = [PaperRow(r["pretrain"], r["row"], r["epochs"], r["values"]) for r in table["rows"]]
    return PaperTable(
        id=table["id"],
        title=f"{table['paper_table']} of {table['paper']}: {table['title']}",
        benchmark=table["benchmark"],
        metrics=table["metrics"],
        noise=table["tolerance"],
        schedule=table["comparable"]["schedule"],
        trained_on=table["comparable"]["trained_on"],
        rows=rows,
    )


def _schedule(schedule: dict[str, int]) -> str:
    return f"{schedule['iterations']} iterations of {schedule['batch']} images"


def _pretraining_epochs(manifest: Path, weights_sha256: str | None) -> int | None:
    """Epochs that the converter's manifest of these very weights records, if it does."""
    if not manifest.is_file():
        return None
    facts = json.loads(manifest.read_text(encoding="utf-8"))
    if facts["pickle_sha256"] != weights_sha256 or not facts["pretrain"]:
        return None
    return facts["pretrain"]["config"]["optim"]["epochs"]
