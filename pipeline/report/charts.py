"""Curves as inline SVG: text stays text, and the colours are the page's own, light or dark."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from pipeline.report.read import Points

MOST_POINTS = 200  # that a curve is drawn with
COLOURS = 6  # that style.css defines as --series-1 and so on; --series-0 is grey

# Stand-ins, which become the page's variables once matplotlib has drawn with them.
_INK, _MUTED, _RULE = "#010203", "#040506", "#070809"
_SERIES = [f"#0a0b{number:02x}" for number in range(COLOURS + 1)]
_VARIABLES = {_INK: "currentColor", _MUTED: "var(--muted)", _RULE: "var(--rule)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(_SERIES)
}
_MARKERS = "xosD^vP"
_STYLE: Any = {
    "svg.fonttype": "none",  # text as text
    "svg.hashsalt": "report",  # the same page from the same files
    "text.parse_math": False,
    "font.size": 8.5,
    "text.color": _INK,
    "axes.labelcolor": _MUTED,
    "axes.edgecolor": _MUTED,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _RULE,
    "grid.linewidth": 0.6,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.major.size": 2.5,
    "ytick.major.size": 0,
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-4, 5),
}


@dataclass(frozen=True)
class Stretch:
    """Some neighbouring points of a curve as one."""

    step: float
    low: float
    mean: float
    high: float


@dataclass(frozen=True)
class Line:
    """One curve of a chart."""

    label: str
    points: Points
    colour: int  # 0 (grey) to COLOURS
    dashed: bool = False


def chart(lines: Sequence[Line], x_label: str, y_label: str, title: str, marked: bool) -> Markup:
    """The SVG element of a chart of `lines`; `marked` shows each point, for curves of few.

    Its text alternative tells where each line begins and ends.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.0, 2.5), layout="constrained")
        axes = figure.subplots()
        for line in lines:
            stretches = in_stretches(line.points)
            steps = [stretch.step for stretch in stretches]
            if len(stretches) < len(line.points):
                lows, highs = [s.low for s in stretches], [s.high for s in stretches]
                axes.fill_between(steps, lows, highs, color=_SERIES[line.colour], alpha=0.2, lw=0)
            axes.plot(
                steps,
                [stretch.mean for stretch in stretches],
                color=_SERIES[line.colour],
                linestyle=(0, (3.5, 1.5)) if line.dashed else "-",
                linewidth=1.3,
                marker=_MARKERS[line.colour] if marked else "",
                markersize=4.5,
            )
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.margins(x=0.02)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 20k
        axes.yaxis.set_major_locator(MaxNLocator(5))
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    ends = "; ".join(
        f"{line.label} from {line.points[0][1]:.4g} to {line.points[-1][1]:.4g}" for line in lines
    )
    return _inline(buffer.getvalue(), f"{title}, {y_label} over {x_label}: {ends}")


def in_stretches(points: Points, most: int = MOST_POINTS) -> list[Stretch]:
    """The points in at most `most` stretches of equal numbers, each at its mean step."""
    count = min(most, len(points))
    bounds = [len(points) * number // count for number in range(count + 1)]
    stretches = []
    for start, end in pairwise(bounds):
        steps, values = zip(*points[start:end])
        stretches.append(Stretch(fmean(steps), min(values), fmean(values), max(values)))
    return stretches


def _inline(svg: str, description: str) -> Markup:
    """matplotlib's file as an element of the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bd="[^"]*"', lambda path: _rounded(path[0]), svg)
    svg = re.sub(r"font-family: [^;\"]*; ", "", svg)  # the page's
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    view = re.search(r'viewBox="[^"]*"', svg)
    start = f'<svg {view.group() if view else ""} role="img" aria-label="{escape(description)}">'
    return Markup(re.sub(r"<svg[^>]*>", lambda _: start, svg, count=1))


def _rounded(path: str) -> str:
    return re.sub(r"(\d\.\d\d)\d+", r"\1", path)  # a hundredth of a point is fine enough
