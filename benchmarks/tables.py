"""python -m benchmarks.tables runs/NAME [--check]

Prints the paper's tables with this run's numbers beside them, and writes them as Markdown and CSV:

    runs/NAME/benchmarks/BENCHMARK/ROW/seed_N/results.json   read where DONE is beside it
    runs/NAME/tables/*.md *.csv                              written

Miniature benchmarks have other data and a smaller network: they get a table of their own.
"""

import argparse
import csv
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from benchmarks.paper import (
    RULE,
    PaperRow,
    PaperTable,
    Summary,
    is_reproduced,
    paper_tables,
    summarise,
    why_not_comparable,
    why_not_one_row,
)
from benchmarks.results import Results, read_results
from common.errors import UserError, run_command
from common.files import write_text

REPRODUCED, OFF, MISSING, UNPUBLISHED = "reproduced", "off", "missing", "not published"
HEADER = ["pre-training", "metric", "paper", "ours: mean ± std (n)", "difference", "verdict"]


@dataclass(frozen=True)
class Table:
    """What is printed and written: `name` is the file's, the last column is the verdict."""

    name: str
    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str]


def main() -> None:
    """Print and write the tables; with --check, exit 1 unless the run reproduces the paper."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tables",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="runs/NAME")
    parser.add_argument(
        "--check",
        action="store_true",
        help="exit 1 unless there are comparable cells and every one of them is reproduced",
    )
    arguments = parser.parse_args()
    tables = make_tables(arguments.run)
    for table in tables:
        _show(table)
        write_text(arguments.run / "tables" / f"{table.name}.md", to_markdown(table))
        write_text(arguments.run / "tables" / f"{table.name}.csv", to_csv(table))
    if arguments.check and (failures := check(tables)):
        sys.exit("\n".join(["check failed:", *failures]))


def make_tables(run: Path) -> list[Table]:
    """The paper's tables with the run's cells, then one table per other benchmark of the run.

    Raises UserError when the folder holds no benchmark or a results file was changed.
    """
    trials, unfinished = read_trials(run)
    published = paper_tables()
    tables = [_compare(table, trials, run / "weights") for table in published]
    compared = {table.benchmark for table in published}
    for benchmark in sorted({trial.benchmark for trial in trials} - compared):
        tables.append(_own_table(benchmark, [t for t in trials if t.benchmark == benchmark]))
    if unfinished:
        tables[-1].notes.append(f"unfinished, not counted: {', '.join(unfinished)}")
    return tables


def read_trials(run: Path) -> tuple[list[Results], list[str]]:
    """Results of the finished trials, and the folders of the unfinished ones."""
    root = run / "benchmarks"
    folders = sorted(path for path in root.glob("*/*/seed_*") if path.is_dir())
    if not folders:
        raise UserError(f"{run}: no benchmark results (expected {root}/BENCHMARK/ROW/seed_N)")
    finished = [folder for folder in folders if (folder / "DONE").exists()]
    trials = [read_results(folder / "results.json") for folder in finished]
    seen: dict[tuple[str, str, int], Path] = {}
    for folder, trial in zip(finished, trials):
        first = seen.setdefault((trial.benchmark, trial.row, trial.seed), folder)
        if first != folder:
            raise UserError(f"{folder}: the same trial as {first}: remove one of them")
    return trials, [str(f.relative_to(root)) for f in folders if f not in finished]


def check(tables: Sequence[Table]) -> list[str]:
    """What stands against the claim that the run reproduces the paper; empty: nothing."""
    cells = [row for table in tables if table.header == HEADER for row in table.rows]
    failures = [
        f"{row[0]} {row[1]}: ours {row[3]}, paper {row[2]}" for row in cells if row[-1] == OFF
    ]
    if not failures and not any(row[-1] == REPRODUCED for row in cells):
        return ["nothing in this run is comparable with the paper"]
    return failures


def to_markdown(table: Table) -> str:
    """A heading, the table and its notes, readable as plain text."""
    lines = [table.header, *table.rows]
    widths = [max(map(len, column)) for column in zip(*lines)]
    text = [_markdown_row(line, widths) for line in lines]
    text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join([f"## {table.title}", "", *text, "", *table.notes]) + "\n"


def to_csv(table: Table) -> str:
    """Header and rows."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([table.header, *table.rows])
    return text.getvalue()


def _compare(table: PaperTable, trials: Sequence[Results], weights: Path) -> Table:
    ours: dict[str, list[Results]] = {}
    for trial in trials:
        if trial.benchmark == table.benchmark:
            ours.setdefault(trial.row, []).append(trial)
    published = {row.row for row in table.rows}
    rows = [*table.rows, *(PaperRow(n, n, None, {}) for n in sorted(ours) if n not in published)]
    lines = []
    for row in rows:
        found = ours.get(row.row or "", [])
        reason = why_not_comparable(table, row, found, weights) if found else None
        lines += [_cell(table, row, metric, found, reason) for metric in table.metrics]
    noise = ", ".join(f"{metric} {table.noise[metric]}" for metric in table.metrics)
    return Table(table.id, table.title, HEADER, lines, [f"{RULE}; noise: {noise}"])


def _cell(
    table: PaperTable, row: PaperRow, metric: str, trials: Sequence[Results], reason: str | None
) -> list[str]:
    paper, ours = row.values.get(metric), _summary(trials, metric)
    difference = ""
    if paper is None:
        verdict = UNPUBLISHED
    elif ours is None and reason is None:
        verdict = MISSING
    elif ours is None or reason is not None:
        verdict = f"not comparable: {reason}"
    else:
        difference = f"{round(ours.mean - paper, 2) + 0.0:+.2f}"  # + 0.0: no -0.00
        verdict = REPRODUCED if is_reproduced(ours, paper, table.noise[metric]) else OFF
    shown = "" if paper is None else f"{paper:.1f}"
    return [row.label, metric, shown, _format(ours), difference, verdict]


def _own_table(benchmark: str, trials: Sequence[Results]) -> Table:
    title = f"{benchmark} (no published table)"
    if benchmark.startswith("mini_"):
        title = f"Miniature (not comparable with the paper): {benchmark}"
    metrics = [metric for metric in trials[0].metrics if "-" not in metric]  # no single class's
    lines, notes = [], []
    for name in sorted({trial.row for trial in trials}):
        found = [trial for trial in trials if trial.row == name]
        lines.append([name, *(_format(_summary(found, metric)) for metric in metrics)])
        if (mixed := why_not_one_row(found)) is not None:
            notes.append(f"{name}: not averaged: {mixed}")
    return Table(benchmark, title, ["pre-training", *metrics], lines, notes)


def _summary(trials: Sequence[Results], metric: str) -> Summary | None:
    """None without trials, or with trials that may not be averaged, or that lack the metric."""
    if not trials or why_not_one_row(trials) or any(metric not in t.metrics for t in trials):
        return None
    return summarise([trial.metrics[metric] for trial in trials])


def _format(ours: Summary | None) -> str:
    if ours is None:
        return ""
    spread = "" if ours.std is None else f" ± {ours.std:.2f}"
    return f"{ours.mean:.2f}{spread} ({ours.n})"


def _markdown_row(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (cell.ljust(width) for cell, width in zip(cells, widths))
    return f"| {' | '.join(padded)} |"


def _show(table: Table) -> None:
    console = Console()
    if not console.is_terminal:
        print(to_markdown(table))
        return
    shown = RichTable(*table.header, title=table.title, caption="\n".join(table.notes))
    for row in table.rows:
        shown.add_row(*map(escape, row))
    console.print(shown)


if __name__ == "__main__":
    run_command(main)
