"""A run → its tables, in the order in which they are shown; and what they prove."""

from collections.abc import Sequence

from benchmarks.tables.cells import Cell, Row, Table
from benchmarks.tables.compare import compare
from benchmarks.tables.figure import draw_paper
from benchmarks.tables.judge import OFF, REPRODUCED
from benchmarks.tables.others import miniature_twins, own_tables
from benchmarks.tables.paper import Paper
from benchmarks.tables.run import Run
from benchmarks.tables.timing import Timing, compare_times, miniature_times
from benchmarks.tables.words import ours_text


def make_tables(paper: Paper, run: Run, timings: list[Timing]) -> list[Table]:
    """The paper's tables, their miniature twins, others; those without a result of the run last."""
    papers = []
    for published in paper.tables:
        table = compare(published, paper, run)
        papers.append(draw_paper(published, table) if published.has_figure else table)
    papers.append(compare_times(paper, timings))
    twins = [*miniature_twins(paper, run), *miniature_times(paper, timings)]
    tables = [*papers, *twins, *own_tables(run, [*papers, *twins])]
    return sorted(tables, key=lambda table: not table.is_measured)


def check(tables: Sequence[Table]) -> list[str]:
    """What stands against the claim that the run reproduces the paper; empty: nothing.

    Where the paper's schedule is not known and several are tried, each in a part of the table, one
    of them has to reproduce a number.
    """
    cells = [(table, row, cell) for table in tables for row in table.rows for cell in row.cells]
    reproduced = {
        _published_number(table, row, cell)
        for table, row, cell in cells
        if cell.verdict == REPRODUCED
    }
    if not reproduced and not any(cell.verdict == OFF for _, _, cell in cells):
        return ["nothing in this run is comparable with the paper"]
    return [
        f"{table.number}, {row.label}, {cell.metric}: ours {ours_text(cell)}, paper {cell.paper}"
        for table, row, cell in cells
        if cell.verdict == OFF and _published_number(table, row, cell) not in reproduced
    ]


def _published_number(table: Table, row: Row, cell: Cell) -> tuple[str, str, str]:
    """The same for all parts of a table: Table 3 (90k), Table 3 (9k)."""
    return table.number.partition(" (")[0], row.label, cell.metric
