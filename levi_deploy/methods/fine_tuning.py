"""Full fine-tuning: everything trains, with one linear head on the last layer. It ends as a run like every other."""

from __future__ import annotations

from dataclasses import replace

from levi_deploy.config import Config

__all__ = ["full_fine_tuning"]


def full_fine_tuning(config: Config) -> Config:
    """The configuration that trains the whole backbone and one linear head on its mean-pooled last layer.

    Epochs, batch size and seed stay; the learning rate is ``fine_tune_rate``.
    """
    plain = replace(config.model, taps=1, pooling="mean", branches=(), members=1, lora=0)
    return replace(
        config,
        model=replace(plain, head_hidden=0, head_dropout=0.0),
        training=replace(
            config.training,
            train_backbone=True,
            fine_tune=0,
            select=False,
            learning_rate=config.training.fine_tune_rate,
            head_weights=(),
        ),
    )
