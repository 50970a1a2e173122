"""Tables on a terminal: as many metrics side by side as fit, verdicts in colour."""

import math
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from benchmarks.tables.cells import PAPER, Table
from benchmarks.tables.judge import (
    MISSING,
    NOT_AVERAGED,
    NOT_COMPARABLE,
    NOT_JUDGED,
    OFF,
    REPRODUCED,
    UNPUBLISHED,
)
from benchmarks.tables.words import lines

_STYLES = {
    REPRODUCED: "green",
    OFF: "bold red",
    **dict.fromkeys((NOT_JUDGED, NOT_COMPARABLE, NOT_AVERAGED), "yellow"),
    **dict.fromkeys((MISSING, UNPUBLISHED), "dim"),
}
_WIDTH = 25  # columns of the terminal that a metric takes, its share of the labels included


def show(console: Console, table: Table) -> None:
    """Print the table and its notes."""
    console.print(Text(f"\n{table.title}", style="bold"))
    count = len(table.metrics)
    blocks = min(count, math.ceil(count * _WIDTH / console.width))
    for block in range(blocks):
        columns = range(block * count // blocks, (block + 1) * count // blocks)
        console.print(_block(table, columns))
    for note in table.notes:
        console.print(Padding(Text(note, style="dim"), (0, 0, 0, 1)))


def _block(table: Table, columns: Sequence[int]) -> RichTable:
    shown = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    shown.add_column("pre-training")
    if table.kind == PAPER:
        shown.add_column("")
    for column in columns:
        shown.add_column(table.metrics[column], justify="right")
    for row in table.rows:
        for number, line in enumerate(lines(table, row)):
            words = [line.words[column] for column in columns]
            shown.add_row(
                Text(row.label if number == 0 else ""),
                *([Text(line.head, style="dim")] if table.kind == PAPER else []),
                *(Text(word.text, style=_STYLES.get(word.verdict, "")) for word in words),
            )
    return shown
