"""The pictures of a comparison, as SVGs with text kept as text: small, so that a phone shows them legibly.

Methods are numbers in them, as in the report's tables. The only file of the comparison that imports matplotlib.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Line", "Point", "colour", "forest", "lines", "scatter"]

_COLOURS = {"frozen": "#0072b2", "tuned": "#b34700", "levi": "#00795a", "part": "#8a5a83"}
"""By family; readable on white, and apart for the colour-blind (after Okabe and Ito)."""
_LINES = ("#0072b2", "#b34700", "#00795a", "#8a5a83", "#4c4c4c")
_STROKES = ("-", "--", "-.", ":", (0, (1, 1)))
_WIDTH, _HEIGHT = 4.6, 4.0  # inches; a page of 350 pixels shows it at its own size
_ROW = 0.21  # inches of a method in a list
_LABEL = 13.0  # points that a number takes up


@dataclass(frozen=True, kw_only=True)
class Point:
    """A method in a picture.

    Attributes:
        number: as in the tables.
        colour: of its family.
        x: where it is.
        y: where it is.
        x_interval: low and high; None for none.
        y_interval: likewise.
    """

    number: int
    colour: str
    x: float
    y: float
    x_interval: tuple[float, float] | None = None
    y_interval: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Line:
    """A series in a picture; ``level`` is drawn across it."""

    title: str
    x: Sequence[float]
    y: Sequence[float]
    level: float | None = None


def colour(family: str) -> str:
    """Of a family of methods."""
    return _COLOURS[family]


def scatter(
    points: Sequence[Point],
    *,
    title: str,
    x: str,
    y: str,
    logarithmic: bool = False,
    front: Sequence[int] = (),
    diagonal: bool = False,
) -> str:
    """Methods as numbered points with their intervals.

    Args:
        points: one a method.
        title: above.
        x: what is to the right.
        y: what is upwards.
        logarithmic: of the costs to the right.
        front: numbers of those on the Pareto front, cheapest first, which a line joins.
        diagonal: whether a line shows where both are equal.
    """
    figure, axes = _axes(title, x, y)
    if logarithmic:
        axes.set_xscale("log")
    for limit, ends in (
        (axes.set_xlim, [end for p in points for end in (p.x, *(p.x_interval or ()))]),
        (axes.set_ylim, [end for p in points for end in (p.y, *(p.y_interval or ()))]),
    ):
        if max(ends) - min(ends) <= 1e-9 * abs(max(ends)):  # one method, or all alike: no range to find
            room = 0.5 * abs(ends[0]) or 1.0
            limit(ends[0] - room, ends[0] + room)
    for point in points:
        axes.errorbar(
            point.x,
            point.y,
            xerr=_error(point.x, point.x_interval),
            yerr=_error(point.y, point.y_interval),
            fmt="o",
            markersize=4.5,
            color=point.colour,
            ecolor=f"{point.colour}55",
            elinewidth=1,
        )
    if front:
        on = [next(point for point in points if point.number == number) for number in front]
        axes.step([p.x for p in on], [p.y for p in on], where="post", color="#999", linewidth=1.2, zorder=0)
    axes.margins(0.16)
    if diagonal:
        axes.autoscale(enable=False)
        axes.axline((0, 0), slope=1, color="#bbb", linewidth=1, linestyle=":", zorder=0)
    figure.draw_without_rendering()
    _number(axes, points)
    return _svg(figure, f"{title} {x} {y}")


def forest(points: Sequence[Point], *, title: str, x: str, beside: float | None) -> str:
    """A list of methods, each with its value and interval to the right.

    Args:
        points: one a method; ``x`` and ``x_interval`` are drawn.
        title: above.
        x: what is to the right.
        beside: a value that all are held against; None for none.
    """
    figure, axes = _axes(title, x, "", height=1.1 + _ROW * len(points))
    for row, point in enumerate(points):
        axes.errorbar(
            point.x, row, xerr=_error(point.x, point.x_interval), fmt="o", markersize=5, color=point.colour,
            elinewidth=1.6,
        )  # fmt: skip
    axes.set_yticks(range(len(points)), [str(point.number) for point in points])
    for label, point in zip(axes.get_yticklabels(), points, strict=True):
        label.set(color=point.colour, fontweight="bold", fontsize=9.5)
    axes.set_ylim(len(points) - 0.4, -0.6)
    if beside is not None:
        axes.axvline(beside, color="#999", linewidth=1, linestyle=":", zorder=0)
    return _svg(figure, f"{title} {x}")


def lines(series: Sequence[Line], *, title: str, x: str, y: str, ticks: Mapping[float, str] | None = None) -> str:
    """Series as lines, named in a legend.

    Args:
        series: what is drawn.
        title: above.
        x: what is to the right.
        y: what is upwards.
        ticks: places to the right that have names.
    """
    figure, axes = _axes(title, x, y)
    for n, one in enumerate(series):
        style = _STROKES[n % len(_STROKES)]
        axes.plot(
            one.x, one.y, color=_LINES[n % len(_LINES)], linestyle=style, marker="o" if ticks else None,
            markersize=4, linewidth=1.6, label=one.title,
        )  # fmt: skip
        if one.level is not None:
            axes.axhline(one.level, color=_LINES[n % len(_LINES)], linewidth=0.9, linestyle="--", alpha=0.7)
    if ticks:
        axes.set_xticks(list(ticks), list(ticks.values()))
        axes.margins(x=0.12)
    axes.margins(y=0.1)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return _svg(figure, f"{title} {x} {y}")


def _axes(title: str, x: str, y: str, *, height: float = _HEIGHT) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=10.5, loc="left")
    axes.set_xlabel(x, fontsize=10)
    axes.set_ylabel(y, fontsize=10)
    axes.tick_params(labelsize=9)
    axes.grid(visible=True, color="#e3e3e3", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _error(value: float, interval: tuple[float, float] | None) -> list[list[float]] | None:
    return None if interval is None else [[max(0.0, value - interval[0])], [max(0.0, interval[1] - value)]]


def _number(axes: Any, points: Sequence[Point]) -> None:
    """Write each number near its point, away from other points and numbers."""
    scale = axes.figure.dpi / 72
    places = [np.asarray(axes.transData.transform((point.x, point.y))) / scale for point in points]
    taken: list[Any] = []
    inside = axes.get_window_extent()
    for point, place in zip(points, places, strict=True):

        def crowded(spot: Any, place: Any = place) -> float:
            """How much else is there; nearer to the point is better where nothing is."""
            others = [p for p in places if p is not place]
            near = sum(max(0.0, 1 - np.abs(spot - p).max() / (0.75 * _LABEL)) for p in others)
            near += sum(2 * max(0.0, 1 - np.abs(spot - p).max() / _LABEL) for p in taken)
            x, y = spot * scale
            outside = not (inside.x0 < x < inside.x1 and inside.y0 < y < inside.y1)
            return float(near + 5 * outside + 0.004 * np.abs(spot - place).sum())

        angles = np.arange(16) * np.pi / 8 + np.pi / 4
        candidates = [
            place + distance * np.asarray([np.cos(angle), np.sin(angle)])
            for distance in (10, 15, 21, 28, 36, 46)
            for angle in angles
        ]
        best = min(candidates, key=crowded)
        taken.append(best)
        offset = best - place
        axes.annotate(
            str(point.number),
            (point.x, point.y),
            xytext=tuple(offset),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=9.5,
            fontweight="bold",
            color=point.colour,
            bbox={"boxstyle": "round,pad=0.08", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
            arrowprops={"arrowstyle": "-", "color": point.colour, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 2},
        )


def _svg(figure: Any, salt: str) -> str:
    import matplotlib as mpl

    with mpl.rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "svg.hashsalt": f"levi {salt}"}):
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    picture = text.getvalue()
    return picture[picture.index("<svg") :]
