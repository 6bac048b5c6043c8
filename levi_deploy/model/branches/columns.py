"""A branch that reads a row's numeric and categorical columns."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

from levi_deploy.config import ModelConfig
from levi_deploy.model.branches.facts import Facts

__all__ = ["TabularBranch"]

_DEPTH = 3
_UNKNOWN = 0.05  # share of categories shown as unknown in training, so that the unknown bucket is learned


class TabularBranch(nn.Module):
    """Standardised numbers beside an embedding for each category, then M layers; each layer is a stage."""

    def __init__(self, facts: Facts, config: ModelConfig) -> None:
        super().__init__()
        self.width = config.branch_width
        self.inputs = (*(["numeric"] if facts.numeric else []), *(["categorical"] if facts.categorical else []))
        widths = [min(config.branch_embedding, 1 + buckets) for buckets in facts.categorical]
        pairs = zip(facts.categorical, widths, strict=True)
        self.embeddings = nn.ModuleList(nn.Embedding(buckets, width) for buckets, width in pairs)
        sizes = [facts.numeric + sum(widths), *[self.width] * (config.branch_depth or _DEPTH)]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.dropout = nn.Dropout(config.branch_dropout)

    def stages(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """The M stages, (B, S) each, from ``numeric`` (B, n) and ``categorical`` (B, m)."""
        parts = [inputs["numeric"]] if "numeric" in self.inputs else []
        if "categorical" in self.inputs:
            known = inputs["categorical"]
            if self.training:
                known = known * (torch.rand(known.shape, device=known.device) >= _UNKNOWN)
            parts += [embedding(known[:, c]) for c, embedding in enumerate(self.embeddings)]
        state = torch.cat(parts, dim=1)
        stages = []
        for layer in self.layers:
            state = self.dropout(torch.relu(layer(state)))
            stages.append(state)
        return stages
