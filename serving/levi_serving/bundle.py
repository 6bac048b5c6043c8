"""The bundle on disk: one reader and one writer, nothing unpickled.

A bundle is a folder; ``levi.json`` says what is in it and holds the SHA-256 of every other file and
of itself. This file knows the folder's layout; it opens no session and tokenises nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self, cast, get_args

import numpy as np
from numpy.typing import NDArray

from levi_serving import atomic
from levi_serving.errors import BundleError
from levi_serving.predictions import Task
from levi_serving.rows.preprocess import Preprocessing

__all__ = [
    "CARD",
    "CERTIFICATE",
    "CPU_GRAPH",
    "GOLDEN",
    "GRAPH",
    "MANIFEST",
    "REAL_ROWS",
    "WEIGHTS",
    "Bundle",
    "GraphDevice",
    "GraphFile",
    "Manifest",
    "Precision",
    "Tensor",
    "sha256",
]

FORMAT_VERSION = 1

MANIFEST = "levi.json"
GRAPH = "model.onnx"
CPU_GRAPH = "model.cpu.onnx"
WEIGHTS = "model.onnx.data"
GOLDEN = "golden.npz"
REAL_ROWS = "rows.npz"
CERTIFICATE = "parity.json"
CARD = "README.md"

Precision = Literal["fp32", "fp16", "bf16", "int8", "int4"]
"""What the backbone computes in (int4: what its weights are stored in); heads and average always use fp32."""

GraphDevice = Literal["any", "cpu", "cuda"]
"""What a graph is made for."""


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """An input or output of the graph; a symbolic dimension is its name."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, kw_only=True)
class GraphFile:
    """The manifest's entry for one graph of the model.

    Attributes:
        file: its name in the bundle; its weights lie beside it, in a file that graphs may share.
        precision: of the backbone.
        device: what it is made for; ``any`` has only standard operators.
        opset: of ONNX's own operators.
        changes: what was cut, fused or quantised after tracing, and how often.
    """

    file: str = GRAPH
    precision: Precision = "fp32"
    device: GraphDevice = "any"
    opset: int = 20
    changes: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, found, known in (("precision", self.precision, Precision), ("device", self.device, GraphDevice)):
            if found not in get_args(known):
                raise ValueError(
                    f"the graph {self.file} has the {name} {found!r}; known are {', '.join(get_args(known))}"
                )


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What ``levi.json`` says.

    Attributes:
        task: what it answers.
        preprocessing: how rows become the graph's inputs.
        inputs: the graph's inputs.
        outputs: the graph's outputs: ``logits``, ``head_logits`` and, where a backbone is read, ``novelty``.
        average: what the heads' average is taken of.
        taps: the backbone depths that are read, 0 (embeddings) … L.
        model: the architecture in words and numbers: backbone, taps, branches, heads, parameter counts.
        graphs: the graphs of this one model, in order of preference.
        provenance: backbone name and digest, package versions, data digest, metrics.
        files: SHA-256 of every other file in the folder, by name.
    """

    task: Task
    preprocessing: Preprocessing
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    average: Literal["logits", "probabilities"]
    taps: tuple[int, ...]
    model: Mapping[str, Any]
    graphs: tuple[GraphFile, ...]
    provenance: Mapping[str, Any]
    files: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The file's content without its version and digest, as plain values."""
        own = self.task
        task: dict[str, Any] = {"task": own.kind, "labels": own.labels, "abstain_above": own.abstain_above}
        if own.abstain_by != "disagreement":
            task["abstain_by"] = own.abstain_by
        if own.novelty_quantiles is not None:
            task["novelty_quantiles"] = own.novelty_quantiles
        return asdict(self) | task

    def room(self, count: int) -> dict[str, NDArray[np.float32]]:
        """Empty arrays for the graph's answers to N = ``count`` rows, by the output's name."""
        return {tensor.name: np.empty((count, *map(int, tensor.shape[1:])), np.float32) for tensor in self.outputs}

    @property
    def digest(self) -> str:
        """SHA-256 of everything the manifest says, and so of the whole bundle."""
        return hashlib.sha256(_canonical(self.to_dict())).hexdigest()

    def to_json(self) -> str:
        """Write it out, version first, digest last."""
        document = {"format_version": FORMAT_VERSION, **self.to_dict(), "digest": self.digest}
        return json.dumps(document, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, *, name: str) -> Self:
        """Read it back.

        Args:
            text: the file's content.
            name: how messages call the file.

        Raises:
            BundleError: it is not such a file, of a newer version, or changed after it was written.
        """
        try:
            document = json.loads(text)
        except ValueError as error:
            raise BundleError(
                f"{name} is not valid JSON ({error}): the file is damaged or cut short. Copy or export it again."
            ) from error
        if not isinstance(document, dict) or "format_version" not in document:
            raise BundleError(
                f"{name} has no format_version: this is not the manifest of a LEVI bundle. "
                "Name a folder that 'levi export' wrote."
            )
        version = document.pop("format_version")
        if version != FORMAT_VERSION:
            raise BundleError(
                f"{name} has format version {version!r}; this levi-deploy reads version {FORMAT_VERSION}. "
                "Upgrade levi-deploy, or export the run again with this version."
            )
        digest = document.pop("digest", None)
        if digest != hashlib.sha256(_canonical(document)).hexdigest():
            raise BundleError(
                f"{name} was changed after export: its content does not have the digest it states. "
                "A bundle is not edited by hand; export the run again."
            )
        try:
            task = Task(
                kind=document.pop("task"),
                labels=tuple(document.pop("labels")),
                abstain_by=document.pop("abstain_by", "disagreement"),
                abstain_above=document.pop("abstain_above"),
                novelty_quantiles=tuple(document.pop("novelty_quantiles", ())) or None,
            )
            return cls(
                **{
                    **document,
                    "task": task,
                    "taps": tuple(document["taps"]),
                    "preprocessing": Preprocessing.from_json(document["preprocessing"]),
                    "inputs": _tensors(document["inputs"]),
                    "outputs": _tensors(document["outputs"]),
                    "graphs": tuple(GraphFile(**graph) for graph in document["graphs"]),
                }
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(
                f"{name} lacks or misnames an entry ({error}): it was written by something else. "
                "Upgrade levi-deploy, or export the run again."
            ) from error


def _tensors(described: list[dict[str, Any]]) -> tuple[Tensor, ...]:
    return tuple(Tensor(**{**tensor, "shape": tuple(tensor["shape"])}) for tensor in described)


def _canonical(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, ensure_ascii=False).encode()


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: every file is there and is the one that was exported."""

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: Path | str) -> Self:
        """Open a bundle and check its version and every digest.

        Raises:
            BundleError: which file is wrong, what was found, what was expected, what to do.
        """
        bundle = cls.read(folder)
        bundle.check()
        return bundle

    @classmethod
    def read(cls, folder: Path | str) -> Self:
        """Read only a bundle's manifest. Its files are not compared with their digests before ``check``.

        Raises:
            BundleError: it is no bundle, or of a newer version.
        """
        folder = Path(folder)
        if not (folder / MANIFEST).is_file():
            found = "no such folder" if not folder.exists() else f"there is no {MANIFEST} in it"
            hint = (
                "; it is a training run: 'levi export' makes a bundle of it" if (folder / "run.json").is_file() else ""
            )
            raise BundleError(f"{folder} is not a LEVI bundle: {found}{hint}. Name a folder that 'levi export' wrote.")
        try:
            text = (folder / MANIFEST).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise BundleError(
                f"{folder / MANIFEST} is not UTF-8 text: it is damaged. Copy the bundle again."
            ) from error
        return cls(folder, Manifest.from_json(text, name=str(folder / MANIFEST)))

    def check(self) -> None:
        """Compare every file with its digest.

        Raises:
            BundleError: which file is wrong, what was found, what was expected, what to do.
        """
        for name, expected in self.manifest.files.items():
            path = self.folder / name
            if not path.is_file():
                raise BundleError(f"{path} is missing from the bundle. Copy the whole folder again.")
            if (found := sha256(path)) != expected:
                raise BundleError(
                    f"{path} is damaged or is not the exported file: its SHA-256 is {found[:12]}…, "
                    f"expected {expected[:12]}…. Copy the bundle again, or export the run again."
                )

    @classmethod
    def write(cls, folder: Path, manifest: Manifest) -> Self:
        """Seal a folder: digest every file in it and write the manifest, last and whole."""
        files = {
            path.name: sha256(path) for path in sorted(folder.iterdir()) if path.is_file() and path.name != MANIFEST
        }
        sealed = replace(manifest, files=files)
        atomic.write(folder / MANIFEST, sealed.to_json())
        return cls(folder, sealed)

    def graph(self, precision: str | None = None, *, device: str = "cpu") -> GraphFile:
        """The first graph that runs on a device.

        Args:
            precision: of the graph; any when None.
            device: ``cpu``, ``cuda`` or ``tensorrt``.

        Raises:
            BundleError: the bundle has no such graph.
        """
        for graph in self.manifest.graphs:
            if precision in (None, graph.precision) and graph.device in ("any", device):
                return graph
        there = ", ".join(f"{g.precision} for {g.device} device" for g in self.manifest.graphs)
        raise BundleError(
            f"{self.folder} has no {f'{precision} ' if precision else ''}graph for the device {device!r}; it has "
            f"{there}. Choose one of these, or export the run again with other precisions."
        )

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(path.stat().st_size for path in self.folder.iterdir() if path.is_file())


def read_certificate(folder: Path, file: str) -> dict[str, Any]:
    """The certificate of one graph, by the graph's file, as written at export.

    Raises:
        BundleError: the graph has none.
    """
    certificates = json.loads((folder / CERTIFICATE).read_text(encoding="utf-8"))
    if file not in certificates:
        raise BundleError(
            f"{folder / CERTIFICATE} has no certificate for {file}; it has {', '.join(certificates)}. "
            "Copy or export the bundle again."
        )
    return cast("dict[str, Any]", certificates[file])
