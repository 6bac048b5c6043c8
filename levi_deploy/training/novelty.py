"""Fit how far a row lies from the training rows: after training, on taps that are stored."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from levi_deploy.config import FIXED_POOLINGS, Pooling
from levi_deploy.model.backbone import Backbone
from levi_deploy.model.levi import Levi
from levi_deploy.model.novelty import CENTROIDS, places
from levi_deploy.model.pooling import FixedPooling
from levi_deploy.training.clusters import kmeans
from levi_deploy.training.prepare import Examples

__all__ = ["fit_novelty", "pooled_taps", "quantiles"]

_SHRINKAGE = 1e-4
"""What is added to the covariance's diagonal, as a share of its mean: rows may be fewer than dimensions."""
_LEAST_DEVIATION = 0.01
"""Of a direction, as a share of the values' root mean square: below it, rounding would be taken for distance."""
_LEAST_SPREAD = 0.2
"""Of a logarithm on ID validation rows: a distance that hardly varies among them tells nothing."""
_BATCH = 256
_STEPS = 100


@torch.inference_mode()
def fit_novelty(levi: Levi, train: Examples, validation: Examples, *, seed: int) -> None:
    """Fit the model's ``Novelty`` in place.

    Args:
        levi: trained, with taps.
        train: training rows: what is at home.
        validation: ID validation rows, on which both distances get their units.
        seed: of the clusters.
    """
    levi.eval()
    novelty = levi.ensemble.novelty
    assert novelty is not None  # noqa: S101  # the model has taps
    pooled = partial(
        pooled_taps,
        taps=places(len(levi.ensemble.taps)),
        masked=levi.ensemble.masked,
        pooling=levi.ensemble.config.pooling,
        backbone=levi.backbone,
    )
    middle, last = pooled(train)
    centre, whitening = _whitening(middle)
    directions = _normalised(last)
    origin = directions.mean(axis=0)
    found, _ = kmeans(directions, min(CENTROIDS, len(directions)), seed=seed)
    centroids = _normalised(found) - origin
    for buffer, value in (
        (novelty.centre, centre),
        (novelty.whitening, whitening),
        (novelty.origin, origin),
        (novelty.centroids, np.resize(centroids, (CENTROIDS, centroids.shape[1]))),  # of few rows some stand twice
    ):
        buffer.copy_(torch.from_numpy(value))
    known = [torch.from_numpy(tap).to(levi.device) for tap in pooled(validation)]
    logarithms = novelty.logarithms(*known).double()
    novelty.mean.copy_(logarithms.mean(dim=0))
    novelty.spread.copy_(logarithms.std(dim=0, correction=0).clamp_min(_LEAST_SPREAD))


def quantiles(novelty: NDArray[np.float32]) -> tuple[float, ...]:
    """The 0 %, 1 % … 100 % quantiles of ID validation rows' novelty, (N,)."""
    values: list[float] = np.quantile(novelty.astype(np.float64), np.linspace(0, 1, _STEPS + 1)).tolist()
    return tuple(float(f"{value:.6g}") for value in values)


def pooled_taps(
    rows: Examples,
    *,
    taps: Sequence[int],
    masked: bool,
    pooling: Pooling = "mean",
    backbone: Backbone | None = None,
) -> list[NDArray[np.float32]]:
    """Some taps of N rows, each pooled by itself: (N, D) each.

    Args:
        rows: with their stored taps, or to run the backbone on.
        taps: which of them, by their number from 0.
        masked: whether the taps' tokens are text, which is padded.
        pooling: of the model; where it has something to learn, taps are pooled to their mean.
        backbone: that gives the taps where they are not stored.
    """
    pool = FixedPooling(pooling if pooling in FIXED_POOLINGS else "mean", 0)
    parts: list[list[NDArray[np.float32]]] = [[] for _ in taps]
    order = np.argsort(rows.encoded.costs, kind="stable")  # rows of like length together pad little
    for start in range(0, len(order), _BATCH):
        hidden, inputs = rows.batch(order[start : start + _BATCH])
        if rows.taps is None and backbone is not None:
            device = next(backbone.parameters()).device
            hidden = backbone({name: array.to(device) for name, array in inputs.items()})
        for part, n in zip(parts, taps, strict=True):
            tap = hidden[n].cpu()
            if tap.dim() == 3:
                tap = pool(tap, inputs["attention_mask"] if masked else None)[0]
            part.append(tap.float().numpy())
    back = np.argsort(order, kind="stable")
    return [np.concatenate(part)[back] for part in parts]


def _normalised(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors (N, D) of length 1."""
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6), np.float32)


def _whitening(rows: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The mean of N rows (D,), and what makes their differences from it of equal spread in all directions (D, D)."""
    values = rows.astype(np.float64)
    centre = values.mean(axis=0)
    covariance = np.cov(values, rowvar=False, bias=True).reshape(values.shape[1], -1)
    least = _LEAST_DEVIATION**2 * float((values**2).mean())
    covariance += np.eye(len(covariance)) * max(
        _SHRINKAGE * float(np.trace(covariance)) / len(covariance), least, 1e-12
    )
    spreads, directions = np.linalg.eigh(covariance)
    whitening = (directions / np.sqrt(np.maximum(spreads, 1e-12))) @ directions.T
    return centre.astype(np.float32), whitening.astype(np.float32)
