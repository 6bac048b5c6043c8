"""The report of a comparison: ``results.json``, ``report.md`` and ``index.html``, from one document alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from levi_deploy.compare.pictures import Line, Point, colour, forest, lines, scatter
from levi_deploy.compare.results import BESIDE
from levi_deploy.compare.statistics import RESAMPLES, pareto
from levi_deploy.methods import METHODS
from levi_serving import atomic
from levi_serving.page import element, page, table

__all__ = ["in_words", "write"]

_LOWER_IS_BETTER = ("rmse",)
_STYLE = """
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); gap: 12px; }
.pictures svg { margin: 0; background: #fff; border-radius: 6px; }
.methods { display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 12px 0; padding: 0; list-style: none; }
.methods b { display: inline-block; min-width: 22px; margin-right: 6px; padding: 0 5px; border-radius: 4px;
  color: #fff; text-align: center; }
@media (max-width: 700px) { td, th { font-size: 13px; padding-right: 12px; }
  td:first-child, th:first-child { position: sticky; left: 0; background: var(--paper); white-space: normal;
    min-width: 8.5em; max-width: 8.5em; } }
"""

Rows = Sequence[Sequence[str]]
Table = tuple[str, str, Sequence[str], Rows]
"""A title, a sentence on what stands there, the header, and the rows."""


def write(output: Path, document: Mapping[str, Any]) -> None:
    """Write the three files.

    Args:
        output: the folder.
        document: see ``results.collect``.
    """
    view = _View(document)
    atomic.write(output / "results.json", json.dumps(document, indent=1) + "\n")
    atomic.write(output / "report.md", "\n".join(_markdown(view)) + "\n")
    atomic.write(output / "index.html", _html(view))


def in_words(choice: Mapping[str, Any]) -> str:
    """What a trial tried: its value, or its name."""
    return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in choice.values())


class _View:
    """What tables and pictures look up in the document.

    Attributes:
        document: see ``results.collect``.
        methods: names, in the order of their numbers.
        splits: the in-distribution one first, where there are several.
        columns: every split and group.
        metric: the first one.
    """

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.document = document
        self.methods = list(dict.fromkeys(record["method"] for record in document["results"]))
        self.columns = list(dict.fromkeys((record["split"], record["group"]) for record in document["results"]))
        self.splits = list(dict.fromkeys(split for split, _ in self.columns))
        self.metric = str(document["results"][0]["metric"])

    def number(self, method: str) -> int:
        """In tables and pictures."""
        return self.methods.index(method) + 1

    def title(self, method: str) -> str:
        """In tables."""
        return f"{self.number(method)} {METHODS[method].title}"

    def kept(self, method: str) -> list[Mapping[str, Any]]:
        """The trials that count."""
        return [trial for trial in self.document["trials"] if trial["kept"] and trial["method"] == method]

    def values(self, method: str, split: str, group: str = "all") -> list[float]:
        """The first metric of each seed."""
        wanted = (method, split, group, self.metric)
        return [
            record["value"]
            for record in self.document["results"]
            if (record["method"], record["split"], record["group"], record["metric"]) == wanted
        ]

    def interval(self, method: str, split: str) -> tuple[float, float, float]:
        """The first metric of a method on a split: its value, low and high."""
        for record in self.document["intervals"]:
            if (record["method"], record["split"], record["group"]) == (method, split, "all"):
                return record["value"], record["low"], record["high"]
        raise KeyError(method, split)

    def point(self, method: str, split: str, x: float, x_interval: tuple[float, float] | None = None) -> Point:
        """A method in a picture, as high as its metric on a split."""
        value, low, high = self.interval(method, split)
        return Point(
            number=self.number(method),
            colour=colour(METHODS[method].family),
            x=x,
            y=value,
            x_interval=x_interval,
            y_interval=(low, high),
        )

    def seconds(self, method: str) -> float:
        """Of training, the mean over seeds."""
        return float(mean(trial["training_seconds"] for trial in self.kept(method)))

    def costs(self) -> Mapping[str, Any]:
        """What each method's graph costs, where it was measured."""
        graphs: Mapping[str, Any] = (self.document["inference"] or {"graphs": {}})["graphs"]
        return graphs


def _introduction(view: _View) -> str:
    document = view.document
    rows = ", ".join(f"{count:,} {split}" for split, count in document["rows"].items())
    threads = f"{document['threads']} threads" if document["threads"] > 1 else "one thread"
    side = f"{document['jobs']} runs side by side, each" if document["jobs"] > 1 else "One run at a time,"
    return (
        f"{document['data']}, {document['task']}: {rows} rows. Each method had {document['budget']} trials with the "
        "first seed, which differ in the learning rate (WiSE-FT: in the share of tuned weights; soup: in the recipe); "
        f"the one with the lowest loss on ID validation was trained with {document['seeds']} seeds in all (a soup is "
        f"made once, of all runs of LP-FT). Test rows chose nothing. {side} on {threads}."
    )


def _markdown(view: _View) -> list[str]:
    text = ["# Comparison of methods", "", _introduction(view)]
    for title, about, header, rows in _tables(view):
        text += ["", f"## {title}", "", about, "", f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
        text += [f"| {' | '.join(row)} |" for row in rows]
    return text


def _html(view: _View) -> str:
    chips = "".join(
        f'<li><b style="background: {colour(METHODS[name].family)}">{view.number(name)}</b>'
        f"{escape(METHODS[name].title)}</li>"
        for name in view.methods
    )
    body = [element("p", _introduction(view)), f'<ul class="methods">{chips}</ul>']
    for title, about, pictures in _pictures(view):
        if pictures:
            body += [element("h2", title), element("p", about), f'<div class="pictures">{"".join(pictures)}</div>']
    for title, about, header, rows in _tables(view):
        body += [element("h2", title), element("p", about), table(header, rows)]
    return page("Comparison of methods", body, style=_STYLE)


def _pictures(view: _View) -> Iterator[tuple[str, str, list[str]]]:
    """A title, a sentence and pictures, for each thing that is shown."""
    home, *away = view.splits if len(view.splits) > 1 else (None, *view.splits)
    yield (
        f"Each method's {view.metric}",
        "By number, with 95 % intervals over rows; dotted is full fine-tuning.",
        [_listed(view, split) for split in view.splits],
    )
    yield (
        "Out of distribution against in distribution",
        f"Each method by its number, with 95 % intervals of {view.metric} over rows. Dotted: as good as at home.",
        [_shift(view, home, split) for split in away],
    )
    yield (
        "What training costs",
        "Seconds of training, those of all runs that a method is made of included; hidden states are stored once for "
        "all and do not count. The grey line is the Pareto front: nothing cheaper is as good.",
        [_against_cost(view, split, {name: view.seconds(name) for name in view.methods}) for split in away],
    )
    ratios = {name: graphs[0]["ratio"] for name, graphs in view.costs().items()}
    yield (
        "What inference costs",
        "The time of the exported graph for one row, as a multiple of that of the backbone with one linear head.",
        [_against_cost(view, split, ratios, inference=True) for split in away if ratios],
    )
    yield (
        "Each head by itself",
        f"{view.metric} of every head, by the layer of the backbone that it reads; dashes are the heads' average.",
        [_depth(view, method) for method in view.methods if _tapped(view, method)],
    )
    if view.document["pairs"]:
        yield (
            "What answers lean on",
            "How far answers move between two versions of a row that differ in a spurious part, and in the core.",
            _leaning(view),
        )
    shown = next((name for name in ("levi", *view.methods) if name in view.methods and _curves(view, name)), None)
    yield (
        "What doubt is worth",
        "The risk of the rows that each signal trusts most: a good one rises to the right."
        + (f" {view.title(shown)}." if shown else ""),
        [_risk(view, shown, split) for split in view.splits if shown and _curves(view, shown, split)],
    )


def _listed(view: _View, split: str) -> str:
    points = []
    for method in view.methods:
        value, low, high = view.interval(method, split)
        points.append(replace(view.point(method, split, value, (low, high)), y_interval=None))
    tuned = view.interval(BESIDE[0], split)[0] if BESIDE[0] in view.methods else None
    return forest(points, title=split, x=f"{view.metric}, {split}", beside=tuned)


def _shift(view: _View, home: str | None, split: str) -> str:
    points = []
    for method in view.methods:
        if home is None:
            x, within = mean(trial["validation"][view.metric] for trial in view.kept(method)), None
        else:
            x, low, high = view.interval(method, home)
            within = (low, high)
        points.append(view.point(method, split, x, within))
    x = f"{view.metric}, {home or 'ID validation'}"
    return scatter(points, title=split, x=x, y=f"{view.metric}, {split}", diagonal=True)


def _against_cost(view: _View, split: str, costs: Mapping[str, float], *, inference: bool = False) -> str:
    least = 0.0 if inference else 0.01  # seconds are kept in hundredths, and 0 has no place on a logarithmic axis
    points = [view.point(method, split, max(cost, least)) for method, cost in costs.items()]
    by_method = {str(point.number): (point.x, point.y) for point in points}
    front = pareto(by_method, lower_is_better=view.metric in _LOWER_IS_BETTER)
    return scatter(
        points,
        title=split,
        x="time of a row beside the backbone's" if inference else "seconds of training",
        y=f"{view.metric}, {split}",
        logarithmic=not inference,
        front=[int(number) for number in front],
    )


def _tapped(view: _View, method: str) -> list[tuple[int, int]]:
    """Head and tap of those of a method's heads that read one, where there are several."""
    found = {r["head"]: r["tap"] for r in view.document["heads"] if r["method"] == method and r["tap"] is not None}
    return sorted(found.items()) if len(set(found.values())) > 1 else []


def _depth(view: _View, method: str) -> str:
    taps: dict[int, list[int]] = {}
    for head, tap in _tapped(view, method):
        taps.setdefault(tap, []).append(head)
    series = []
    for split in view.splits:
        heads = [r for r in view.document["heads"] if r["method"] == method and r["split"] == split]
        values = [mean(r["value"] for r in heads if r["head"] in own) for own in taps.values()]
        average = mean(view.values(method, split))
        series.append(Line(title=f"{split}, average {average:.3f}", x=list(taps), y=values, level=average))
    ticks = {float(tap): str(tap) for tap in taps}
    return lines(series, title=view.title(method), x="layer", y=view.metric, ticks=ticks)


def _leaning(view: _View) -> list[str]:
    moves: dict[str, dict[str, list[float]]] = {}
    for record in view.document["pairs"]:
        if record["part"] == "average":
            moves.setdefault(record["method"], {}).setdefault(record["changed"], []).append(record["moves"])
    points = []
    for method, found in moves.items():
        both = [mean(found[changed]) if changed in found else None for changed in ("spurious", "core")]
        given = [value for value in both if value is not None]
        if len(given) < len(both):  # one kind of versions alone: nothing to hold it against but the method
            continue
        points.append(Point(number=view.number(method), colour=colour(METHODS[method].family), x=given[0], y=given[1]))
    title = "Best at the upper left"
    return [scatter(points, title=title, x="moves, spurious part", y="moves, core")] if points else []


def _curves(view: _View, method: str, split: str | None = None) -> list[Mapping[str, Any]]:
    return [r for r in view.document["coverage"] if r["method"] == method and split in (None, r["split"])]


def _risk(view: _View, method: str, split: str) -> str:
    shares = view.document["coverages"]
    series = [Line(title=r["signal"].replace("_", " "), x=shares, y=r["risk"]) for r in _curves(view, method, split)]
    risk = "root mean square of errors" if view.document["task"] == "regression" else "share of wrong answers"
    return lines(series, title=split, x="share of rows that are answered", y=risk)


def _tables(view: _View) -> Iterator[Table]:
    document, metric = view.document, view.metric
    titles = [split if group == "all" else f"{split}, {group}" for split, group in view.columns]
    costs = view.costs()
    yield (
        "Each method in numbers",
        f"{metric}: mean ± standard deviation over seeds.",
        ["method", *titles, "trained parameters", "training, s", "graph", "chosen"],
        [
            [
                view.title(method),
                *(_spread(view.values(method, *column)) for column in view.columns),
                f"{view.kept(method)[0]['trained_parameters']:,}",
                f"{view.seconds(method):,.0f}",
                f"{costs[method][0]['ratio']:.2f} ×" if method in costs else "",
                in_words(view.kept(method)[0]["choice"]),
            ]
            for method in view.methods
        ],
    )
    for other in BESIDE:
        cells = {
            (r["method"], r["split"], r["group"]): f"{r['difference']:+.4f} [{r['low']:+.4f}, {r['high']:+.4f}]"
            for r in document["differences"]
            if r["beside"] == other
        }
        others = [name for name in view.methods if (name, *view.columns[0]) in cells]
        if others:
            yield (
                f"Beside {METHODS[other].title}",
                f"{metric} less that of {METHODS[other].title}: row by row, on the mean of all "
                f"seeds, with the interval of 95 % of {RESAMPLES:,} bootstrap samples.",
                ["method", *titles],
                [[view.title(name), *(cells[name, *column] for column in view.columns)] for name in others],
            )
    if costs:
        sizes = [record["batch_size"] for record in next(iter(costs.values()))]
        yield (
            "What a graph costs",
            f"Median milliseconds of a batch once it is tokenised, on {document['inference']['threads']} thread of "
            f"{document['inference']['machine']['cpu']}; and how many times as long as the backbone with one linear "
            "head it takes, the median of pairs measured in turns [95 % interval].",
            ["method", *(f"{size} rows" if size > 1 else "1 row" for size in sizes)],
            [
                [
                    view.title(method),
                    *(f"{r['ms']:.1f} ms · {r['ratio']:.2f} × [{r['low']:.2f}, {r['high']:.2f}]" for r in records),
                ]
                for method, records in costs.items()
            ],
        )
    yield from _leaning_table(view)
    yield from _doubt_tables(view)
    yield (
        "All trials",
        "Those of the first seed that are kept were chosen by their loss on ID validation.",
        ["method", "seed", "choice", "ID validation loss", "kept", "threads"],
        [
            [
                trial["title"],
                str(trial["seed"]),
                in_words(trial["choice"]),
                "diverged" if trial["diverged"] else f"{trial['validation_loss']:.4f}",
                "yes" if trial["kept"] else "no",
                str(trial["threads"] or ""),
            ]
            for trial in document["trials"]
        ],
    )


def _leaning_table(view: _View) -> Iterator[Table]:
    names = {"moves": "moves", "flips": "flip", "both_right": "both right"}
    found: dict[tuple[str, str], dict[tuple[str, str], list[float]]] = {}
    counts: dict[str, int] = {}
    for record in view.document["pairs"]:
        counts[record["changed"]] = record["pairs"]
        cells = found.setdefault((record["method"], record["part"]), {})
        for name in names:
            if name in record:
                cells.setdefault((record["changed"], name), []).append(record[name])
    if found:
        columns = list(dict.fromkeys(column for cells in found.values() for column in cells))
        pairs = " and ".join(f"{count:,} pairs whose {changed} part changed" for changed, count in counts.items())
        yield (
            "Versions of one row",
            f"{pairs}; the mean over seeds: how far answers move, how many flip, how many pairs are right in both.",
            ["method", "part", *(f"{changed}: {names[name]}" for changed, name in columns)],
            [
                [view.title(method), part, *(f"{mean(cells[column]):.3f}" for column in columns)]
                for (method, part), cells in found.items()
            ],
        )


def _doubt_tables(view: _View) -> Iterator[Table]:
    curves = view.document["coverage"]
    signals = list(dict.fromkeys(record["signal"] for record in curves))
    risks = {(r["method"], r["split"], r["signal"]): f"{r['mean_risk']:.4f}" for r in curves}
    if curves:
        yield (
            "Risk by signal",
            "The mean over all shares of rows that are answered, the most trusted first: the area below the curve.",
            ["method", "split", *(signal.replace("_", " ") for signal in signals)],
            [
                [view.title(method), split, *(risks.get((method, split, signal), "") for signal in signals)]
                for method in view.methods
                for split in view.splits
            ],
        )
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    for record in view.document["signals"]:
        if record["detects"] == "ood" and record["value"] is not None:
            cells = found.setdefault((record["method"], record["split"]), {})
            cells.setdefault(record["signal"], []).append(record["value"])
    if found:
        yield (
            "OOD rows by signal",
            f"How well a signal tells rows from those of {view.splits[0]}: AUROC, the mean over seeds.",
            ["method", "split", *(signal.replace("_", " ") for signal in signals)],
            [
                [view.title(method), split, *(f"{mean(cells[s]):.3f}" if s in cells else "" for s in signals)]
                for (method, split), cells in found.items()
            ],
        )


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")
