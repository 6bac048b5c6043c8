"""A branch that reads two nodes of a graph: who, and what, in recommendation.

Propagation is LightGCN's (He et al. 2020): embeddings learned from scratch are averaged over neighbours,
each edge weighed by 1 / sqrt(deg(a) · deg(b)), with nothing else to learn.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from levi_deploy.config import ModelConfig
from levi_deploy.model.branches.facts import Facts

__all__ = ["GraphBranch"]

_DEPTH = 2
_UNSEEN = 0.05  # share of nodes shown as unseen in training, so that the default is learned


class GraphBranch(nn.Module):
    """Stage m sees both nodes after m rounds of propagation: their embeddings and the product of these.

    In evaluation the rounds are folded into a table, so the graph that serves looks two rows up. Node 0 of
    each side stands for unseen ones: it has no edges and keeps its own learned embedding.
    """

    inputs = ("nodes",)

    def __init__(self, facts: Facts, config: ModelConfig) -> None:
        super().__init__()
        self.depth = config.branch_depth or _DEPTH
        self.width = 3 * config.branch_width
        self.users, self.items = facts.nodes
        count = self.users + self.items
        self.embedding = nn.Parameter(0.1 * torch.randn(count, config.branch_width))
        self.dropout = nn.Dropout(config.branch_dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(self.width) for _ in range(self.depth))
        self.folded = nn.ParameterList(  # of no gradient: what propagation came to
            nn.Parameter(torch.zeros(count, config.branch_width), requires_grad=False) for _ in range(self.depth)
        )
        self._edges = self._adjacency(facts.edges, count) if facts.edges is not None else None

    def _adjacency(self, edges: np.ndarray, count: int) -> Tensor:
        """The symmetric normalised adjacency, sparse (count, count); unseen nodes stay themselves."""
        a, b = np.unique(edges, axis=1)
        seen = (a > 0) & (b > 0)
        a, b = a[seen], b[seen] + self.users
        degree = np.bincount(np.concatenate([a, b]), minlength=count)
        weights = 1 / np.sqrt(degree[a] * degree[b])
        alone = np.flatnonzero(degree == 0)
        index = np.stack([np.concatenate([a, b, alone]), np.concatenate([b, a, alone])])
        values = np.concatenate([weights, weights, np.ones(len(alone))]).astype(np.float32)
        matrix = torch.sparse_coo_tensor(
            torch.from_numpy(index), torch.from_numpy(values), (count, count), check_invariants=True
        )
        return matrix.coalesce()

    def propagate(self) -> list[Tensor]:
        """All nodes after 1 … M rounds, each averaged with the rounds before: (users + items, width) each."""
        assert self._edges is not None  # noqa: S101  # only training propagates
        edges = self._edges.to(self.embedding.device)  # no buffer: a model that serves has none
        state, total, tables = self.embedding, self.embedding, []
        for m in range(self.depth):
            state = torch.sparse.mm(edges, state)
            total = total + state
            tables.append(total / (m + 2))
        return tables

    def train(self, mode: bool = True) -> GraphBranch:
        """Fold the rounds into the table when training ends."""
        if not mode and self.training and self._edges is not None:
            with torch.no_grad():
                for folded, table in zip(self.folded, self.propagate(), strict=True):
                    folded.copy_(table)
        return super().train(mode)

    def stages(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """The M stages, (B, S) each, from ``nodes`` (B, 2)."""
        nodes = inputs["nodes"]
        if self.training:
            nodes = nodes * (torch.rand(nodes.shape, device=nodes.device) >= _UNSEEN)
        user, item = nodes[:, 0], nodes[:, 1] + self.users
        tables = self.propagate() if self.training else list(self.folded)
        stages = []
        for table, norm in zip(tables, self.norms, strict=True):
            a, b = F.embedding(user, table), F.embedding(item, table)
            stages.append(self.dropout(norm(torch.cat([a, b, a * b], dim=1))))
        return stages
