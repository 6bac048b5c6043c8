"""What LEVI is compared with, as configurations of the same model: one mechanism, no second trainer."""

from __future__ import annotations

from dataclasses import replace

from levi_deploy.config import ModelConfig

__all__ = ["branch_alone", "linear_probe"]


def linear_probe(config: ModelConfig, depth: int) -> ModelConfig:
    """Frozen backbone, one linear head on its mean-pooled last layer (depth L), no branch."""
    plain = replace(config, taps=(depth,), pooling="mean", branches=(), members=1)
    return replace(plain, head_hidden=0, head_dropout=0.0)


def branch_alone(config: ModelConfig) -> ModelConfig:
    """The branch trained from scratch, without the backbone."""
    return replace(config, taps=(), members=1)
