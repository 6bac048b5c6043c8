"""Adapting layers, their average and their loss."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from levi_serving.predictions import TaskKind

__all__ = ["AdaptingHead", "average", "loss"]


class AdaptingHead(nn.Module):
    """One adapting layer a_k: reads a pooled tap and a branch stage, answers with C logits.

    Args:
        tap_width: of the pooled tap; 0 when there is none.
        stage_width: S of all branches' stages together; 0 when there is none.
        outputs: C.
        hidden: units of the one hidden layer; 0 makes it linear.
        dropout: share of the inputs dropped in training.
    """

    def __init__(self, *, tap_width: int, stage_width: int, outputs: int, hidden: int, dropout: float) -> None:
        super().__init__()
        # A norm for each tap: without it the depths differ in scale by orders of magnitude.
        self.norm = nn.LayerNorm(tap_width) if tap_width else None
        self.dropout = nn.Dropout(dropout)
        width = tap_width + stage_width
        self.net: nn.Module
        if hidden:
            self.net = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, outputs))
        else:
            self.net = nn.Linear(width, outputs)

    def forward(self, tap: Tensor | None, stages: list[Tensor]) -> Tensor:
        """Read a pooled tap (B, P), None without a backbone, and a stage (B, S) of each branch: (B, C)."""
        parts = list(stages)
        if self.norm is not None and tap is not None:
            parts.insert(0, self.norm(tap))
        result: Tensor = self.net(self.dropout(torch.cat(parts, dim=1)))
        return result


def average(
    head_logits: Tensor, of: Literal["logits", "probabilities"], kind: TaskKind, weights: Tensor | None = None
) -> Tensor:
    """The prediction: the average over the K heads, (B, K, C) to logits (B, C).

    The average of probabilities is returned as its logits, so that softmax (or the logistic function, for
    multilabel) gives it back. Regression has no probabilities: both choices are the average of its values.

    Args:
        head_logits: (B, K, C).
        of: what is averaged.
        kind: what the logits mean.
        weights: of the heads, (K,), above 0 and summing to 1; equal when None.
    """
    if of == "logits" or kind == "regression":
        return head_logits.mean(dim=1) if weights is None else (head_logits * weights[:, None]).sum(dim=1)
    heads = head_logits.shape[1]
    shares = (torch.full((heads,), 1 / heads) if weights is None else weights).log()[:, None].to(head_logits)
    if kind == "classification":
        return (head_logits.log_softmax(dim=2) + shares).logsumexp(dim=1)
    holds, fails = F.logsigmoid(head_logits) + shares, F.logsigmoid(-head_logits) + shares
    return holds.logsumexp(dim=1) - fails.logsumexp(dim=1)


def loss(
    head_logits: Tensor, targets: Tensor, kind: TaskKind, weights: Tensor, class_weights: Tensor | None = None
) -> Tensor:
    """The training loss Σ_k w_k · ℓ(a_k(x), y) / Σ_k w_k, a mean over rows.

    ℓ is cross-entropy, binary cross-entropy (multilabel) or squared error (regression).

    Args:
        head_logits: (B, K, C).
        targets: (B,) class numbers; (B, C) zeros and ones; (B,) values.
        kind: what they are.
        weights: w_1 … w_K, (K,).
        class_weights: of each class, (C,); of each label's presence (multilabel).
    """
    losses = torch.stack(
        [prediction_loss(logits, targets, kind, class_weights) for logits in head_logits.unbind(dim=1)]
    )
    return (weights * losses).sum() / weights.sum()


def prediction_loss(logits: Tensor, targets: Tensor, kind: TaskKind, class_weights: Tensor | None = None) -> Tensor:
    """ℓ for one set of logits (B, C), a mean over rows, weighed by class where weights are given."""
    if kind == "classification":
        return F.cross_entropy(logits, targets, weight=class_weights)
    if kind == "multilabel":
        return F.binary_cross_entropy_with_logits(logits, targets, pos_weight=class_weights)
    return F.mse_loss(logits[:, 0], targets)
