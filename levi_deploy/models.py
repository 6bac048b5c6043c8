"""A folder that holds a model: a run or a bundle? Decided here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from levi_serving.bundle import MANIFEST

if TYPE_CHECKING:
    from levi_serving.engine.predictor import Predictor
    from levi_serving.engine.session import Device

__all__ = ["Model", "kind", "load"]


@dataclass(frozen=True, kw_only=True)
class Model:
    """What answers rows, and the column that held the answer in training."""

    predictor: Predictor
    target: str


def kind(folder: Path) -> Literal["run", "bundle"]:
    """What a folder holds; one that holds neither is taken for a run, and opening it says what is wrong."""
    return "bundle" if (folder / MANIFEST).is_file() else "run"


def load(folder: Path, *, backbone: str | None = None, device: Device = "auto") -> Model:
    """Open a run as its torch model, a bundle as a runner.

    Args:
        folder: of a finished run or a bundle.
        backbone: where a run's backbone lies now; where it lay in training when None.
        device: of a bundle.

    Raises:
        RunError, BundleError, ProviderError: it cannot be used.
    """
    if kind(folder) == "bundle":
        from levi_serving.engine.runner import Runner

        runner = Runner(folder, device=device)
        return Model(predictor=runner, target=runner.bundle.manifest.provenance.get("target", "label"))
    from levi_deploy.run import Run

    run = Run.open(folder)
    return Model(predictor=run.reference(backbone=backbone), target=run.config.data.target)
