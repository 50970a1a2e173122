"""Tables as Markdown, CSV and HTML."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks.tables.cells import PAPER, Cell, Row, Table
from benchmarks.tables.words import Word, lines, rounded_difference, source_text

_CSV_HEADER = [
    *("table", "pretraining", "row", "metric", "benchmark", "paper", "mean", "std", "n"),
    *("difference", "allowed", "verdict", "reason"),
    *("seeds", "engine", "weights_sha256", "config_sha256", "commit"),
]
_DIGITS = 6  # of the numbers in the CSV


def to_markdown(table: Table) -> str:
    """A heading, the table, its notes and the results behind it; readable as plain text."""
    heads = ["pre-training", *([""] if table.kind == PAPER else []), *table.metrics]
    rows = [heads, *(line for row in table.rows for line in _markdown_lines(table, row))]
    widths = [max(map(len, column)) for column in zip(*rows)]
    text = [
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths))} |" for row in rows
    ]
    text.insert(1, f"|{'|'.join('-' * (width + 2) for width in widths)}|")
    blocks = [f"## {table.title}", "\n".join(text)]
    if table.figure:
        blocks.append(f"![{table.title}]({table.name}.svg)")
    blocks.append("\n".join(f"- {_plain(note)}" for note in table.notes))
    if table.sources:
        blocks += ["Results behind the cells:", "\n".join(_markdown_sources(table))]
    return "\n\n".join(block for block in blocks if block) + "\n"


def to_csv(table: Table) -> str:
    """One line per cell, with everything that is known of it."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CSV_HEADER)
    writer.writerows(_csv_line(table, row, cell) for row in table.rows for cell in row.cells)
    return text.getvalue()


def to_html(table: Table) -> str:
    """A <section> without styles, to be put into a page; links are relative to the tables' folder.

    Classes: the table's kind; `verdict` and the verdict with hyphens, where a cell states it.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    template = environment.get_template("table.html.j2")
    return template.render(table=table, lines=lines, source_text=source_text)


def _markdown_lines(table: Table, row: Row) -> list[list[str]]:
    label = _plain(row.label).replace("|", "\\|")
    return [
        [
            label if number == 0 else "",
            *([line.head] if table.kind == PAPER else []),
            *(_markdown_word(word) for word in line.words),
        ]
        for number, line in enumerate(lines(table, row))
    ]


def _markdown_word(word: Word) -> str:
    return " ".join([word.text, *(f"[{source + 1}]" for source in word.sources)])


def _markdown_sources(table: Table) -> list[str]:
    return [
        f"{number}. {_plain(source.title)}: {_plain(source_text(source))}; "
        + ", ".join(f"[{words}](../{quote(path)})" for words, path in source.files)
        for number, source in enumerate(table.sources, start=1)
    ]


def _plain(text: str) -> str:
    """Text that Markdown does not take for HTML."""
    return text.replace("<", "&lt;")


def _csv_line(table: Table, row: Row, cell: Cell) -> list[object]:
    behind = [table.sources[index] for index in cell.sources]
    ours = cell.ours
    return [
        *(table.name, row.label, row.name, cell.metric, cell.benchmark, cell.paper),
        *((_rounded(ours.mean), _rounded(ours.std), ours.n) if ours else (None, None, None)),
        *(rounded_difference(cell), _rounded(cell.allowed), cell.verdict, cell.reason),
        _joined([" ".join(map(str, source.seeds)) for source in behind]),
        _joined([source.engine for source in behind]),
        _joined([source.weights_sha256 for source in behind]),
        _joined([source.config_sha256 for source in behind]),
        _joined([source.commit for source in behind]),
    ]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, _DIGITS)


def _joined(parts: Sequence[str | None]) -> str:
    """Of one source, or of the two that a difference has."""
    return "; ".join(part or "" for part in parts)
