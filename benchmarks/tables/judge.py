"""Averages of trials, when they reproduce a published number, and when they may be held against it.

RULE: ours is reproduced where it differs from the paper's by at most twice the standard error of
our mean, or by at most the published noise of one trial, whichever is more.
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.results import Results
from benchmarks.tables.paper import Conditions

RULE = "Reproduced: |ours − paper| ≤ max(2·std/√n, published noise of one trial)."

REPRODUCED, OFF, NOT_JUDGED = "reproduced", "off", "not judged"
MISSING, UNPUBLISHED, NOT_COMPARABLE = "missing", "not published here", "not comparable"
NOT_AVERAGED = "not averaged"

_PROTOCOL = {
    "engine": "engines",
    "schedule": "schedules",
    "trained_on": "training sets",
    "config_sha256": "settings",
}


@dataclass(frozen=True)
class Summary:
    """Several trials of one number. std is the sample's (n - 1), None for a single trial."""

    mean: float
    std: float | None
    n: int

    @property
    def standard_error(self) -> float:
        """Of the mean; 0 where there is no spread."""
        return (self.std or 0.0) / math.sqrt(self.n)


def summarise(values: Sequence[float]) -> Summary:
    """Mean, sample standard deviation and number of one or more values."""
    std = statistics.stdev(values) if len(values) > 1 else None
    return Summary(statistics.fmean(values), std, len(values))


def difference(of: Summary, minus: Summary) -> Summary:
    """Of two independent means: n is the smaller one's, std such that the standard error is right.

    With the same n in both, std is the square root of the sum of both variances.
    """
    n, mean = min(of.n, minus.n), of.mean - minus.mean
    if of.std is None or minus.std is None:
        return Summary(mean, None, n)
    error = math.hypot(of.standard_error, minus.standard_error)
    return Summary(mean, error * math.sqrt(n), n)


def allowed_difference(ours: Summary, noise: float | None) -> float:
    """RULE's right-hand side; 0 where neither a spread nor a published noise is known."""
    return max(2 * ours.standard_error, noise or 0.0)


def judge(ours: Summary, paper: float, noise: float | None) -> tuple[str, str]:
    """(verdict, reason): RULE, or NOT_JUDGED and why where there is nothing to judge by."""
    allowed = allowed_difference(ours, noise)
    if not allowed:
        trials = "one trial" if ours.std is None else "trials that do not differ"
        return NOT_JUDGED, f"no published noise, {trials}"
    # Both are printed with one decimal, so a last digit of the sum is forgiven.
    return (REPRODUCED if abs(ours.mean - paper) <= allowed + 1e-9 else OFF), ""


def why_not_one_row(trials: Sequence[Results]) -> str | None:
    """Why these trials are not repetitions of one experiment; None when they are."""
    for field, what in {**_PROTOCOL, "weights_sha256": "weights"}.items():
        if (count := _count(trials, field)) > 1:
            return f"trials of {count} different {what}"
    return None


def what_differs(trials: Sequence[Results]) -> list[str]:
    """In what trials of different rows differ that should differ in their weights alone."""
    return [what for field, what in _PROTOCOL.items() if _count(trials, field) > 1]


def _count(trials: Sequence[Results], field: str) -> int:
    return len({str(getattr(trial, field)) for trial in trials})


def why_not_comparable(
    trials: Sequence[Results], published: Conditions, pretraining: Mapping[str, tuple[Any, Any]]
) -> str | None:
    """Why these trials of one row cannot be held against the paper's; None when they can.

    pretraining: by setting, what the weights were made with and what the paper's were.
    """
    return next(_differences(trials, published, pretraining), None)


def _differences(
    trials: Sequence[Results], published: Conditions, pretraining: Mapping[str, tuple[Any, Any]]
) -> Iterator[str]:
    if (mixed := why_not_one_row(trials)) is not None:
        yield mixed
    trial, file = trials[0], f"configs/benchmarks/{trials[0].benchmark}.yaml"
    if trial.schedule != published.schedule:
        yield f"{_schedule(trial.schedule)}, the paper's {_schedule(published.schedule)}"
    if sorted(trial.trained_on) != sorted(published.trained_on):
        yield f"trained on {' + '.join(trial.trained_on)}"
    if published.config_sha256 is None:
        yield f"there is no {file} to hold its settings against"
    elif trial.config_sha256 != published.config_sha256:
        yield f"settings differ from {file}"
    for setting, (ours, papers) in pretraining.items():
        if ours != papers:
            yield f"pre-trained with {setting} = {ours}, the paper's with {papers}"


def _schedule(schedule: Mapping[str, int]) -> str:
    if not schedule:
        return "no schedule"
    return f"{schedule['iterations']} iterations of {schedule['batch']} images"
