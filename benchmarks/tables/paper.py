"""The published numbers of configs/paper_tables.json, and the conditions they were measured under.

A table there that has parts is compared with runs; the others are kept for reference.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.config import FOLDER, config_sha256, find_config, load_config

FILE = Path(__file__).parent.parent.parent / "configs" / "paper_tables.json"


@dataclass(frozen=True)
class Column:
    """A metric of a table, and where ours is: a benchmark and a key of its results' metrics."""

    metric: str
    benchmark: str
    key: str


@dataclass(frozen=True)
class PaperRow:
    """One line of a published table."""

    label: str
    """The paper's words."""
    row: str | None
    """Our name of it, METHOD-SOURCE[-SETTING]; None where it has none."""
    values: Mapping[str, float | None]
    """By metric; None where the number could not be found."""
    method: str | None = None
    epochs: int | None = None
    """How long the paper pre-trained."""
    status: str = "two_or_more_sources"
    """How well the numbers are established: a key of the file's status_values."""


@dataclass(frozen=True)
class Delta:
    """A published difference between two rows whose own numbers are not known."""

    label: str
    of: str
    minus: str
    values: Mapping[str, float | None]


@dataclass(frozen=True)
class PaperTable:
    """A published table, or one part of it: one of our ways to run it."""

    id: str
    """The whole table's; `name` is the part's."""
    name: str
    short_title: str
    """Without the paper and the part."""
    title: str
    number: str
    """Table 1, Figure, ..."""
    columns: list[Column]
    rows: list[PaperRow]
    deltas: list[Delta]
    notes: list[str]
    is_main: bool
    """Whether this is its benchmark's first table, which also lists rows that the paper lacks."""
    has_figure: bool
    """Whether it is also drawn over the epochs of pre-training."""


@dataclass(frozen=True)
class Conditions:
    """What a benchmark's results must agree in with the published ones, and their noise."""

    schedule: dict[str, int]
    """iterations and batch; empty where no network is trained."""
    trained_on: list[str]
    noise: Mapping[str, float]
    """Published standard deviation of one trial, by key; nothing where none is published."""
    noise_source: str | None
    miniature: str
    """The benchmark of the generated data that mirrors it."""
    config_sha256: str | None
    """Of the configuration file as it is now; None where there is no such file."""


@dataclass(frozen=True)
class Paper:
    """Everything published that a run is held against."""

    tables: list[PaperTable]
    times: PaperTable
    """Seconds per epoch of pre-training; its rows are methods and its keys the images."""
    times_device: str
    conditions: Mapping[str, Conditions]
    pretraining: Mapping[str, Mapping[str, Any]]
    """By our row: settings of pre-training (a.b: value) that its weights must have."""


def read_paper(file: Path = FILE) -> Paper:
    """The file's content, in its order."""
    content = json.loads(file.read_text(encoding="utf-8"))
    tables: list[PaperTable] = []
    for table in content["tables"]:
        for part in table.get("parts", []):
            tables.append(_table(table, part, {c.benchmark for t in tables for c in t.columns}))
    benchmarks, sources = content["benchmarks"], content["sources"]
    return Paper(
        tables=[table for table in tables if not _is_of_times(table)],
        times=next(table for table in tables if _is_of_times(table)),
        times_device=next(
            table["protocol"]["device"]
            for table in content["tables"]
            if "device" in (table["protocol"] or {})
        ),
        conditions={name: _conditions(name, facts, sources) for name, facts in benchmarks.items()},
        pretraining=content["pretraining"],
    )


def _table(table: dict[str, Any], part: dict[str, Any], seen: set[str]) -> PaperTable:
    columns = [Column(metric, *key.split(":")) for metric, key in part["columns"].items()]
    benchmarks = {column.benchmark for column in columns}
    number = table["paper_table"].split(" (")[0]
    return PaperTable(
        id=table["id"],
        name="_".join([table["id"], *([part["name"]] if "name" in part else [])]),
        short_title=f"{number}: {table['title']}",
        title=f"{number} of {table['paper']}: {table['title']}"
        + (f", {part['title']}" if "title" in part else ""),
        number=f"{number} ({part['name']})" if "name" in part else number,
        columns=columns,
        rows=[_row(row) for row in table["rows"]],
        deltas=[
            Delta(f"{d['of']} − {d['minus']}", d["of_row"], d["minus_row"], d["values"])
            for d in table.get("deltas", [])
        ],
        notes=table.get("notes", []),
        is_main=len(benchmarks) == 1 and not benchmarks & seen,
        has_figure=table.get("figure", False),
    )


def _row(row: dict[str, Any]) -> PaperRow:
    return PaperRow(
        label=row.get("label", row["pretrain"]),
        row=row["row"],
        values=row["values"],
        method=row["method"],
        epochs=row["epochs"],
        status=row["status"],
    )


def _is_of_times(table: PaperTable) -> bool:
    return all(column.benchmark == "pretrain" for column in table.columns)


def _conditions(name: str, facts: dict[str, Any], sources: dict[str, str]) -> Conditions:
    exists = (FOLDER / f"{name}.yaml").is_file()
    return Conditions(
        schedule=facts["schedule"],
        trained_on=facts["trained_on"],
        noise=facts["noise"],
        noise_source=sources.get(facts["noise_source"]),
        miniature=facts["miniature"],
        config_sha256=config_sha256(load_config(find_config(name))) if exists else None,
    )
