"""What a model is made of, in names, widths and counts: for the record, the manifest and ``levi inspect``.

It runs the branches once on blank rows, since a branch says how many stages it has by giving them. Knows
no files, no training and no printing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn

from levi_deploy.config import FIXED_POOLINGS
from levi_deploy.identity import Identity
from levi_deploy.model.branches import Branch
from levi_deploy.model.levi import Ensemble, Levi
from levi_serving.errors import UsageError
from levi_serving.rows.preprocess import Encoded, Preprocessing

__all__ = ["architecture", "count_stages", "parameters"]

_ROWS = 2


@torch.inference_mode()
def count_stages(ensemble: Ensemble, preprocessing: Preprocessing) -> tuple[int, ...]:
    """M of each branch.

    Raises:
        UsageError: a branch reads what these rows have not, or gives something other than stages of (B, S).
    """
    blank = Encoded.blank(preprocessing, rows=_ROWS).batch(range(_ROWS))
    inputs = {name: torch.from_numpy(array) for name, array in blank.items()}
    counts = []
    training = ensemble.training
    ensemble.eval()
    for name, module in zip(ensemble.names, ensemble.branches[: len(ensemble.names)], strict=True):
        branch = cast("Branch", module)
        if lacks := [read for read in branch.inputs if read not in inputs]:
            raise UsageError(
                f"The branch {name!r} does not fit: it reads {lacks[0]}, and rows have {', '.join(inputs)}."
            )
        stages = branch.stages(inputs)
        shapes = {tuple(stage.shape) for stage in stages}
        if shapes != {(_ROWS, branch.width)}:
            found = ", ".join(map(str, sorted(shapes))) or "none"
            raise UsageError(
                f"The branch {name!r} gives stages of the shapes {found} for {_ROWS} rows; expected one or more of "
                f"{(_ROWS, branch.width)}: the rows, and its width."
            )
        counts.append(len(stages))
    ensemble.train(training)
    return tuple(counts)


def architecture(levi: Levi, identity: Identity, stages: Sequence[int]) -> dict[str, Any]:
    """The parts, from the input to the answer.

    Args:
        levi: trained, its backbone cut above the deepest tap.
        identity: of that backbone, or of the one that it does without.
        stages: M of each branch.

    Returns:
        ``backbone`` (its ``layers`` L, and ``widths`` D at depths 0 … L), ``taps`` (``depth``, D, and
        ``pooled``, the width of the pooled tap), ``branches`` (``stages`` M and ``width`` S), ``heads``
        (the ``tap`` it reads, the stage of each branch, from 1, None for none, and its ``weight``), ``members``, how
        often these are there, and ``average``. Each part says how many of its parameters were ``trained``, in all
        members together; ``frozen`` counts those the model keeps: none above the deepest tap.
    """
    ensemble, backbone = levi.ensemble, levi.backbone
    config = ensemble.config
    adapters = sum(tensor.numel() for tensor in backbone.adapters().values()) if backbone is not None else 0
    kept = sum(p.numel() for p in backbone.parameters()) - adapters if backbone is not None else 0
    heads = ensemble.layout(stages)
    return {
        "backbone": {
            "name": identity.title,
            "digest": identity.digest,
            "layers": identity.depth,
            "widths": identity.widths,
            "trained": identity.parameters if identity.fine_tuned else adapters,
            "frozen": 0 if identity.fine_tuned else kept,
        },
        "taps": [
            {
                "depth": tap,
                "width": identity.widths[tap],
                "pooling": config.pooling,
                "queries": 0 if config.pooling in FIXED_POOLINGS else config.queries,
                "pooled": cast("int", pool.width),
                **_counted(ensemble.pools[k :: len(ensemble.taps)]),
            }
            for k, (tap, pool) in enumerate(zip(ensemble.taps, ensemble.pools, strict=False))
        ],
        "branches": [
            {
                "name": name,
                "reads": cast("Branch", branch).inputs,
                "stages": count,
                "width": cast("Branch", branch).width,
                **_counted(ensemble.branches[n :: len(ensemble.names)]),
            }
            for n, (name, branch, count) in enumerate(zip(ensemble.names, ensemble.branches, stages, strict=False))
        ],
        "heads": [
            {
                "tap": None if tap is None else ensemble.taps[tap],
                "stages": [None if stage is None else 1 + stage for stage in read],
                "hidden": 0 if ensemble.apart and tap is not None else config.head_hidden,
                "outputs": ensemble.task.outputs,
                "weight": round(float(ensemble.weights[k :: len(heads)].sum()), 4),
                **_counted(ensemble.heads[k :: len(heads)]),
            }
            for k, (tap, read) in enumerate(heads)
        ],
        "members": ensemble.members,
        "average": config.average_of,
    }


def _counted(part: nn.Module) -> dict[str, int]:
    """Parameters of a part in all members: those that train, and those that only travel with the model."""
    trained = sum(p.numel() for p in part.parameters() if p.requires_grad)
    return {"trained": trained, "frozen": sum(p.numel() for p in part.parameters()) - trained}


def parameters(model: dict[str, Any], identity: Identity, *, outputs: int) -> dict[str, int]:
    """All parts' counts together.

    Returns:
        ``trained`` and ``frozen``, summed over the parts of ``architecture``; ``backbone``, all that the
        backbone has before any cut; ``full_fine_tuning``, what would train with all of the backbone and a
        linear head on its last layer: the baseline.
    """
    parts = [model["backbone"], *model["taps"], *model["branches"], *model["heads"]]
    return {
        "trained": sum(part["trained"] for part in parts),
        "frozen": sum(part["frozen"] for part in parts),
        "backbone": identity.parameters,
        "full_fine_tuning": identity.parameters + (identity.widths[-1] + 1) * outputs,
    }
