"""What a table consists of, before it becomes text: cells in rows, and the results behind them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from benchmarks.tables.judge import Summary
from benchmarks.tables.run import Experiment

PAPER, MINIATURE, OWN = "paper", "miniature", "own"
MINIATURE_NOTE = (
    "Generated images and a network of a quarter of the width: it shows that the machinery works "
    "and is never compared with the paper."
)


@dataclass(frozen=True)
class Source:
    """The results behind a cell. Hashes are None where there are none."""

    title: str
    files: list[tuple[str, str]]
    """(words, path relative to the run folder)."""
    seeds: list[int]
    engine: str
    weights_sha256: str | None
    config_sha256: str
    commit: str | None
    device: str


@dataclass(frozen=True)
class Cell:
    """One number of ours, the paper's beside it, and what their difference says."""

    metric: str
    benchmark: str
    paper: float | None
    ours: Summary | None
    verdict: str = ""
    """One of judge's; empty where nothing is compared."""
    reason: str = ""
    allowed: float | None = None
    """The largest difference that is still reproduced; None where nothing is judged."""
    sources: Sequence[int] = ()
    """Indices of the table's sources."""


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    label: str
    name: str | None
    """Our name of it."""
    cells: list[Cell]

    @property
    def is_measured(self) -> bool:
        """Whether any results of the run are behind it."""
        return any(cell.sources for cell in self.cells)


@dataclass(frozen=True)
class Table:
    """What is shown and written; `name` is that of its files."""

    name: str
    kind: str
    """PAPER, MINIATURE or OWN."""
    title: str
    number: str
    """Short for the title: Table 1, or the benchmark's name."""
    metrics: list[str]
    rows: list[Row]
    sources: list[Source]
    notes: list[str] = field(default_factory=list)
    figure: str | None = None
    """SVG."""

    @property
    def is_measured(self) -> bool:
        """Whether any results of the run are in it."""
        return any(row.is_measured for row in self.rows)


class SourceList:
    """Collects a table's sources, each once."""

    def __init__(self) -> None:
        self.sources: list[Source] = []

    def add(self, source: Source) -> int:
        """The source's index."""
        if source not in self.sources:
            self.sources.append(source)
        return self.sources.index(source)

    def add_experiment(self, experiment: Experiment) -> int:
        """The index of the experiment's results."""
        trials = experiment.trials
        return self.add(
            Source(
                title=f"{experiment.benchmark}, {experiment.row}",
                files=[
                    (f"seed {trial.seed}", (folder / "results.json").as_posix())
                    for trial, folder in zip(trials, experiment.folders)
                ],
                seeds=[trial.seed for trial in trials],
                engine=_each(f"{t.engine} engine, {t.engine_version}" for t in trials) or "",
                weights_sha256=_each(trial.weights_sha256 for trial in trials),
                config_sha256=_each(trial.config_sha256 for trial in trials) or "",
                commit=_each(trial.commit for trial in trials),
                device=_each(trial.device for trial in trials) or "",
            )
        )


def _each(values: Iterable[str | None]) -> str | None:
    """The different values, usually one."""
    return " and ".join(dict.fromkeys(value for value in values if value)) or None
