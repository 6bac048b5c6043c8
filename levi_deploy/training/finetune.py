"""Train a whole backbone first, for LEVI on a fine-tuned backbone (the paper's Remark 5). It is frozen afterwards.

One linear head on the pooled last layer trains with it, in the one loop of ``fit``; that head is not kept. Full
fine-tuning as a method of its own, which keeps its head, is ``levi_deploy.methods.full_fine_tuning``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from levi_deploy.config import Config, Pooling
from levi_deploy.model.backbone import Backbone
from levi_deploy.model.build import build
from levi_deploy.model.levi import Levi
from levi_deploy.run import TUNED
from levi_deploy.training.device import settle
from levi_deploy.training.fit import Progress, fit, linear
from levi_deploy.training.prepare import Prepared

__all__ = ["fine_tune"]

_STATE = "fine_tune.safetensors"


def fine_tune(prepared: Prepared, output: Path, config: Config, *, progress: Progress | None = None) -> Backbone:
    """Fine-tune a backbone, keep its best epoch by ID validation loss in the run's folder, and load that, frozen.

    A folder that is there is whole, and is loaded as it is.

    Args:
        prepared: training and ID validation rows.
        output: the run's folder.
        config: the backbone and its taps; epochs, rate, batch size and seed.
        progress: given the epoch, its rows done, and all rows.

    Returns:
        The fine-tuned backbone, cut above the deepest of the model's taps.
    """
    tuned = output / TUNED
    if not tuned.is_dir():
        backbone = Backbone.load(config.model.backbone, lambda depth: (depth,), digest=prepared.backbone.digest)
        backbone.unfreeze()
        pooling: Pooling = "last" if backbone.identity.causal else "mean"
        head = replace(config.model, taps=backbone.taps, pooling=pooling, branches=(), head_hidden=0, head_dropout=0.0)
        device = settle(config.training.device)
        ensemble = build(head, backbone.identity, prepared.preprocessing, backbone.taps, task=prepared.task)
        settings = config.training
        fit(
            Levi(backbone, ensemble).to(device),
            prepared.train,
            prepared.validation,
            replace(
                settings,
                epochs=settings.fine_tune,
                learning_rate=settings.fine_tune_rate,
                patience=settings.fine_tune,
                head_weights=(),
                class_weights="none",
            ),
            state=output / _STATE,
            schedule=linear,
            progress=progress,
        )
        backbone.save(tuned)
        (output / _STATE).unlink()
    return Backbone.load(str(tuned), config.model.depths, fine_tuned_from=prepared.backbone)
