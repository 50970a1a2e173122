"""Tables that are not the paper's: its miniature twins, and what has no published numbers."""

import re
from collections.abc import Iterable
from dataclasses import replace

from benchmarks.tables.cells import MINIATURE, MINIATURE_NOTE, OWN, Cell, Row, SourceList, Table
from benchmarks.tables.compare import published_rows
from benchmarks.tables.figure import draw_miniature
from benchmarks.tables.judge import NOT_AVERAGED, why_not_one_row
from benchmarks.tables.notes import mixed_rows, unfinished
from benchmarks.tables.paper import Column, Paper, PaperTable
from benchmarks.tables.run import Experiment, Run


def miniature_twins(paper: Paper, run: Run) -> list[Table]:
    """For each of the paper's tables, the results of the miniature benchmarks that mirror it.

    Two parts of one table that share their miniatures have one twin. A twin without rows is left
    out.
    """
    twins: dict[str, Table] = {}
    for table in paper.tables:
        columns = [
            Column(c.metric, paper.conditions[c.benchmark].miniature, c.key) for c in table.columns
        ]
        title = f"Miniature twin of {table.short_title}"
        rows = _twin_rows(table, paper, run, columns)
        if rows:
            name = f"miniature_{table.id}"
            twin = _plain_table(name, MINIATURE, title, columns, rows, run)
            twins[title] = draw_miniature(twin, run) if table.has_figure else twin
    return list(twins.values())


def own_tables(run: Run, shown: Iterable[Table]) -> list[Table]:
    """One table for each benchmark of which the shown tables lack a row; it has all its rows."""
    known = {
        (cell.benchmark, row.name)
        for table in shown
        for row in table.rows
        for cell in row.cells
        if cell.sources
    }
    tables = []
    for benchmark in sorted({name for name, _ in set(run.experiments) - known}):
        rows = sorted(row for name, row in run.experiments if name == benchmark)
        rows.sort(key=lambda row: row != "random")  # what the others are measured against
        metrics = run.experiments[benchmark, rows[0]].trials[0].metrics
        columns = [Column(key, benchmark, key) for key in metrics if not is_of_one_class(key)]
        kind, title = OWN, f"{benchmark}: no published numbers here"
        if benchmark.startswith("mini_"):
            kind, title = MINIATURE, f"Miniature: {benchmark}"
        tables.append(_plain_table(benchmark, kind, title, columns, rows, run))
    return tables


def is_of_one_class(key: str) -> bool:
    """Whether a metric, such as AP50-dog, is of a single class."""
    return "-" in key


def _twin_rows(table: PaperTable, paper: Paper, run: Run, columns: list[Column]) -> list[str]:
    """A main table's twin has every row of its benchmark but the ablations'; another's, its own.

    The figure's are pre-trained for other numbers of epochs than the paper's.
    """
    measured = {row for c in columns for name, row in run.experiments if name == c.benchmark}
    if table.has_figure:
        methods = "|".join({str(row.row).split("-")[0] for row in table.rows})
        found = [row for row in measured if re.fullmatch(rf"({methods})-MINI(-\d+ep)?", row)]
        return sorted(found, key=lambda row: [int(n) for n in re.findall(r"-(\d+)ep", row)])
    mine = [_miniature_row(row.row) for row in table.rows if row.row]
    if not table.is_main:
        return [row for row in mine if row in measured]
    ablations = {_miniature_row(r) for r in published_rows(paper, table.columns[0].benchmark)}
    extra = sorted(measured - set(mine) - ablations)
    return [row for row in dict.fromkeys([*mine, *extra]) if row in measured]


def _miniature_row(row: str) -> str:
    """densecl-CC-grid_5 → densecl-MINI-grid_5."""
    return re.sub("-(IN|CC)", "-MINI", row, count=1)


def _plain_table(
    name: str, kind: str, title: str, columns: list[Column], rows: list[str], run: Run
) -> Table:
    """Only this run's numbers, nothing compared."""
    sources = SourceList()
    lines, notes = [], []
    for row in rows:
        found = [run.experiments.get((column.benchmark, row)) for column in columns]
        cells = [_plain_cell(c, experiment, sources) for c, experiment in zip(columns, found)]
        lines.append(Row(row, row, cells))
        reasons = {cell.reason for cell in cells if cell.reason}
        notes += [f"{row}: {NOT_AVERAGED}: {reason}." for reason in sorted(reasons)]
    notes += [MINIATURE_NOTE] if kind == MINIATURE else []
    return Table(
        name=name,
        kind=kind,
        title=title,
        number=name,
        metrics=[column.metric for column in columns],
        rows=lines,
        sources=sources.sources,
        notes=[*notes, *mixed_rows(run, columns, lines), *unfinished(run, columns, lines)],
    )


def _plain_cell(column: Column, experiment: Experiment | None, sources: SourceList) -> Cell:
    cell = Cell(column.metric, column.benchmark, None, None)
    if experiment is None:
        return cell
    reason = why_not_one_row(experiment.trials) or ""
    return replace(
        cell,
        ours=experiment.summary(column.key),
        verdict=NOT_AVERAGED if reason else "",
        reason=reason,
        sources=(sources.add_experiment(experiment),),
    )
