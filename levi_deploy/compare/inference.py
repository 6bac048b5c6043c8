"""What each method costs at inference: its exported graph beside that of the backbone with one linear head.

Methods whose models are built alike have one graph with other weights in it, so one of them is exported and measured
for all. Each bundle is proven and kept in ``bundles/METHOD`` of the report's folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from levi_deploy.compare.shared import Shared
from levi_deploy.compare.workers import Submit
from levi_deploy.run import Run
from levi_serving.environment import machine
from levi_serving.errors import LeviError
from levi_serving.rows.preprocess import Row

__all__ = ["BASELINE", "BATCH_SIZES", "Exported", "export_each", "time_graphs"]

BASELINE = "linear-probe"
"""The method whose graph is the backbone, whole, with one linear head."""
BATCH_SIZES = (1, 8)
_ROWS = 64
_SECONDS = 3.0  # for each graph and batch size, at least

Exported = Path | LeviError
"""A bundle, or why there is none."""


def export_each(runs: Mapping[str, Run], shared: Shared, submit: Submit) -> dict[str, Exported]:
    """Export one run of each architecture.

    Args:
        runs: of each method the one to export.
        shared: where bundles go.
        submit: runs a job, see ``workers``.

    Returns:
        By method, the bundle that holds for it.
    """
    exports: dict[str, Future[Exported]] = {}
    for run in runs.values():
        if (architecture := _architecture(run)) not in exports:
            exports[architecture] = submit(_export, run)
            shared.progress("exporting", len(exports), len(runs))
    return {method: exports[_architecture(run)].result() for method, run in runs.items()}


def time_graphs(bundles: Mapping[str, Exported], rows: Sequence[Row]) -> dict[str, Any]:
    """Measure every graph in turns on one thread, in this process.

    Args:
        bundles: by method, the baseline's among them.
        rows: to answer.

    Returns:
        ``machine``; ``threads``; and ``graphs``, by method a list of records, one for each ``batch_size``: the median
        ``ms`` of a batch once it is tokenised; and how many times as long as the baseline's it takes, ``ratio``, the
        median of pairs, with ``low`` and ``high``, its 95 % interval. ``errors``: of those that could not be exported.
    """
    from levi_serving import Runner, bench
    from levi_serving.bench.stats import percentile, ratio

    errors = {method: str(bundle) for method, bundle in bundles.items() if isinstance(bundle, LeviError)}
    found: dict[str, Any] = {"machine": machine(), "threads": 1, "graphs": {}, "errors": errors}
    first = bundles[BASELINE]
    if isinstance(first, LeviError):
        return found
    folders = list(dict.fromkeys([first, *(bundle for bundle in bundles.values() if isinstance(bundle, Path))]))
    targets = [bench.Target(str(n), Runner(folder, device="cpu", threads=1)) for n, folder in enumerate(folders)]
    measured: dict[Path, list[dict[str, float]]] = {folder: [] for folder in folders}
    for workload in bench.real(rows[:_ROWS], batch_sizes=BATCH_SIZES):
        series = bench.single(targets, workload, duration_s=_SECONDS).series
        for folder, target in zip(folders, targets, strict=True):
            took = series[target.name].run_s
            beside = ratio(series[targets[0].name].run_s, took)
            measured[folder].append(
                {
                    "batch_size": workload.batch_size,
                    "ms": 1000 * percentile(took, 0.5),
                    "ratio": beside["median"],
                    "low": beside["low"],
                    "high": beside["high"],
                }
            )
    found["graphs"] = {method: measured[bundle] for method, bundle in bundles.items() if isinstance(bundle, Path)}
    return found


def _architecture(run: Run) -> str:
    """All that decides which graph a run becomes but its weights; adapters are merged into these."""
    model = run.config.to_dict()["model"] | {"taps": run.taps, "backbone": None, "lora": None}
    return json.dumps(model, sort_keys=True)


def _export(shared: Shared, run: Run) -> Exported:
    """Export a run, here or in a process of its own, where its bundle does not lie there."""
    from levi_export import export

    folder = shared.output / "bundles" / run.folder.parent.name / run.folder.name
    if folder.is_dir():  # whole, or not there
        return folder
    try:
        return export(run.folder, folder).folder
    except LeviError as error:
        return error
