"""A training run on disk: only what was trained, and which backbone it was trained on.

``run.json`` and safetensors, no pickle. The backbone's weights are not in it: its name and digest are,
and a backbone that has changed since is refused. Reading a run's record needs no torch; its weights do, and only
the functions that load or save them import it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from levi_deploy.config import Config
from levi_deploy.identity import Identity
from levi_serving import atomic
from levi_serving.errors import RunError
from levi_serving.predictions import Task
from levi_serving.rows.preprocess import Preprocessing, Preprocessor, Row, rows_from_json, rows_to_json

if TYPE_CHECKING:
    from torch import Tensor

    from levi_deploy.model import Ensemble, Levi, Reference

__all__ = ["Run"]

FORMAT_VERSION = 6
RECORD = "run.json"
WEIGHTS = "weights.safetensors"
ADAPTERS = "adapters.safetensors"
TUNED = "backbone"  # a folder: the backbone, where it was fine-tuned first
SAMPLES = "samples.json"
TARGETS = "targets.json"
LOG = "log.jsonl"


@dataclass(frozen=True, kw_only=True, repr=False)
class Run:
    """A finished training run.

    Attributes:
        folder: where it lies.
        config: the model, its training and its columns.
        task: what it answers.
        taps: the depths read.
        backbone: which backbone it was trained on.
        preprocessing: how rows become arrays.
        record: the architecture, data digests, metrics, parameter counts, versions: what came of it.
    """

    folder: Path
    config: Config
    task: Task
    taps: tuple[int, ...]
    backbone: Identity
    preprocessing: Preprocessing
    record: Mapping[str, Any]

    def __repr__(self) -> str:
        taps = f"{self.backbone.title}, taps {', '.join(map(str, self.taps))}"
        validation = self.record["validation"]
        metric = next(name for name in validation if name != "rows")
        return (
            f"<Run {self.folder}: {self.task.in_words}; {taps if self.taps else 'no backbone'};\n"
            f" {metric} {validation[metric]:.4f} on {validation['rows']} ID validation rows>"
        )

    def save(
        self,
        ensemble: Ensemble,
        samples: Sequence[Row],
        targets: NDArray[Any],
        *,
        adapters: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Write the run; ``run.json`` comes last, so a folder that has it is whole."""
        from safetensors.torch import save_file

        save_file(ensemble.state_dict(), self.folder / WEIGHTS)
        if adapters:
            save_file(dict(adapters), self.folder / ADAPTERS)
        (self.folder / SAMPLES).write_text(rows_to_json(samples, self.preprocessing) + "\n", encoding="utf-8")
        (self.folder / TARGETS).write_text(json.dumps(targets.tolist()) + "\n", encoding="utf-8")
        document = {
            "format_version": FORMAT_VERSION,
            "config": self.config.to_dict(),
            "task": self.task.kind,
            "labels": self.task.labels,
            "abstain_by": self.task.abstain_by,
            "abstain_above": self.task.abstain_above,
            "novelty_quantiles": self.task.novelty_quantiles,
            "taps": self.taps,
            "backbone": asdict(self.backbone),
            "preprocessing": asdict(self.preprocessing),
            "record": self.record,
        }
        atomic.write(self.folder / RECORD, json.dumps(document, indent=1, ensure_ascii=False) + "\n")

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
                "the run in it is unfinished; continue it with 'levi train … --resume'"
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
                task=Task(
                    kind=document["task"],
                    labels=tuple(document["labels"]),
                    abstain_by=document["abstain_by"],
                    abstain_above=document["abstain_above"],
                    novelty_quantiles=_tuple(document["novelty_quantiles"]),
                ),
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

    @property
    def fingerprint(self) -> str:
        """SHA-256 of ``run.json``: what it was trained on, how, and what came of it."""
        return hashlib.sha256((self.folder / RECORD).read_bytes()).hexdigest()

    def ensemble(self) -> Ensemble:
        """What was trained.

        Raises:
            RunError: the weights are missing, damaged, or of another architecture.
        """
        from safetensors.torch import load_file

        from levi_deploy.model.build import build

        ensemble = build(self.config.model, self.backbone, self.preprocessing, self.taps, task=self.task)
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
        from safetensors.torch import load_file

        from levi_deploy.model import Backbone, Levi

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
        from levi_deploy.model import Reference

        return Reference(
            self.levi(backbone=backbone),
            Preprocessor(self.folder, self.preprocessing),
            self.task,
            fingerprint=self.fingerprint,
        )


def _tuple(values: list[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(values)
