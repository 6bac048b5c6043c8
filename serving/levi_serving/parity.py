"""The proof that a bundle answers as its model does: golden rows, and the comparison that judges them.

``levi export`` writes golden rows with the torch model's own answers and calls ``replay``; ``levi verify``
calls the same ``replay`` on any machine, without torch. So what is proven is what serves: the graph,
the tokenizer, the labels and this runner together. It knows no torch and does not make references.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from levi_serving.bundle import GOLDEN, read_certificate
from levi_serving.errors import BundleError, ParityError
from levi_serving.predictions import Outputs
from levi_serving.preprocess import Encoded, Preprocessing, Row, rows_from_json, rows_to_json
from levi_serving.runner import Runner
from levi_serving.session import Device

__all__ = ["TOLERANCE", "Case", "Golden", "replay", "verify"]

TOLERANCE = 1e-4
"""For fp32: the largest error of any logit, as a share of the reference logits' standard deviation."""


@dataclass(frozen=True)
class Case:
    """One batch at one shape, with the torch model's answers.

    Attributes:
        feeds: the graph's inputs by name.
        rows: (B,), the golden rows whose images and further columns these are; the text is cut to shape.
        reference: the torch model's outputs for them.
    """

    feeds: dict[str, NDArray[Any]]
    rows: NDArray[np.int64]
    reference: Outputs

    @property
    def shape(self) -> dict[str, Any]:
        """Rows, and for text its length and whether any row is shorter."""
        if "attention_mask" not in self.feeds:
            return {"batch": len(self.rows)}
        mask = self.feeds["attention_mask"]
        return {"batch": len(self.rows), "length": mask.shape[1], "padded": bool((mask == 0).any())}


@dataclass(frozen=True)
class Golden:
    """Real rows and shapes with the torch model's answers.

    Attributes:
        rows: N rows as a caller hands them over.
        encoded: their arrays as at training.
        reference: the torch model's outputs, each row computed alone.
        predictions: the prediction column for each row, from the reference.
        cases: batches over many shapes.
    """

    rows: Sequence[Row]
    encoded: Encoded
    reference: Outputs
    predictions: Sequence[object]
    cases: Sequence[Case]

    def save(self, path: Path) -> None:
        """Write everything as arrays; rows as JSON in bytes, so nothing is ever unpickled."""
        arrays: dict[str, NDArray[Any]] = {
            "rows": _packed(rows_to_json(self.rows, self.encoded.settings)),
            "predictions": _packed(json.dumps(list(self.predictions), ensure_ascii=False)),
            "logits": self.reference.logits,
            "head_logits": self.reference.head_logits,
        }
        arrays |= {f"encoded/{name}": array for name, array in self.encoded.stored().items()}
        for n, case in enumerate(self.cases):
            text = {name: array for name, array in case.feeds.items() if name not in self.encoded.arrays}
            arrays |= {f"case_{n}/input/{name}": array.astype(np.int32) for name, array in text.items()}
            arrays[f"case_{n}/rows"] = case.rows
            arrays[f"case_{n}/logits"] = case.reference.logits
            arrays[f"case_{n}/head_logits"] = case.reference.head_logits
        np.savez_compressed(path, **arrays)  # type: ignore[arg-type]  # its last parameter is a flag

    @classmethod
    def load(cls, path: Path, settings: Preprocessing) -> Self:
        """Read it back.

        Raises:
            BundleError: the file is damaged or holds something else.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = dict(file)
            encoded = Encoded.restored(_below(arrays, "encoded/"), settings)
            cases: list[Case] = []
            while f"case_{len(cases)}/logits" in arrays:
                prefix = f"case_{len(cases)}/"
                rows = arrays[prefix + "rows"]
                others = Encoded(settings, None, encoded.arrays).batch(rows) if encoded.arrays else {}
                text = {name: array.astype(np.int64) for name, array in _below(arrays, prefix + "input/").items()}
                reference = Outputs(arrays[prefix + "logits"], arrays[prefix + "head_logits"])
                cases.append(Case(text | others, rows, reference))
            return cls(
                rows=rows_from_json(arrays["rows"].tobytes(), settings),
                encoded=encoded,
                reference=Outputs(arrays["logits"], arrays["head_logits"]),
                predictions=json.loads(arrays["predictions"].tobytes()),
                cases=cases,
            )
        except (KeyError, ValueError, OSError) as error:
            raise BundleError(f"{path} holds no golden rows ({error}). Copy or export the bundle again.") from error


def _packed(text: str) -> NDArray[np.uint8]:
    return np.frombuffer(text.encode(), dtype=np.uint8)


def _below(arrays: dict[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def verify(bundle: Path | str, *, device: Device = "auto", threads: int | None = None) -> dict[str, Any]:
    """Replay a bundle's proof on this machine, without torch.

    Returns:
        The certificate as measured here, in the form of ``parity.json``.

    Raises:
        ParityError: the answers differ; every failure is listed.
        BundleError: the bundle is damaged.
        ProviderError: the device is not there.
    """
    runner = Runner(bundle, device=device, threads=threads)
    tolerance = read_certificate(runner.bundle.folder)["tolerance"]
    golden = Golden.load(runner.bundle.folder / GOLDEN, runner.preprocessor.settings)
    return replay(runner, golden, tolerance=tolerance)


def replay(runner: Runner, golden: Golden, *, tolerance: float = TOLERANCE) -> dict[str, Any]:
    """Compare a runner with the reference: values at many shapes, then whole rows.

    An error is judged by its size against the spread (standard deviation) of the reference logits, and
    every predicted class must be the reference's.

    Returns:
        The certificate, ready for ``parity.json``.

    Raises:
        ParityError: listing every failed check.
    """
    failures: list[str] = []  # names and shapes were held against the manifest when the runner was made
    spread = float(max(golden.reference.logits.std(), 1e-6 * np.abs(golden.reference.logits).max(), 1e-12))
    shapes = []
    for case in golden.cases:
        answers = runner.session.run(case.feeds)
        measured = _compare(Outputs(answers["logits"], answers["head_logits"]), case.reference, runner, spread)
        shape = case.shape
        shapes.append({**shape, **measured})
        what = f"batch {shape['batch']}" + (f" x length {shape['length']}" if "length" in shape else "")
        failures += _judged(measured, what, tolerance)

    encoded = runner.prepare(golden.rows)
    failures += [
        f"{what} for {count} of {len(golden.rows)} golden rows"
        for what, count in _differing(encoded, golden.encoded).items()
        if count
    ]
    batched = runner.run(encoded)
    end_to_end = _compare(batched, golden.reference, runner, spread)
    failures += _judged(end_to_end, f"{len(golden.rows)} whole rows", tolerance)
    predictions = runner.table(runner.finish(batched))["prediction"]
    if runner.task != "regression" and predictions != list(golden.predictions):
        wrong = [n for n, (a, b) in enumerate(zip(predictions, golden.predictions, strict=True)) if a != b]
        failures.append(
            f"{len(wrong)} of {len(predictions)} predictions have another name: golden row {wrong[0]} is "
            f"{predictions[wrong[0]]!r}, expected {golden.predictions[wrong[0]]!r}"
        )
    alone = [runner.run(runner.prepare([row])) for row in golden.rows]
    invariance = float(np.abs(np.concatenate([one.logits for one in alone]) - batched.logits).max())

    if failures:
        raise ParityError(_listed(runner, failures))
    return {
        "precision": runner.graph.precision,
        "tolerance": tolerance,
        "spread": spread,
        "worst_scaled_error": max(m["max_scaled_error"] for m in [*shapes, end_to_end]),
        "rows": {"count": len(golden.rows), **end_to_end},
        "alone_against_batched": {"max_abs_error": invariance, "max_scaled_error": invariance / spread},
        "shapes": shapes,
        "measured_with": {
            "provider": runner.session.provider,
            "onnxruntime": runner.session.version,
            "numpy": np.__version__,
            "machine": platform.machine(),
            "system": platform.system(),
        },
    }


def _compare(found: Outputs, reference: Outputs, runner: Runner, spread: float) -> dict[str, float]:
    """Errors over the average and all heads, and how many rows have the reference's classes."""
    error = max(_largest(found.logits, reference.logits), _largest(found.head_logits, reference.head_logits))
    relative = np.abs(found.logits - reference.logits) / np.maximum(np.abs(reference.logits), spread)
    if runner.task == "classification":
        same = found.logits.argmax(axis=1) == reference.logits.argmax(axis=1)
    elif runner.task == "multilabel":
        same = ((found.logits > 0) == (reference.logits > 0)).all(axis=1)
    else:
        same = np.ones(len(found.logits), dtype=bool)
    return {
        "max_abs_error": error,
        "max_scaled_error": error / spread,
        "max_rel_error": float(relative.max(initial=0)),
        "agreement": float(same.mean()),
    }


def _largest(found: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    difference = np.abs(found.astype(np.float64) - reference)
    return float("inf") if np.isnan(difference).any() else float(difference.max(initial=0))


def _judged(measured: dict[str, Any], what: str, tolerance: float) -> list[str]:
    failures = []
    if not measured["max_scaled_error"] <= tolerance:
        failures.append(
            f"{what}: largest error {measured['max_scaled_error']:.2e} of the logits' spread, allowed {tolerance:.0e}"
        )
    if measured["agreement"] < 1:
        failures.append(f"{what}: {1 - measured['agreement']:.1%} of the rows have another predicted class")
    return failures


def _differing(found: Encoded, expected: Encoded) -> dict[str, int]:
    """Golden rows whose preprocessing gives something else than at training, in words."""
    result = {}
    if found.tokens is not None and expected.tokens is not None:
        pairs = zip(map(found.tokens.row, range(len(found))), map(expected.tokens.row, range(len(found))), strict=True)
        result["the tokenizer gives other token ids"] = sum(not np.array_equal(a, b) for a, b in pairs)
    for name, values in expected.arrays.items():
        same = (found.arrays[name] == values).reshape(len(values), -1).all(axis=1)
        result[f"preprocessing gives another {name!r}"] = int((~same).sum())
    return result


def _listed(runner: Runner, failures: list[str]) -> str:
    return (
        f"{runner.bundle.folder} does not answer as its model does, on {runner.session.provider}:\n"
        + "\n".join(f"- {failure}" for failure in failures)
        + "\nDo not use this bundle; export the run again, and report it if that fails too."
    )
