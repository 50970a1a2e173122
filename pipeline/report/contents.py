"""Pre-trainings and trials as figures, results by class and pictures."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pipeline.report.charts import Line, chart
from pipeline.report.pictures import Comparison, compare
from pipeline.report.read import TRAINING_LOSS, Pretraining, Run, Tree, Trial

LOSS_TITLE = "Training loss"

# Title, what the vertical axis shows, factor, and the solid and the dashed curve's name.
PRETRAINING_CHARTS = (
    ("Loss", "loss, nats", 1.0, ("loss",)),
    ("Its global and its dense term", "loss, nats", 1.0, ("loss_global", "loss_dense")),
    ("Positive ranked first", "queries, %", 100.0, ("top1_global", "top1_dense")),
    ("Mean cosine between images", "cosine", 1.0, ("cosine_global", "cosine_dense")),
    ("Match entropy", "share of the uniform's", 1.0, ("match_entropy",)),
    ("Learning rate", "learning rate", 1.0, ("lr",)),
    ("Speed", "images per second", 1.0, ("images_per_second",)),
)


@dataclass(frozen=True)
class Figure:
    """A chart and its caption."""

    title: str
    svg: Markup


@dataclass(frozen=True)
class ByClass:
    """One metric of each class: per class one value per row, None where there is none."""

    metric: str
    rows: list[str]
    classes: dict[str, list[float | None]]


@dataclass(frozen=True)
class Benchmark:
    """All trials of one benchmark."""

    name: str
    trials: list[Trial]
    figures: list[Figure]
    by_class: list[ByClass]
    picture_rows: list[str]
    pictures: list[Comparison]

    @property
    def title(self) -> str:
        """The configuration's name where it is known, else the folder's."""
        return next((t.results["benchmark"] for t in self.trials if t.results), self.name)

    @property
    def is_evaluated_once(self) -> bool:
        """Whether there is a result and no curve that leads to it."""
        drawn = any(figure.title != LOSS_TITLE for figure in self.figures)
        return not drawn and any(trial.results for trial in self.trials)

    @property
    def is_miniature(self) -> bool:
        """Whether it runs on generated images with a small network."""
        return self.name.startswith("mini_")


def pretraining_figures(
    pretrainings: Sequence[Pretraining], colours: dict[str, int]
) -> list[Figure]:
    """One figure per quantity that was logged, with a curve or two of every pre-training."""
    figures = []
    for title, y_label, factor, names in PRETRAINING_CHARTS:
        lines = [
            Line(
                label=f"{pretraining.name} {name}",
                points=[(step, factor * value) for step, value in pretraining.curves[name]],
                colour=colours[pretraining.name],
                dashed=number > 0,
            )
            for pretraining in pretrainings
            for number, name in enumerate(names)
            if name in pretraining.curves
        ]
        if lines:
            figures.append(Figure(title, chart(lines, "step", y_label, title, marked=False)))
    return figures


def benchmarks_of(run: Run, colours: dict[str, int]) -> list[Benchmark]:
    """The benchmarks of the run in its order; unreadable pictures are added to its problems."""
    benchmarks = []
    for name in dict.fromkeys(trial.benchmark for trial in run.trials):
        trials = [trial for trial in run.trials if trial.benchmark == name]
        rows, pictures = compare(run.folder, trials, run.problems)
        figures = list(_trial_figures(trials, colours))
        by_class = list(_by_class(trials))
        benchmarks.append(Benchmark(name, trials, figures, by_class, rows, pictures))
    return benchmarks


def _trial_figures(trials: Sequence[Trial], colours: dict[str, int]) -> Iterator[Figure]:
    names = dict.fromkeys(name for trial in trials for name in trial.curves)
    for name in sorted(names, key=lambda name: name == TRAINING_LOSS):  # the loss last
        lines = [
            Line(f"{trial.row} seed {trial.seed}", trial.curves[name], colours[trial.row])
            for trial in trials
            if name in trial.curves
        ]
        is_loss = name == TRAINING_LOSS
        if is_loss or any(len(line.points) > 1 for line in lines):
            title, y_label = (LOSS_TITLE, "loss") if is_loss else (name, f"{name}, %")
            yield Figure(title, chart(lines, "iteration", y_label, title, marked=not is_loss))


def _by_class(trials: Sequence[Trial]) -> Iterator[ByClass]:
    """Metrics called METRIC-CLASS, each the mean over the finished trials of a row."""
    rows: dict[str, list[Tree]] = {}
    for trial in trials:
        if trial.results:
            rows.setdefault(trial.row, []).append(trial.results)
    every = (key for found in rows.values() for results in found for key in results["metrics"])
    keys = [key for key in dict.fromkeys(every) if "-" in key]
    for metric in dict.fromkeys(key.partition("-")[0] for key in keys):
        classes = {
            key.partition("-")[2]: [_mean(found, key) for found in rows.values()]
            for key in keys
            if key.startswith(f"{metric}-")
        }
        yield ByClass(metric, list(rows), classes)


def _mean(trials: Sequence[Tree], key: str) -> float | None:
    """None where a trial lacks the metric, or where the trials do not measure the same thing."""
    if len({(t["engine"], t["config_sha256"], t["weights_sha256"]) for t in trials}) > 1:
        return None
    values = [trial["metrics"].get(key) for trial in trials]
    return None if None in values else statistics.fmean(values)
