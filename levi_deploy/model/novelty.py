"""How far a row lies from the training rows, from taps that are read anyway."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["CENTROIDS", "Novelty", "places"]

CENTROIDS = 64
_NEAREST = 1e-3
"""The least distance: below it, rounding would decide the logarithm."""


def places(taps: int) -> tuple[int, int]:
    """Which of K = ``taps`` taps are read: the middle one, of an even number the lower, and the last."""
    return (taps - 1) // 2, taps - 1


class Novelty(nn.Module):
    """Two distances of a row from the training rows; their logarithms, in units of ID validation's spread, summed.

    The middle tap knows length and style: its Mahalanobis distance from the training rows (Lee et al. 2018), without
    classes. The last tap knows topics: its cosine distance from the nearest of 64 centroids of the training rows.

    Nothing here is trained; ``levi_deploy.training.novelty`` fits it after training.

    Args:
        middle: D of the middle tap.
        last: D of the last tap.
    """

    def __init__(self, middle: int, last: int) -> None:
        super().__init__()
        self.centre: Tensor
        self.whitening: Tensor
        self.origin: Tensor
        self.centroids: Tensor
        self.mean: Tensor
        self.spread: Tensor
        self.register_buffer("centre", torch.zeros(middle))
        self.register_buffer("whitening", torch.zeros(middle, middle))
        self.register_buffer("origin", torch.zeros(last))
        self.register_buffer("centroids", torch.zeros(CENTROIDS, last))  # of length 1, less the origin
        self.register_buffer("mean", torch.zeros(2))  # of the two logarithms, on ID validation rows
        self.register_buffer("spread", torch.ones(2))

    def forward(self, middle: Tensor, last: Tensor) -> Tensor:
        """From the two pooled taps, (B, D) each, to (B,): above 0 for rows that are further away than most."""
        logarithms = self.logarithms(middle, last)
        return ((logarithms - self.mean) / self.spread).sum(dim=1)

    def logarithms(self, middle: Tensor, last: Tensor) -> Tensor:
        """The logarithms of both distances, (B, 2)."""
        whitened = (middle - self.centre) @ self.whitening
        mahalanobis = (whitened * whitened).mean(dim=1)
        # Of vectors of length 1, 1 - cos is half their squared distance. In many backbones all point one way and it is
        # small: seen from the origin, their mean, it is no difference of two numbers that are nearly alike.
        away = last / (last * last).sum(dim=1, keepdim=True).sqrt().clamp_min(1e-6) - self.origin
        lengths = (self.centroids * self.centroids).sum(dim=1) / 2
        cosine = (away * away).sum(dim=1) / 2 + (lengths - away @ self.centroids.T).amin(dim=1)
        return torch.stack([mahalanobis, cosine], dim=1).clamp_min(_NEAREST).log()
