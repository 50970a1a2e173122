"""python -m benchmarks.tables runs/NAME [--check]

Prints the paper's tables with this run's numbers, and writes every table:

    runs/NAME/benchmarks/BENCHMARK/ROW/seed_N/   results.json, read where DONE is beside it
    runs/NAME/pretrain/ROW/                      the time per epoch
    runs/NAME/tables/NAME.md .csv .html .svg     written; .html are parts of a page
    runs/NAME/tables/tables.json                 the tables in their order

Miniature benchmarks have other data and a smaller network: they fill tables of their own.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.tables.cells import Table
from benchmarks.tables.formats import to_csv, to_html, to_markdown
from benchmarks.tables.make import check, make_tables
from benchmarks.tables.paper import read_paper
from benchmarks.tables.run import read_run
from benchmarks.tables.terminal import show
from benchmarks.tables.timing import read_timings
from common.errors import run_command
from common.files import write_json, write_text

INDEX = "tables.json"


def main() -> None:
    """Print and write the tables; with --check, exit 1 unless the run reproduces the paper."""
    arguments = parse_arguments()
    run = read_run(arguments.run)
    tables = make_tables(read_paper(), run, read_timings(arguments.run))
    folder = arguments.run / "tables"
    write_tables(tables, folder)
    print_tables(tables)
    if empty := [table.number for table in tables if not table.is_measured]:
        print(f"Nothing in this run for {', '.join(empty)}; the paper's numbers: {folder}")
    if run.unfinished:
        print(f"Unfinished, not counted: {', '.join(run.unfinished)}")
    if arguments.check and (failures := check(tables)):
        sys.exit("\n".join(["check failed:", *failures]))


def parse_arguments() -> argparse.Namespace:
    """The command line."""
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
    return parser.parse_args()


def print_tables(tables: Sequence[Table]) -> None:
    """Those that the run has something of; as Markdown where nobody watches."""
    console = Console()
    for table in tables:
        if table.is_measured and console.is_terminal:
            show(console, table)
        elif table.is_measured:
            print(to_markdown(table))


def write_tables(tables: Sequence[Table], folder: Path) -> None:
    """Every format of every table, and the index; removes what only an earlier index lists."""
    earlier, files = _files_of(folder / INDEX), {}
    for table in tables:
        texts = {"md": to_markdown(table), "csv": to_csv(table), "html": to_html(table)}
        texts |= {"svg": table.figure} if table.figure else {}
        for ending, text in texts.items():
            write_text(folder / f"{table.name}.{ending}", text)
        files[table.name] = [f"{table.name}.{ending}" for ending in texts]
    entries = [
        {
            "name": table.name,
            "title": table.title,
            "kind": table.kind,
            "measured": table.is_measured,
            "files": files[table.name],
        }
        for table in tables
    ]
    write_json(folder / INDEX, entries)
    for name in earlier.difference(*files.values()):
        (folder / name).unlink(missing_ok=True)


def _files_of(index: Path) -> set[str]:
    try:
        return {
            Path(name).name for entry in json.loads(index.read_text()) for name in entry["files"]
        }
    except (OSError, ValueError, KeyError, TypeError):
        return set()


if __name__ == "__main__":
    run_command(main)
