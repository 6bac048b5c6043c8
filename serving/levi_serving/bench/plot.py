"""Latency against throughput, as a picture. The only file that imports matplotlib; it knows reports' documents."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from levi_serving.bench.report import in_words, threads_in_words
from levi_serving.errors import MissingExtraError, UsageError
from levi_serving.page import element, page

__all__ = ["plot", "require"]

_COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#e69f00",
)  # Okabe and Ito: also for the colour-blind
_MARKERS = "osD^vP"
_STROKES = ("-", "--", ":", "-.")


def require(path: Path) -> None:
    """Refuse what cannot be drawn, before hours are spent measuring it.

    Raises:
        UsageError: the name does not end in .png or .html.
        MissingExtraError: matplotlib is not installed.
    """
    if path.suffix not in (".png", ".html"):
        raise UsageError(f"The plot's file is {path}; expected a name that ends in .png or .html.")
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", "plot", "Drawing a plot")


def plot(document: Mapping[str, Any], path: Path) -> None:
    """Draw a report: a colour for each target, a stroke for each thread count, a line through the batches of a length.

    Args:
        document: ``Report.to_dict()``.
        path: ``.png``, or ``.html``: a page that needs nothing else, with the report's table below the picture.

    Raises:
        UsageError, MissingExtraError: see ``require``.
    """
    require(path)
    import matplotlib as mpl
    from matplotlib.figure import Figure

    title = f"levi bench: latency against throughput ({document['verdict']})"
    with mpl.rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "svg.hashsalt": "levi"}):
        figure = Figure(figsize=(11, 6), dpi=150, layout="constrained")
        _draw(figure, document)
        if path.suffix == ".png":
            figure.suptitle(title, fontsize=13)
            figure.savefig(path)
            return
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    picture = text.getvalue()
    body = [picture[picture.index("<svg") :], element("pre", in_words(document))]
    path.write_text(page(title, body), encoding="utf-8")


_Point = tuple[float, float, float, str, bool]  # rows/s, p50 ms, p90 ms or p50 again, what it is, whether it is valid


def _lines(document: Mapping[str, Any]) -> dict[tuple[str, str], dict[str, list[_Point]]]:
    """Points by target and threads, then by scenario and length."""
    series: dict[tuple[str, str], dict[str, list[_Point]]] = {}
    for workload in document["workloads"]:
        length = f"{workload['length']} tokens" if workload["length"] else "real lengths"
        for target, result in workload["results"].items():
            name = (target, threads_in_words(workload["threads"]))
            if server := workload.get("server"):
                tried = sorted(workload["tried"], key=lambda one: one["scheduled_qps"])
                entries = tried or [{**result, **server, "valid": workload["valid"]}]
                labels = [f"{one['scheduled_qps']:.3g}/s" for one in entries]
            else:
                entries, labels = [{**result, "valid": True}], [str(workload["batch_size"])]
            for entry, label in zip(entries, labels, strict=True):
                if "latency_ms" in entry:
                    latency = entry["latency_ms"]
                    p50, p90 = latency["p50"], latency.get("p90", latency["p50"])
                    line = series.setdefault(name, {}).setdefault(f"{workload['scenario']}, {length}", [])
                    line.append((entry["rows_per_s"], p50, p90, label, entry["valid"]))
    return series


def _draw(figure: Any, document: Mapping[str, Any]) -> None:
    axes = figure.add_subplot()
    series = _lines(document)
    targets = list(dict.fromkeys(target for target, _ in series))
    counts = list(dict.fromkeys(threads for _, threads in series))
    kinds = list(dict.fromkeys(kind for lines in series.values() for kind in lines))
    for (target, threads), lines in series.items():
        style = {
            "color": _COLOURS[targets.index(target) % len(_COLOURS)],
            "linestyle": _STROKES[counts.index(threads) % len(_STROKES)],
        }
        for kind, points in lines.items():
            rate, median, slow, _, _ = zip(*points, strict=True)
            marker = _MARKERS[kinds.index(kind) % len(_MARKERS)]
            axes.vlines(rate, median, slow, color=style["color"], alpha=0.4, linewidth=2)
            axes.plot(rate, median, linewidth=1.5, **style)
            for x, y, _, label, valid in points:
                inside = style["color"] if valid else "white"
                axes.plot(x, y, marker=marker, color=style["color"], markerfacecolor=inside, markersize=6)
                axes.annotate(
                    label, (x, y), xytext=(6, -11), textcoords="offset points", fontsize=8, color=style["color"]
                )
        axes.plot([], [], linewidth=2, label=f"{target}, {threads}", **style)
    for n, kind in enumerate(kinds):
        axes.plot([], [], color="#555", marker=_MARKERS[n % len(_MARKERS)], linestyle="", label=kind)
    axes.set(xscale="log", yscale="log", xlabel="throughput, rows/s", ylabel="latency, ms (p50; bar: to p90)")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
    axes.grid(visible=True, which="both", color="#ddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    legend = figure.legend(loc="outside right upper", frameon=False, fontsize=9, handlelength=3)
    legend.set_title("label of a point: rows of a request, or\nrequests/s (hollow: over the bound)", prop={"size": 8})
