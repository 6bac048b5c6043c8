"""The report of a comparison: ``results.json``, ``report.md`` and ``index.html``, from measured trials alone."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from levi_deploy.compare.measure import Measured
from levi_deploy.compare.shared import TestRows
from levi_deploy.methods import METHODS
from levi_serving import atomic
from levi_serving.page import element, page, table
from levi_serving.predictions import TaskKind

__all__ = ["RESAMPLES", "in_words", "paired_difference", "write"]

RESAMPLES = 2000
BESIDE = ("fine-tune", "linear-probe")
"""The methods that every other one is compared with, row by row."""
_CHUNK = 200  # resamples at a time: (200, N) counts

_Runs = Mapping[tuple[str, int], Measured]


def write(output: Path, document: dict[str, Any], runs: _Runs, test: TestRows) -> dict[str, Any]:
    """Write the three files.

    Args:
        output: the folder.
        document: what was done.
        runs: by method and seed, its answers on test rows.
        test: those rows.

    Returns:
        The document with ``results``: a record for each method, seed, split, group and metric; and
        ``differences``: each method's first metric less that of full fine-tuning and of the linear probe; and
        ``pairs``: how far answers move between versions of a row.
    """
    trials = {(trial["method"], trial["seed"]): trial for trial in document["trials"] if trial["kept"]}
    results = [
        {
            "method": method,
            "seed": seed,
            "split": split,
            "group": group,
            "metric": metric,
            "value": value,
            "trained_parameters": trials[method, seed]["trained_parameters"],
            "training_seconds": sum(trials[method, seed]["seconds"].values()) + trials[method, seed]["base_seconds"],
            "inference_cost": _inference_cost(document, method),
        }
        for (method, seed), measured in runs.items()
        for split, groups in measured.found["splits"].items()
        for group, found in groups.items()
        for metric, value in found.items()
        if metric not in ("rows", "heads")
    ]
    document = {
        **document,
        "results": results,
        "differences": _differences(runs, test),
        "pairs": [
            {"method": method, "seed": seed, **record}
            for (method, seed), measured in runs.items()
            for record in measured.found["pairs"]
        ],
    }
    text = json.dumps(document, indent=1)
    atomic.write(output / "results.json", f"{text}\n")
    atomic.write(output / "report.md", "\n".join(_markdown(document)) + "\n")
    atomic.write(output / "index.html", _html(document))
    written: dict[str, Any] = json.loads(text)
    return written


def in_words(choice: Mapping[str, Any]) -> str:
    """What a trial tried: its value, or its name."""
    return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in choice.values())


def paired_difference(
    one: NDArray[np.float64], other: NDArray[np.float64], *, kind: TaskKind, seed: int = 0
) -> tuple[float, float, float]:
    """One method's first metric less another's on the same rows, with a bootstrap interval (Efron 1979).

    Args:
        one: a score a row, the mean over seeds, (N,): see ``Measured.scores``.
        other: likewise.
        kind: regression compares root mean squares, the others means.
        seed: of the resampling of rows, which both share.

    Returns:
        The difference, and the 2.5th and 97.5th percentile of it over 2,000 resamples.
    """
    both = np.stack([one, other], axis=1)
    draw, rows = np.random.default_rng(seed), len(both)

    def difference(means: NDArray[np.float64]) -> NDArray[np.float64]:
        values = np.sqrt(means) if kind == "regression" else means
        return np.asarray(values[..., 0] - values[..., 1])

    parts = []
    for _ in range(0, RESAMPLES, _CHUNK):
        counts = draw.multinomial(rows, np.full(rows, 1 / rows), size=_CHUNK)
        parts.append(difference(counts @ both / rows))
    low, high = np.percentile(np.concatenate(parts), [2.5, 97.5])
    return float(difference(both.mean(axis=0))), float(low), float(high)


def _differences(runs: _Runs, test: TestRows) -> list[dict[str, Any]]:
    methods = list(dict.fromkeys(method for method, _ in runs))
    scores = {
        (method, split): np.mean([m.scores[split] for (name, _), m in runs.items() if name == method], axis=0)
        for method in methods
        for split in test.parts
    }
    return [
        {
            "method": method,
            "beside": other,
            "split": split,
            "group": group,
            **dict(
                zip(
                    ("difference", "low", "high"),
                    paired_difference(scores[method, split][places], scores[other, split][places], kind=test.task.kind),
                    strict=True,
                )
            ),
        }
        for method in methods
        for other in BESIDE
        if other in methods and other != method
        for split, part in test.parts.items()
        for group, places in part.groups(test.by).items()
    ]


def _inference_cost(document: Mapping[str, Any], method: str) -> float | None:
    """How many times as long as the backbone's own a method's graph takes for one row; None where not measured."""
    measured = (document["inference"] or {"graphs": {}})["graphs"].get(method)
    return measured[0]["ratio"] if measured else None


def _first_metric(document: Mapping[str, Any]) -> str:
    return str(document["results"][0]["metric"])


def _values(document: Mapping[str, Any], method: str, split: str, group: str) -> list[float]:
    """The first metric of each seed."""
    first = _first_metric(document)
    return [
        record["value"]
        for record in document["results"]
        if (record["method"], record["split"], record["group"], record["metric"]) == (method, split, group, first)
    ]


def _columns(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Every split and group, in order."""
    return list(dict.fromkeys((record["split"], record["group"]) for record in document["results"]))


def _methods(document: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(record["method"] for record in document["results"]))


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")


def _tables(document: Mapping[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, header and rows of each table."""
    columns, first = _columns(document), _first_metric(document)
    titles = [split if group == "all" else f"{split}, {group}" for split, group in columns]
    kept = {trial["method"]: trial for trial in document["trials"] if trial["kept"]}
    main = []
    for method in _methods(document):
        own = [trial for trial in document["trials"] if trial["kept"] and trial["method"] == method]
        fit = mean(map(_fit_seconds, own))
        main.append(
            [
                METHODS[method].title,
                f"{kept[method]['trained_parameters']:,}",
                in_words(kept[method]["choice"]),
                f"{fit:.3g}",
                *(_spread(_values(document, method, *column)) for column in columns),
            ]
        )
    result = [(f"{first}, by method", ["method", "trained parameters", "chosen", "training, s", *titles], main)]
    for other in BESIDE:
        found = [record for record in document["differences"] if record["beside"] == other]
        by_method: dict[str, dict[tuple[str, str], str]] = {}
        for record in found:
            cell = f"{record['difference']:+.4f} [{record['low']:+.4f}, {record['high']:+.4f}]"
            by_method.setdefault(record["method"], {})[record["split"], record["group"]] = cell
        rows = [[METHODS[name].title, *(cells[column] for column in columns)] for name, cells in by_method.items()]
        if rows:
            title = f"{first} less that of {METHODS[other].title}, with 95 % of {RESAMPLES:,} paired bootstrap samples"
            result.append((title, ["method", *titles], rows))
    tried = [
        [
            trial["title"],
            str(trial["seed"]),
            in_words(trial["choice"]),
            "diverged" if trial["diverged"] else f"{trial['validation_loss']:.4f}",
            "yes" if trial["kept"] else "no",
        ]
        for trial in document["trials"]
    ]
    result.append(("All trials", ["method", "seed", "choice", "ID validation loss", "kept"], tried))
    return result


def _introduction(document: Mapping[str, Any]) -> str:
    rows = ", ".join(f"{count:,} {split}" for split, count in document["rows"].items())
    return (
        f"{document['data']}, {document['task']}: {rows} rows. Each method had {document['budget']} trials with the "
        f"first seed, which differ in the learning rate (WiSE-FT: in the share of tuned weights; soup: in the recipe); "
        f"the one with the lowest loss on ID validation was trained with {document['seeds']} seeds in all (a "
        f"soup is made once, of all runs of LP-FT). Test rows chose nothing. Mean ± standard deviation over seeds."
    )


def _markdown(document: Mapping[str, Any]) -> list[str]:
    lines = ["# Comparison of methods", "", _introduction(document)]
    for title, header, rows in _tables(document):
        lines += ["", f"## {title}", "", f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
        lines += [f"| {' | '.join(row)} |" for row in rows]
    return lines


def _html(document: Mapping[str, Any]) -> str:
    body = [element("p", _introduction(document)), _pictures(document)]
    for title, header, rows in _tables(document):
        body += [element("h2", title), table(header, rows)]
    style = ".pictures { display: flex; flex-wrap: wrap; } .pictures svg { flex: 1 1 420px; max-width: 620px; }"
    return page("Comparison of methods", body, style=style)


def _pictures(document: Mapping[str, Any]) -> str:
    """In-distribution against every other split, and the cost of training against the last one: SVGs side by side."""
    first, splits, methods = _first_metric(document), list(dict.fromkeys(s for s, _ in _columns(document))), {}
    for name in _methods(document):
        own = [trial for trial in document["trials"] if trial["kept"] and trial["method"] == name]
        validation = mean(trial["validation"][first] for trial in own)
        methods[name] = (validation, mean(map(_fit_seconds, own)))
    if len(splits) > 1:
        home = {name: mean(_values(document, name, splits[0], "all")) for name in methods}
        pictures = [_picture(document, home, f"{first}, {splits[0]}", split) for split in splits[1:]]
    else:
        home = {name: validation for name, (validation, _) in methods.items()}
        pictures = [_picture(document, home, f"{first}, ID validation", splits[0])]
    seconds = {name: fit for name, (_, fit) in methods.items()}
    pictures.append(_picture(document, seconds, "seconds of training", splits[-1], logarithmic=True))
    return f'<div class="pictures">{"".join(pictures)}</div>'


def _picture(
    document: Mapping[str, Any], places: Mapping[str, float], title: str, split: str, *, logarithmic: bool = False
) -> str:
    """Each method at its place, as high as its metric on a split: an SVG, text kept as text."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "svg.hashsalt": f"levi {title} {split}"}):
        figure = Figure(figsize=(6.5, 5), layout="constrained")
        axes = figure.add_subplot()
        for method, place in places.items():
            values = _values(document, method, split, "all")
            spread = stdev(values) if len(values) > 1 else 0
            axes.errorbar(place, mean(values), yerr=spread, fmt="o", markersize=6, capsize=3)
            axes.annotate(
                METHODS[method].title, (place, mean(values)), xytext=(6, 5), textcoords="offset points", fontsize=8
            )
        axes.set(xlabel=title, ylabel=f"{_first_metric(document)}, {split}")
        if logarithmic:
            axes.set_xscale("log")
        axes.grid(visible=True, color="#ddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(0.25)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    picture = text.getvalue()
    return picture[picture.index("<svg") :]


def _fit_seconds(trial: Mapping[str, Any]) -> float:
    """Seconds of training a method, with those of the one that it is built on; stored taps are not counted."""
    return float(trial["seconds"]["fit"] + trial["seconds"]["fine_tune"] + trial["base_seconds"])
