"""The schedule figure: a metric over the epochs of pre-training, as SVG."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from benchmarks.tables.cells import Cell, Table
from benchmarks.tables.judge import NOT_COMPARABLE
from benchmarks.tables.paper import PaperTable
from benchmarks.tables.run import Run

# Okabe and Ito's colours: distinct for colour-blind readers, on white and on black.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
_INK = "#123456"  # stands for the colour of the text around the figure
_STYLE = {
    "font.family": "sans-serif",
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "text.color"), _INK),
    **dict.fromkeys(("xtick.color", "ytick.color", "grid.color"), _INK),
}


@dataclass(frozen=True)
class Point:
    """One measured or published number."""

    epochs: int
    value: float
    error: float = 0.0
    """Half the length of the error bar."""


@dataclass(frozen=True)
class Curve:
    """The numbers of one method, by epochs."""

    label: str
    method: str
    """Curves of one method have one colour."""
    points: Sequence[Point]
    is_paper: bool


def draw_paper(published: PaperTable, table: Table) -> Table:
    """The table with the paper's curves, and ours where there is a comparable number."""
    curves = []
    for method in dict.fromkeys(row.method or "" for row in published.rows):
        pairs = [(r, row.cells[0]) for r, row in zip(published.rows, table.rows)]
        pairs = [(row, cell) for row, cell in pairs if row.method == method and row.epochs]
        paper = [Point(row.epochs or 0, cell.paper) for row, cell in pairs if cell.paper]
        ours = [
            _point(row.epochs or 0, cell)
            for row, cell in pairs
            if cell.ours is not None and cell.verdict != NOT_COMPARABLE
        ]
        curves.append(Curve(f"{method}, paper", method, paper, is_paper=True))
        curves.append(Curve(f"{method}, ours", method, ours, is_paper=False))
    return _with_figure(table, [curve for curve in curves if curve.points])


def draw_miniature(table: Table, run: Run) -> Table:
    """The table with a figure of its numbers, where it is known how long each was pre-trained."""
    curves: dict[str, list[Point]] = {}
    for row in table.rows:
        cell = row.cells[0]
        settings = run.experiments[cell.benchmark, row.label].pretraining or {}
        if cell.ours is not None and "optim.epochs" in settings:
            method = row.label.split("-")[0]
            curves.setdefault(method, []).append(_point(settings["optim.epochs"], cell))
    return _with_figure(table, [Curve(m, m, points, False) for m, points in curves.items()])


def _with_figure(table: Table, curves: Sequence[Curve]) -> Table:
    figure = draw(curves, table.metrics[0], table.name) if curves else None
    return replace(table, figure=figure)


def _point(epochs: int, cell: Cell) -> Point:
    assert cell.ours is not None
    return Point(epochs, cell.ours.mean, 2 * cell.ours.standard_error)


def draw(curves: Sequence[Curve], metric: str, name: str) -> str:
    """An <svg> element, the same for the same numbers; `name` keeps its ids apart from others'."""
    style: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": name, **_STYLE}
    with mpl.rc_context(style):
        figure = Figure(figsize=(6, 3.6), layout="constrained")
        axes = figure.add_subplot()
        methods = list(dict.fromkeys(curve.method for curve in curves))
        for curve in curves:
            _draw_curve(axes, curve, _COLOURS[methods.index(curve.method) % len(_COLOURS)])
        epochs = sorted({point.epochs for curve in curves for point in curve.points})
        axes.set_xscale("log")
        axes.set_xticks(epochs, map(str, epochs))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set(xlabel="epochs of pre-training", ylabel=f"{metric}, %")
        axes.legend(frameon=False)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return _for_a_page(text.getvalue(), name)


def _draw_curve(axes: Axes, curve: Curve, colour: str) -> None:
    points = sorted(curve.points, key=lambda point: point.epochs)
    errors = [point.error for point in points]
    axes.errorbar(
        [point.epochs for point in points],
        [point.value for point in points],
        yerr=errors if any(errors) else None,
        label=curve.label,
        color=colour,
        linestyle="--" if curve.is_paper else "-",
        marker="o",
        markerfacecolor="none" if curve.is_paper else colour,
        capsize=3,
    )


def _for_a_page(svg: str, name: str) -> str:
    """Only the element: in the page's text colour, with ids of its own, no style for the page."""
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"font-family: [^;\"]+", "font-family: sans-serif", svg)
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    style = re.search(r"<defs>\s*<style[^>]*>\*\{(.*?)\}</style>\s*</defs>\s*", svg)
    assert style is not None
    svg = svg.replace(style[0], "")
    return svg.replace("<svg", f'<svg role="img" style="{style[1]}"', 1)
