"""Latency against throughput, as a picture. The only file that knows matplotlib; it knows reports' documents."""

from __future__ import annotations

import html
import importlib.util
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from levi_serving.bench.report import in_words
from levi_serving.errors import MissingExtraError, UsageError

__all__ = ["plot", "require"]

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")  # Okabe and Ito: told apart by all
_MARKERS = "osD^vP"

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; }}
svg {{ width: 100%; height: auto; }}
pre {{ font-size: 12px; line-height: 1.45; background: #f6f6f4; padding: 1rem; overflow-x: auto; }}
</style>
</head>
<body>
<h1>{title}</h1>
{figure}
<pre>{table}</pre>
</body>
</html>
"""


def require(path: Path) -> None:
    """Refuse before hours are spent measuring what then cannot be drawn.

    Raises:
        UsageError: the name does not end in .png or .html.
        MissingExtraError: matplotlib is not installed.
    """
    if path.suffix not in (".png", ".html"):
        raise UsageError(f"--plot is {path}; expected a name that ends in .png or .html.")
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", "plot", "--plot")


def plot(document: Mapping[str, Any], path: Path) -> None:
    """Draw a report: a series a target and thread count, a line through the batch sizes of one length.

    Args:
        document: ``Report.to_dict()``.
        path: ``.png``, or ``.html``: one file that needs nothing else, with the report's table below the picture.

    Raises:
        UsageError, MissingExtraError: see ``require``.
    """
    require(path)
    import matplotlib as mpl
    from matplotlib.figure import Figure

    title = f"levi bench: latency against throughput ({document['verdict']})"
    with mpl.rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "svg.hashsalt": "levi"}):
        figure = Figure(figsize=(10, 6), dpi=150, layout="constrained")
        _draw(figure, document)
        if path.suffix == ".png":
            figure.suptitle(title, fontsize=13)
            figure.savefig(path)
            return
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    picture = text.getvalue()
    picture = picture[picture.index("<svg") :]
    page = _PAGE.format(title=html.escape(title), figure=picture, table=html.escape(in_words(document)))
    path.write_text(page, encoding="utf-8")


def _lines(document: Mapping[str, Any]) -> dict[str, dict[str, list[tuple[float, float, float, str]]]]:
    """By series, then by line: (rows/s, p50 ms, p90 ms or p50, what the point is)."""
    series: dict[str, dict[str, list[tuple[float, float, float, str]]]] = {}
    for workload in document["workloads"]:
        length = f"{workload['length']} tokens" if workload["length"] else "real lengths"
        for target, result in workload["results"].items():
            name = f"{target}, {workload['threads'] or '?'} thread" + ("s" if workload["threads"] != 1 else "")
            entries = [(result, workload["batch_size"])]
            if server := workload.get("server"):
                tried = [(one, f"{one['scheduled_qps']:.3g}/s") for one in workload["tried"]]
                entries = tried or [(result, f"{server['scheduled_qps']:.3g}/s")]
            for entry, point in entries:
                if "latency_ms" in entry:
                    latency = entry["latency_ms"]
                    line = series.setdefault(name, {}).setdefault(f"{workload['scenario']}, {length}", [])
                    line.append((entry["rows_per_s"], latency["p50"], latency.get("p90", latency["p50"]), str(point)))
    return series


def _draw(figure: Any, document: Mapping[str, Any]) -> None:
    axes = figure.add_subplot()
    series = _lines(document)
    kinds = list(dict.fromkeys(kind for lines in series.values() for kind in lines))
    for n, (name, lines) in enumerate(series.items()):
        colour = _COLOURS[n % len(_COLOURS)]
        for kind, points in lines.items():
            points.sort()
            rate, median, slow, labels = zip(*points, strict=True)
            marker = _MARKERS[kinds.index(kind) % len(_MARKERS)]
            axes.vlines(rate, median, slow, color=colour, alpha=0.45, linewidth=2)
            axes.plot(rate, median, marker=marker, color=colour, linewidth=1.5, markersize=6)
            for x, y, label in zip(rate, median, labels, strict=True):
                axes.annotate(label, (x, y), xytext=(6, -11), textcoords="offset points", fontsize=8, color=colour)
        axes.plot([], [], color=colour, linewidth=3, label=name)
    for n, kind in enumerate(kinds):
        axes.plot([], [], color="#555", marker=_MARKERS[n % len(_MARKERS)], linestyle="", label=kind)
    axes.set(xscale="log", yscale="log", xlabel="throughput, rows/s", ylabel="latency, ms (p50; bar: to p90)")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_minor_formatter(lambda value, _: f"{value:g}" if str(f"{value:e}")[0] in "25" else "")
    axes.grid(visible=True, which="both", color="#ddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, title="number at a point: rows of a query, or queries/s", title_fontsize=8)
