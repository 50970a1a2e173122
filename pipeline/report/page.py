"""The page: a run's records as what report.html.j2 shows."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline import graph
from pipeline.report.charts import COLOURS, MOST_POINTS
from pipeline.report.contents import benchmarks_of, pretraining_figures
from pipeline.report.markup import with_prefix
from pipeline.report.pictures import correspondence_of
from pipeline.report.read import Run, Tree
from pipeline.report.tables import read_tables, verdicts
from pipeline.summary import duration

RANDOM = "random"


def render(run: Run) -> str:
    """The page's HTML. Tables and pictures that cannot be read are added to `run.problems`."""
    parts = itertools.count(1)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: "–" if value is None else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "apart": lambda markup: with_prefix(f"part{next(parts)}-", markup),
        "duration": duration,
        "flat": flat,
    }
    environment.globals["at"] = at
    colours = _colours(run)
    tables = read_tables(run.folder, run.problems)
    benchmarks = benchmarks_of(run, colours)
    not_done = [name for name, record in run.stages.items() if record.state != graph.DONE]
    return environment.get_template("report.html.j2").render(
        run=run,
        name=run.folder.resolve().name,
        tables=tables,
        facts=list(_facts(run, verdicts([table for table in tables if table.is_measured]))),
        colours=colours,
        pretraining_figures=pretraining_figures(run.pretrainings, colours),
        benchmarks=benchmarks,
        correspondence=correspondence_of(run.folder, run.problems),
        most_points=MOST_POINTS,
        finished=[trial for trial in run.trials if trial.results],
        not_done=not_done,
        stages=sorted(run.stages.items(), key=lambda item: item[0] not in not_done),
        style=Markup((Path(__file__).parent / "style.css").read_text(encoding="utf-8")),
    )


def flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """("a.b", "value") of each value of nested mappings; lists in one line."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            listed = isinstance(value, list) and all(isinstance(item, str) for item in value)
            yield f"{prefix}{name}", "; ".join(value) if listed else str(value)


def at(tree: Tree, path: str) -> Any:
    """The value under a dotted path, None where there is none."""
    value: Any = tree
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _facts(run: Run, verdicts: dict[str, int]) -> Iterator[tuple[str, str]]:
    """What the top of the page shows at a glance: label and value."""
    finished = [trial.results for trial in run.trials if trial.results]
    states = [record.state for record in run.stages.values()]
    yield "stages done", f"{states.count(graph.DONE)} of {len(states)}"
    yield "trials finished", f"{len(finished)} of {len(run.trials)}"
    yield "time", duration(sum(record.seconds for record in run.stages.values()))
    for label, key in (("engine", "engine_version"), ("device", "device")):
        found = dict.fromkeys(str(at(results, key)) for results in finished)
        if found:
            yield label, ", ".join(found)
    for verdict, count in verdicts.items():
        yield f"cells {verdict}", str(count)


def _colours(run: Run) -> dict[str, int]:
    """A colour for each row, the same all over the page; 0, grey, is random initialisation."""
    names = [*(p.name for p in run.pretrainings), *(trial.row for trial in run.trials)]
    rows = [name for name in dict.fromkeys(names) if name != RANDOM]
    return {RANDOM: 0} | {row: 1 + number % COLOURS for number, row in enumerate(rows)}
