"""The paper's tables with a run's numbers in them."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from benchmarks.tables.cells import PAPER, Cell, Row, SourceList, Table
from benchmarks.tables.judge import (
    MISSING,
    NOT_COMPARABLE,
    RULE,
    UNPUBLISHED,
    allowed_difference,
    difference,
    judge,
    why_not_comparable,
)
from benchmarks.tables.notes import mixed_rows, noise, reasons, status, unfinished
from benchmarks.tables.paper import Column, Delta, Paper, PaperRow, PaperTable
from benchmarks.tables.run import Experiment, Run


def compare(table: PaperTable, paper: Paper, run: Run) -> Table:
    """One published table beside the run's results.

    A benchmark's main table also lists the rows that no published table has.
    """
    sources = SourceList()
    rows = [
        _row(row, table.columns, paper, run, sources)
        for row in [*table.rows, *(_extra_rows(table, paper, run) if table.is_main else [])]
    ]
    rows += [_delta_row(delta, table, rows) for delta in table.deltas]
    return Table(
        name=table.name,
        kind=PAPER,
        title=table.title,
        number=table.number,
        metrics=[column.metric for column in table.columns],
        rows=rows,
        sources=sources.sources,
        notes=[
            *reasons(rows),
            RULE,
            *noise(table, paper),
            *table.notes,
            *status(table),
            *mixed_rows(run, table.columns, rows),
            *unfinished(run, table.columns, rows),
        ],
    )


def published_rows(paper: Paper, benchmark: str) -> set[str]:
    """Our names of the rows that any published table has for this benchmark."""
    tables = [t for t in paper.tables if any(c.benchmark == benchmark for c in t.columns)]
    return {row.row for table in tables for row in table.rows if row.row}


def _extra_rows(table: PaperTable, paper: Paper, run: Run) -> list[PaperRow]:
    benchmark = table.columns[0].benchmark
    known = published_rows(paper, benchmark)
    names = sorted(row for name, row in run.experiments if name == benchmark and row not in known)
    return [PaperRow(label=name, row=name, values={}) for name in names]


def _row(
    row: PaperRow, columns: Iterable[Column], paper: Paper, run: Run, sources: SourceList
) -> Row:
    cells = []
    for column in columns:
        experiment = run.experiments.get((column.benchmark, row.row or ""))
        cells.append(_cell(row, column, paper, experiment, sources))
    return Row(row.label, row.row, cells)


def _cell(
    row: PaperRow,
    column: Column,
    paper: Paper,
    experiment: Experiment | None,
    sources: SourceList,
) -> Cell:
    published = row.values.get(column.metric)
    if experiment is None:
        verdict = UNPUBLISHED if published is None else MISSING
        return Cell(column.metric, column.benchmark, published, None, verdict)
    ours = experiment.summary(column.key)
    conditions = paper.conditions[column.benchmark]
    reason = why_not_comparable(
        experiment.trials, conditions, _pretraining(row, paper, experiment)
    ) or ("" if ours else f"no {column.key} in the results")
    allowed = None
    if reason:
        verdict = NOT_COMPARABLE
    elif published is None or ours is None:
        verdict = UNPUBLISHED
    else:
        known_noise = conditions.noise.get(column.key)
        allowed = allowed_difference(ours, known_noise)
        verdict, reason = judge(ours, published, known_noise)
    return Cell(
        metric=column.metric,
        benchmark=column.benchmark,
        paper=published,
        ours=ours,
        verdict=verdict,
        reason=reason,
        allowed=allowed,
        sources=(sources.add_experiment(experiment),),
    )


def _pretraining(
    row: PaperRow, paper: Paper, experiment: Experiment
) -> Mapping[str, tuple[Any, Any]]:
    """By setting: what the weights were made with, where that is known, and the paper's."""
    ours = experiment.pretraining or {}
    papers = dict(paper.pretraining.get(row.row or "", {}))
    if row.epochs is not None:
        papers["optim.epochs"] = row.epochs
    return {key: (ours[key], value) for key, value in papers.items() if key in ours}


def _delta_row(delta: Delta, table: PaperTable, rows: list[Row]) -> Row:
    """The difference of two rows, each of which must itself be comparable."""
    by_name = {row.name: row for row in rows}
    parts = zip(table.columns, by_name[delta.of].cells, by_name[delta.minus].cells)
    cells = [_delta_cell(column, delta.values[column.metric], of, m) for column, of, m in parts]
    return Row(delta.label, None, cells)


def _delta_cell(column: Column, published: float | None, of: Cell, minus: Cell) -> Cell:
    cell = Cell(column.metric, column.benchmark, published, None, MISSING)
    if of.ours is None or minus.ours is None or published is None:
        return cell
    ours = difference(of.ours, minus.ours)
    used = (*of.sources, *minus.sources)
    refused = [part for part in (of, minus) if part.verdict == NOT_COMPARABLE]
    if refused:
        verdict, reason, allowed = NOT_COMPARABLE, refused[0].reason, None
    else:
        (verdict, reason), allowed = judge(ours, published, None), allowed_difference(ours, None)
    return replace(cell, ours=ours, verdict=verdict, reason=reason, allowed=allowed, sources=used)
