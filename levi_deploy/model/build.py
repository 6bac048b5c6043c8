"""The ensemble that fits a backbone and the rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from levi_deploy.config import ModelConfig
from levi_deploy.identity import Identity
from levi_deploy.model.branches import Facts
from levi_deploy.model.levi import Ensemble
from levi_serving.predictions import Task
from levi_serving.rows.columns import ColumnSettings
from levi_serving.rows.preprocess import Preprocessing

__all__ = ["build"]


def build(
    config: ModelConfig,
    backbone: Identity,
    preprocessing: Preprocessing,
    taps: tuple[int, ...],
    *,
    task: Task,
    edges: NDArray[np.int64] | None = None,
) -> Ensemble:
    """Make the ensemble that fits a backbone and the rows' preprocessing.

    Args:
        config: the architecture.
        backbone: which the taps come from.
        preprocessing: what the rows have.
        taps: t_1 < … < t_K.
        task: what it answers.
        edges: (2, E), to train a graph branch.

    Raises:
        UsageError: a branch does not fit the rows.
    """
    image, columns = preprocessing.image, preprocessing.columns or ColumnSettings()
    facts = Facts(
        vocabulary=backbone.vocabulary if preprocessing.text else 0,
        pixels=(image.height, image.width) if image else None,
        numeric=len(columns.numeric),
        categorical=tuple(1 + len(part.values) for part in columns.categorical),
        nodes=tuple(1 + len(part.values) for part in columns.nodes),
        edges=edges,
    )
    widths = tuple(backbone.widths[tap] for tap in taps)
    masked = backbone.modality == "text"
    return Ensemble(config, facts, taps=taps, widths=widths, masked=masked, task=task)
