"""The paper's table of pre-training times. Ours are of another device, so none is judged.

runs/NAME/pretrain/ROW/   metrics.jsonl owner.json env.json, counted where DONE is beside them
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.tables.cells import (
    MINIATURE,
    MINIATURE_NOTE,
    PAPER,
    Cell,
    Row,
    Source,
    SourceList,
    Table,
)
from benchmarks.tables.judge import MISSING, NOT_COMPARABLE, Summary
from benchmarks.tables.paper import Paper
from common.errors import UserError
from common.files import fingerprint
from common.run_folder import DONE, OWNER

WHAT = "Ours: the mean over all steps of the pre-training, waiting for data included."


@dataclass(frozen=True)
class Timing:
    """How long one finished pre-training took."""

    row: str
    seconds_per_epoch: float
    device: str
    source: Source


def read_timings(run: Path) -> list[Timing]:
    """Of the run's finished pre-trainings.

    Raises UserError naming a file that is damaged.
    """
    folders = sorted(done.parent for done in (run / "pretrain").glob(f"*/{DONE}"))
    found = []
    for folder in folders:
        try:
            found.append(_timing(folder, folder.relative_to(run)))
        except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
            raise UserError(
                f"{folder}: cannot tell its time per epoch from metrics.jsonl, {OWNER} and "
                f"env.json ({type(error).__name__}: {error})"
            ) from None
    return found


def compare_times(paper: Paper, timings: list[Timing]) -> Table:
    """Seconds per epoch beside the paper's; a key of its columns is the row's -SOURCE."""
    table, sources = paper.times, SourceList()
    ours = {timing.row: timing for timing in timings}
    rows = []
    for row in table.rows:
        cells = []
        for column in table.columns:
            timing = ours.get(f"{row.row}-{column.key}")
            cell = Cell(column.metric, "pretrain", row.values[column.metric], None, MISSING)
            if timing is not None:
                reason = f"measured on {timing.device}, the paper's on {paper.times_device}"
                cell = _cell(cell.metric, timing, sources, cell.paper, NOT_COMPARABLE, reason)
            cells.append(cell)
        rows.append(Row(row.label, row.row, cells))
    reasons = dict.fromkeys(c.reason for row in rows for c in row.cells if c.reason)
    return Table(
        name=table.name,
        kind=PAPER,
        title=table.title,
        number=table.number,
        metrics=[column.metric for column in table.columns],
        rows=rows,
        sources=sources.sources,
        notes=[*(f"Not comparable: {reason}." for reason in reasons), WHAT, *table.notes],
    )


def miniature_times(paper: Paper, timings: list[Timing]) -> list[Table]:
    """A table of the pre-trainings on generated images; none without any."""
    sources = SourceList()
    rows = [
        Row(timing.row, timing.row, [_cell("sec_per_epoch_MINI", timing, sources)])
        for timing in timings
        if "-MINI" in timing.row
    ]
    table = Table(
        name=f"miniature_{paper.times.name}",
        kind=MINIATURE,
        title=f"Miniature twin of {paper.times.short_title}",
        number=f"twin of {paper.times.number}",
        metrics=["sec_per_epoch_MINI"],
        rows=rows,
        sources=sources.sources,
        notes=[MINIATURE_NOTE, WHAT],
    )
    return [table] if rows else []


def _cell(
    metric: str,
    timing: Timing,
    sources: SourceList,
    paper: float | None = None,
    verdict: str = "",
    reason: str = "",
) -> Cell:
    ours = Summary(timing.seconds_per_epoch, None, 1)
    used = (sources.add(timing.source),)
    return Cell(metric, "pretrain", paper, ours, verdict, reason, sources=used)


def _timing(folder: Path, path: Path) -> Timing:
    identity = json.loads((folder / OWNER).read_text(encoding="utf-8"))
    environment = json.loads((folder / "env.json").read_text(encoding="utf-8"))
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    batch = identity["optim"]["batch_size"]
    device = _device(environment)
    return Timing(
        row=folder.name,
        seconds_per_epoch=_seconds_per_step(lines, batch) * (identity["images"] // batch),
        device=device,
        source=Source(
            title=f"pre-training, {folder.name}",
            files=[("metrics.jsonl", (path / "metrics.jsonl").as_posix())],
            seeds=[identity["seed"]],
            engine=f"torch {environment['packages']['torch']}",
            weights_sha256=None,
            config_sha256=fingerprint(identity),
            commit=environment["commit"],
            device=device,
        ),
    )


def _seconds_per_step(lines: list[str], batch: int) -> float:
    """Each line's images_per_second is of the steps since the line before it."""
    last, seconds = 0, 0.0
    for line in lines:
        values: dict[str, Any] = json.loads(line)
        seconds += (values["step"] - last) * batch / values["images_per_second"]
        last = values["step"]
    return seconds / last


def _device(environment: dict[str, Any]) -> str:
    gpus = environment["gpus"]
    return f"{len(gpus)} x {gpus[0]}" if gpus else "CPU"
