"""The branch g: a small model trained from scratch on the same input. Knows no backbone and no head.

A branch is a module with a ``width`` S and one method, ``stages``, which gives its M stages g_1 … g_M.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor, nn

from levi_deploy.config import ModelConfig

__all__ = ["Branch", "MlpBranch", "branch"]


class Branch(Protocol):
    """What a branch offers; ``depth`` is M and ``width`` S."""

    width: int
    depth: int

    def stages(self, input_ids: Tensor, attention_mask: Tensor) -> list[Tensor]:
        """The M stages, (B, S) each, for token ids and their mask, (B, T) each."""
        ...


class MlpBranch(nn.Module):
    """The mean of the branch's own token embeddings, then M layers; each layer is a stage."""

    def __init__(self, *, vocabulary: int, embedding: int, width: int, depth: int, dropout: float) -> None:
        super().__init__()
        self.width = width
        self.depth = depth
        self.embedding = nn.Embedding(vocabulary, embedding)
        nn.init.normal_(self.embedding.weight, std=0.1)
        sizes = [embedding, *[width] * depth]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.dropout = nn.Dropout(dropout)

    def stages(self, input_ids: Tensor, attention_mask: Tensor) -> list[Tensor]:
        """The M stages, (B, S) each."""
        embedded = self.embedding(input_ids)  # (B, T, E)
        weights = attention_mask.to(embedded.dtype)
        weights = weights / weights.sum(dim=1, keepdim=True)
        state = (weights.unsqueeze(1) @ embedded).squeeze(1)  # (B, E)
        stages = []
        for layer in self.layers:
            state = self.dropout(torch.relu(layer(state)))  # (B, S)
            stages.append(state)
        return stages


def branch(config: ModelConfig, *, vocabulary: int) -> MlpBranch | None:
    """Make the branch that a configuration names; None for ``none``."""
    if config.branch == "none":
        return None
    return MlpBranch(
        vocabulary=vocabulary,
        embedding=config.branch_embedding,
        width=config.branch_width,
        depth=config.branch_depth,
        dropout=config.branch_dropout,
    )
