"""LEVI: layer-wise ensemble of different views (Roh et al., ICML 2024, arXiv 2402.04644).

A frozen pre-trained backbone, a small branch trained from scratch, and K adapting layers that read
both at several depths. The prediction is their average. One alphabet of shapes: B rows, T tokens,
D backbone width, L backbone depth, K adapting layers, R vectors a pooled tap has, M stages of a
branch, S branch width, C outputs.

This file knows how the parts fit together. It knows no files, no training and no export.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from levi_deploy.config import ModelConfig
from levi_deploy.model.backbone import Backbone, Identity
from levi_deploy.model.branches import branch
from levi_deploy.model.heads import AdaptingHead, average
from levi_deploy.model.pooling import pooling
from levi_serving.predictions import Task

__all__ = ["Ensemble", "Levi"]


class Levi(nn.Module):
    """The whole model: the backbone runs once, and its taps feed the ensemble."""

    def __init__(self, backbone: Backbone | None, ensemble: Ensemble) -> None:
        super().__init__()
        self.backbone = backbone  # None for the branch alone
        self.ensemble = ensemble

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """From token ids and their mask, (B, T) each, to ``logits`` (B, C) and ``head_logits`` (B, K, C)."""
        hidden = self.backbone(input_ids, attention_mask) if self.backbone is not None else []
        logits, head_logits = self.ensemble(hidden, input_ids, attention_mask)
        return logits.float(), head_logits.float()


class Ensemble(nn.Module):
    """All that trains: the taps' poolings, the branch, and the adapting layers whose mean is the prediction.

    It reads hidden states, so training on stored ones needs no backbone.

    Args:
        config: the architecture.
        backbone: which backbone the taps come from.
        taps: t_1 < … < t_K; none for the branch alone.
        task: classification, multilabel or regression.
        outputs: C.
    """

    def __init__(
        self, config: ModelConfig, backbone: Identity, *, taps: tuple[int, ...], task: Task, outputs: int
    ) -> None:
        super().__init__()
        self.config, self.taps, self.task = config, taps, task
        self.branch = branch(config, vocabulary=backbone.vocabulary)
        pools = [pooling(config.pooling, width=backbone.width, queries=config.queries) for _ in taps]
        self.pools = nn.ModuleList(pools)
        self.heads = nn.ModuleList(
            AdaptingHead(
                tap_width=pool.width if pool is not None else 0,
                stage_width=self.branch.width if self.branch is not None else 0,
                outputs=outputs,
                hidden=config.head_hidden,
                dropout=config.head_dropout,
            )
            for pool in pools or (None,)
        )
        # Regression: the target's mean and spread in training, so that heads learn in units of one.
        self.shift: Tensor
        self.scale: Tensor
        self.register_buffer("shift", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, hidden: list[Tensor], input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """From the taps' hidden states to the prediction.

        Args:
            hidden: H_{t_1} … H_{t_K}, (B, T, D) each.
            input_ids: (B, T), for the branch.
            attention_mask: (B, T), 1 for real tokens.

        Returns:
            ``logits`` (B, C), the average, and ``head_logits`` (B, K, C).
        """
        return self.combine(self.pool(hidden, attention_mask), input_ids, attention_mask)

    def pool(self, hidden: list[Tensor], attention_mask: Tensor) -> list[Tensor]:
        """Pool each tap over its tokens: K times (B, T, D) to K times (B, R·D)."""
        return [pool(tap, attention_mask) for pool, tap in zip(self.pools, hidden, strict=True)]

    def combine(self, pooled: list[Tensor], input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Let every adapting layer read its tap beside its branch stage, and average.

        Args:
            pooled: the K taps, (B, R·D) each; empty for the branch alone.
            input_ids: (B, T).
            attention_mask: (B, T).

        Returns:
            ``logits`` (B, C) and ``head_logits`` (B, K, C).
        """
        stages = self.branch.stages(input_ids, attention_mask) if self.branch is not None else []
        head_logits = torch.stack(
            [
                head(
                    pooled[k] if pooled else None,
                    stages[stage_of(k, heads=len(self.heads), stages=len(stages))] if stages else None,
                )
                for k, head in enumerate(self.heads)
            ],
            dim=1,
        )  # (B, K, C)
        if self.task == "regression":
            head_logits = head_logits * self.scale + self.shift
        return average(head_logits, self.config.average, self.task), head_logits


def stage_of(k: int, *, heads: int, stages: int) -> int:
    """The branch stage m(k) that adapting layer k reads, both counted from 0.

    In order, evenly, and the last adapting layer reads the last stage.
    """
    return -(-(k + 1) * stages // heads) - 1
