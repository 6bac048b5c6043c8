"""k-means, for what is fitted on stored taps."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["kmeans"]

_ITERATIONS = 30


def kmeans(points: NDArray[np.float32], count: int, *, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Clusters by Lloyd's iterations (1982) from a k-means++ start (Arthur and Vassilvitskii 2007).

    Args:
        points: (N, D).
        count: of clusters, at most N.
        seed: of the start.

    Returns:
        The centroids (count, D), and each point's cluster (N,); a cluster may be empty where points are equal.
    """
    random = np.random.default_rng(seed)
    given = torch.from_numpy(np.ascontiguousarray(points, np.float32))
    centroids = given[[int(random.integers(len(given)))]]
    nearest = _distances(given, centroids)[:, 0]
    while len(centroids) < count:
        weights = nearest.double().numpy()
        chance = weights / weights.sum() if weights.sum() else None
        new = given[[int(random.choice(len(given), p=chance))]]
        centroids = torch.cat([centroids, new])
        nearest = torch.minimum(nearest, _distances(given, new)[:, 0])
    cluster = _distances(given, centroids).argmin(dim=1)
    for _ in range(_ITERATIONS):
        sizes = torch.bincount(cluster, minlength=count)
        sums = torch.zeros_like(centroids).index_add_(0, cluster, given)
        centroids = torch.where(sizes[:, None] > 0, sums / sizes.clamp_min(1)[:, None], centroids)
        moved = _distances(given, centroids).argmin(dim=1)
        if torch.equal(moved, cluster):
            break
        cluster = moved
    return centroids.numpy(), cluster.numpy()


def _distances(points: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """Squared Euclidean distances, (N, count)."""
    return torch.cdist(points, centroids).square()
