"""What a table says in each of its cells, whatever the format."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.tables.cells import PAPER, Cell, Row, Source, Table
from benchmarks.tables.judge import MISSING, NOT_AVERAGED, NOT_JUDGED, OFF, REPRODUCED, UNPUBLISHED


@dataclass(frozen=True)
class Word:
    """One cell's part of a line."""

    text: str
    verdict: str = ""
    """The verdict that the text states, for its colour."""
    sources: Sequence[int] = ()
    """Indices of the table's sources, where the text is a number of ours."""


@dataclass(frozen=True)
class Line:
    """A row of a table takes one to three lines: the paper's numbers, ours, the differences."""

    head: str
    words: list[Word]


def lines(table: Table, row: Row) -> list[Line]:
    """The lines of one row that say something; a table that compares nothing has one per row."""
    ours = Line("ours", [_ours(cell) for cell in row.cells])
    if table.kind != PAPER:
        return [ours]
    paper = Line("paper", [_paper(cell) for cell in row.cells])
    difference = Line("difference", [_difference(cell) for cell in row.cells])
    rest = [line for line in (ours, difference) if any(word.text for word in line.words)]
    return [paper, *rest]


def ours_text(cell: Cell) -> str:
    """mean ± std (n); what is wrong where there is none."""
    if cell.ours is None:
        return cell.verdict if cell.verdict in (MISSING, NOT_AVERAGED) else ""
    spread = "" if cell.ours.std is None else f" ± {cell.ours.std:.2f}"
    return f"{cell.ours.mean:.2f}{spread} ({cell.ours.n})"


def rounded_difference(cell: Cell) -> float | None:
    """Ours minus the paper's, as printed; None where the two may not be compared."""
    if cell.ours is None or cell.paper is None:
        return None
    if cell.verdict not in (REPRODUCED, OFF, NOT_JUDGED):
        return None
    return round(cell.ours.mean - cell.paper, 2) + 0.0  # + 0.0: no -0.00


def source_text(source: Source) -> str:
    """What a result was made from and by; hashes shortened, the CSV has them whole."""
    parts = [source.engine, source.device]
    parts += [f"weights {source.weights_sha256}"] if source.weights_sha256 else []
    parts += [f"settings {source.config_sha256}", f"commit {source.commit or 'unknown'}"]
    whole = "; ".join(parts)
    return re.sub(r"[0-9a-f]{40,}", lambda digits: digits[0][:12], whole)


def _paper(cell: Cell) -> Word:
    if cell.paper is None:
        return Word(UNPUBLISHED, UNPUBLISHED)
    return Word(str(cell.paper))


def _ours(cell: Cell) -> Word:
    if cell.ours is None:
        return Word(ours_text(cell), cell.verdict)
    return Word(ours_text(cell), sources=cell.sources)


def _difference(cell: Cell) -> Word:
    difference = rounded_difference(cell)
    if difference is not None:
        signed = f"{difference:+.2f}".replace("-", "−")
        return Word(f"{signed} {cell.verdict}", cell.verdict)
    if cell.verdict in (MISSING, UNPUBLISHED):
        return Word("")
    return Word(cell.verdict, cell.verdict)
