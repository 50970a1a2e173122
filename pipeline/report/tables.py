"""The tables of a run, as `python -m benchmarks.tables` wrote them."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from pipeline.report.markup import moved_up

FOLDER, INDEX = "tables", "tables.json"


@dataclass(frozen=True)
class Table:
    """One entry of tables.json."""

    title: str
    is_measured: bool  # whether anything of this run is in it
    html: Markup  # a <section> with a <table>
    files: list[str]  # the same in other formats, below the run folder


def read_tables(run: Path, problems: list[str]) -> list[Table]:
    """The tables in their order; what cannot be read is added to `problems`."""
    folder = run / FOLDER
    try:
        entries = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        return [_table(folder, entry, problems) for entry in entries]
    except FileNotFoundError:
        problems.append(f"{FOLDER}/{INDEX}: missing: run python -m benchmarks.tables {run}")
    except (OSError, ValueError, TypeError, KeyError):
        problems.append(f"{FOLDER}/{INDEX}: damaged")
    return []


def verdicts(tables: list[Table]) -> dict[str, int]:
    """How many cells have each verdict, in the order in which they first appear."""
    found: dict[str, int] = {}
    for table in tables:
        for verdict in re.findall(r'class="verdict ([\w-]+)"', table.html):
            words = verdict.replace("-", " ")
            found[words] = found.get(words, 0) + 1
    return found


def _table(folder: Path, entry: dict, problems: list[str]) -> Table:
    file = folder / f"{entry['name']}.html"
    try:
        html = file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        problems.append(f"{FOLDER}/{file.name}: missing or damaged")
        html = ""
    names = [Path(name).name for name in entry["files"]]
    others = [f"{FOLDER}/{name}" for name in names if name != file.name]
    return Table(
        str(entry["title"]), bool(entry["measured"]), Markup(moved_up(FOLDER, html)), others
    )
