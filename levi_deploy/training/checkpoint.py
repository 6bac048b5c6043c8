"""A training run on disk: only what was trained, and which backbone it was trained on.

``run.json`` and safetensors, no pickle. The backbone's weights are not in it: its name and digest are,
and a backbone that has changed since is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from levi_deploy.config import Config, ModelConfig
from levi_deploy.model.backbone import Backbone, Identity
from levi_deploy.model.branches import Facts
from levi_deploy.model.levi import Ensemble, Levi
from levi_deploy.model.reference import Reference
from levi_serving.columns import ColumnSettings
from levi_serving.errors import RunError
from levi_serving.predictions import Task
from levi_serving.preprocess import Preprocessing, Preprocessor, Row, rows_from_json, rows_to_json

__all__ = ["Run", "build"]

FORMAT_VERSION = 3
RECORD = "run.json"
WEIGHTS = "weights.safetensors"
ADAPTERS = "adapters.safetensors"
TUNED = "backbone"  # a folder: the backbone, where it was fine-tuned first
SAMPLES = "samples.json"
TARGETS = "targets.json"
LOG = "log.jsonl"


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished training run.

    Attributes:
        folder: where it lies.
        config: what was asked for.
        task: classification, multilabel or regression.
        labels: the C output names.
        taps: the depths read.
        backbone: which backbone it was trained on.
        preprocessing: how rows become arrays.
        record: the architecture, data digests, metrics, parameter counts, versions: what came of it.
    """

    folder: Path
    config: Config
    task: Task
    labels: tuple[str, ...]
    taps: tuple[int, ...]
    backbone: Identity
    preprocessing: Preprocessing
    record: Mapping[str, Any]

    def save(
        self,
        ensemble: Ensemble,
        samples: Sequence[Row],
        targets: NDArray[Any],
        *,
        adapters: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Write the run; ``run.json`` comes last, so a folder that has it is whole."""
        save_file(ensemble.state_dict(), self.folder / WEIGHTS)
        if adapters:
            save_file(dict(adapters), self.folder / ADAPTERS)
        (self.folder / SAMPLES).write_text(rows_to_json(samples, self.preprocessing) + "\n", encoding="utf-8")
        (self.folder / TARGETS).write_text(json.dumps(targets.tolist()) + "\n", encoding="utf-8")
        document = {
            "format_version": FORMAT_VERSION,
            "config": self.config.to_dict(),
            "task": self.task,
            "labels": self.labels,
            "taps": self.taps,
            "backbone": asdict(self.backbone),
            "preprocessing": asdict(self.preprocessing),
            "record": self.record,
        }
        aside = self.folder / (RECORD + ".partial")
        aside.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        aside.replace(self.folder / RECORD)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open a finished run.

        Raises:
            RunError: there is none in the folder, it is unfinished, damaged or of another version.
        """
        path = folder / RECORD
        if not path.is_file():
            unfinished = (folder / "state.safetensors").is_file()
            found = (
                "the run in it is unfinished; go on with 'levi train … --resume'"
                if unfinished
                else (
                    "it is a bundle, not a run" if (folder / "levi.json").is_file() else f"there is no {RECORD} in it"
                )
            )
            raise RunError(f"{folder} is not a finished training run: {found}.")
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if document["format_version"] != FORMAT_VERSION:
                raise RunError(
                    f"{path} has format version {document['format_version']!r}; this levi-deploy reads "
                    f"{FORMAT_VERSION}. Train again, or use the version that wrote it."
                )
            return cls(
                folder=folder,
                config=Config.from_dict(document["config"]),
                task=document["task"],
                labels=tuple(document["labels"]),
                taps=tuple(document["taps"]),
                backbone=Identity(**document["backbone"]),
                preprocessing=Preprocessing.from_json(document["preprocessing"]),
                record=document["record"],
            )
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{path} is damaged ({type(error).__name__}: {error}). Train again.") from error

    @property
    def samples(self) -> list[dict[str, Any]]:
        """Validation rows, short to long, kept for the proof at export."""
        return rows_from_json((self.folder / SAMPLES).read_text(encoding="utf-8"), self.preprocessing)

    @property
    def targets(self) -> NDArray[Any]:
        """What these rows should be answered with, as ``encode_targets`` gives it."""
        return np.asarray(json.loads((self.folder / TARGETS).read_text(encoding="utf-8")))

    def ensemble(self) -> Ensemble:
        """What was trained.

        Raises:
            RunError: the weights are missing, damaged, or of another architecture.
        """
        ensemble = build(
            self.config.model, self.backbone, self.preprocessing, self.taps, task=self.task, outputs=len(self.labels)
        )
        try:
            ensemble.load_state_dict(load_file(self.folder / WEIGHTS))
        except Exception as error:  # safetensors' own error type is not public
            raise RunError(f"{self.folder / WEIGHTS} is missing or damaged: {error}. Train again.") from error
        return ensemble.eval()

    def levi(self, *, backbone: str | None = None) -> Levi:
        """The whole model, its backbone loaded and checked.

        Args:
            backbone: where the backbone lies now; where it lay in training when None.

        Raises:
            UsageError: the backbone cannot be loaded or is not the one trained on.
            RunError: the run is damaged.
        """
        loaded = None
        if self.taps:
            tuned = self.folder / TUNED
            source = str(tuned) if tuned.is_dir() else backbone or self.config.model.backbone
            loaded = Backbone.load(source, lambda _: self.taps, digest=self.backbone.digest)
            if rank := self.config.model.lora:
                loaded.add_adapters(rank)
                loaded.merge(load_file(self.folder / ADAPTERS))
        return Levi(loaded, self.ensemble()).eval()

    def reference(self, *, backbone: str | None = None) -> Reference:
        """The torch model behind the runner's three verbs."""
        return Reference(
            self.levi(backbone=backbone),
            Preprocessor(self.folder, self.preprocessing),
            self.task,
            self.labels,
            abstain_above=self.record["abstain_above"],
        )


def build(
    config: ModelConfig,
    backbone: Identity,
    preprocessing: Preprocessing,
    taps: tuple[int, ...],
    *,
    task: Task,
    outputs: int,
    edges: NDArray[np.int64] | None = None,
) -> Ensemble:
    """Make the ensemble that fits a backbone and the rows' preprocessing.

    Args:
        config: the architecture.
        backbone: which the taps come from.
        preprocessing: what the rows have.
        taps: t_1 < … < t_K.
        task: classification, multilabel or regression.
        outputs: C.
        edges: (2, E), to train a graph branch.

    Raises:
        UsageError: a branch does not fit the rows.
    """
    image, columns = preprocessing.image, preprocessing.columns or ColumnSettings()
    facts = Facts(
        vocabulary=backbone.vocabulary if preprocessing.text else 0,
        pixels=(image.height, image.width) if image else None,
        numeric=len(columns.numeric),
        categorical=tuple(1 + len(part.values) for part in columns.categorical),
        nodes=tuple(1 + len(part.values) for part in columns.nodes),
        edges=edges,
    )
    widths = tuple(backbone.widths[tap] for tap in taps)
    masked = backbone.modality == "text"
    return Ensemble(config, facts, taps=taps, widths=widths, masked=masked, task=task, outputs=outputs)
