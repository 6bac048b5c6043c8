"""The proof of one exported graph: replayed through the runner that serves, and measured on the run's labelled rows.

``levi_serving.parity`` judges what any machine can judge again later. The metric needs the rows' targets, which only
the training run has, so it is judged here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from levi_deploy.evaluation.metrics import metrics
from levi_deploy.run import Run
from levi_serving.bundle import GOLDEN, GraphFile, Precision
from levi_serving.engine.runner import Runner
from levi_serving.errors import ParityError
from levi_serving.parity import Golden, Tolerance, real_answers, replay
from levi_serving.predictions import Outputs, Task, finish

__all__ = ["check_drop", "metric", "prove"]


def prove(folder: Path, graph: GraphFile, trained: Run, *, min_agreement: float, max_drop: float) -> dict[str, Any]:
    """Judge one graph of a sealed bundle.

    Args:
        folder: the bundle's.
        graph: which of its graphs.
        trained: the run that it was made from.
        min_agreement: the least share of real rows whose prediction a less precise graph must keep.
        max_drop: how much of the metric such a graph may lose, see ``check_drop``.

    Returns:
        Its certificate, ready for ``parity.json``.

    Raises:
        ParityError: it does not answer as the model does.
    """
    runner = Runner(folder, device="cuda" if graph.device == "cuda" else "cpu", graph=graph)
    tolerance = Tolerance.of(graph.precision, min_agreement=min_agreement)
    real = real_answers(runner)
    certificate = replay(runner, Golden.load(folder / GOLDEN, trained.preprocessing), tolerance, real=real)
    if real is not None:
        certificate["metric"] = metric(*real, trained.targets, trained.task)
        check_drop(certificate["metric"], graph.precision, max_drop=max_drop)
    return certificate


def metric(reference: Outputs, found: Outputs, targets: NDArray[Any], task: Task) -> dict[str, Any]:
    """The task's first metric on N labelled rows, of the torch model and of a graph.

    Args:
        reference: the torch model's answers.
        found: the graph's.
        targets: (N,) or (N, C), as ``encode_targets`` gives them.
        task: what both answer.

    Returns:
        ``name``, ``torch``, ``value``, and ``drop``: how many points are lost (regression: by how many percent
        the error rises); negative where the graph does better.
    """
    torch, own = (metrics(finish(a, task), targets, task) for a in (reference, found))
    name = next(name for name in own if name != "rows")
    drop = 100 * (own[name] / torch[name] - 1) if task.kind == "regression" else 100 * (torch[name] - own[name])
    return {"name": name, "torch": torch[name], "value": own[name], "drop": drop}


def check_drop(measured: Mapping[str, Any], precision: Precision, *, max_drop: float) -> None:
    """Refuse a graph that loses too much of the metric.

    Args:
        measured: as ``metric`` gives it.
        precision: the graph's.
        max_drop: in points (regression: in percent of the error); a drop that is not a number is refused too.

    Raises:
        ParityError: it loses more.
    """
    if not measured["drop"] <= max_drop:
        unit = "percent more" if measured["name"] == "rmse" else "points less"
        raise ParityError(
            f"The {precision} graph has the {measured['name']} {measured['value']:.4f} on the run's validation "
            f"rows, torch {measured['torch']:.4f}: {measured['drop']:.2f} {unit}, allowed {max_drop:g}. Nothing was "
            "written. Choose another precision, or raise `max_drop`."
        )
