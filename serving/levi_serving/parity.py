"""The proof that a bundle answers as its model does: golden rows, and the judge that compares answers with them.

``levi export`` writes golden rows with the torch model's own answers and calls ``replay``; ``levi verify``
calls the same ``replay`` on any machine, without torch. So what is proven is what serves: the graph,
the tokenizer, the labels and this runner together. The reference answers are made in ``levi_export.golden``.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from levi_serving import atomic
from levi_serving.bundle import GOLDEN, REAL_ROWS, Bundle, read_certificate
from levi_serving.engine.runner import Runner
from levi_serving.engine.session import Device, settle
from levi_serving.errors import BundleError, ParityError, ProviderError
from levi_serving.predictions import Outputs, TaskKind
from levi_serving.rows.preprocess import Encoded, Preprocessing, Row, rows_from_json, rows_to_json

__all__ = ["Case", "Golden", "RealRows", "Tolerance", "agreement", "real_answers", "replay", "verify"]

_ALIKE = 0.1  # regression: a value this near, in standard deviations of the reference's, is the same prediction


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far a graph's answers may lie from the reference's.

    Attributes:
        max_error: the largest error of any logit, as a share of the reference logits' standard deviation;
            None where rounding is coarse and only predictions are judged.
        min_agreement: the least share of real rows with the reference's prediction.
    """

    max_error: float | None
    min_agreement: float

    @classmethod
    def of(cls, precision: str, *, min_agreement: float = 0.95) -> Self:
        """A precision's own: fp32 must keep every prediction, a less precise graph the share ``min_agreement``."""
        if precision == "fp32":
            return cls(max_error=1e-4, min_agreement=1.0)
        return cls(max_error=1e-2 if precision in ("fp16", "bf16") else None, min_agreement=min_agreement)

    @classmethod
    def of_certificate(cls, certificate: Mapping[str, Any]) -> Self:
        """The one that a graph was exported with."""
        stated = certificate["standard"]
        return cls(max_error=stated["tolerance"], min_agreement=stated["min_agreement"])

    def to_dict(self) -> dict[str, float | None]:
        """The certificate's entry ``standard``, under the names of format 1."""
        return {"tolerance": self.max_error, "min_agreement": self.min_agreement}


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
        """Its ``batch`` of B rows; for text the ``length`` of T tokens and whether any row is ``padded`` to it."""
        if "attention_mask" not in self.feeds:
            return {"batch": len(self.rows)}
        mask = self.feeds["attention_mask"]
        return {"batch": len(self.rows), "length": mask.shape[1], "padded": bool((mask == 0).any())}


@dataclass(frozen=True)
class Golden:
    """Real rows and shapes with the torch model's answers.

    Attributes:
        rows: N rows as a caller passes them.
        encoded: their arrays, as preprocessed in training.
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
        """Write everything as arrays; rows as JSON in bytes, so that reading never unpickles."""
        arrays: dict[str, NDArray[Any]] = {
            "rows": _packed(rows_to_json(self.rows, self.encoded.settings)),
            "predictions": _packed(json.dumps(list(self.predictions), ensure_ascii=False)),
            **self.reference.arrays,
        }
        arrays |= {f"encoded/{name}": array for name, array in self.encoded.stored().items()}
        for n, case in enumerate(self.cases):
            text = {name: array for name, array in case.feeds.items() if name not in self.encoded.arrays}
            arrays |= {f"case_{n}/input/{name}": array.astype(np.int32) for name, array in text.items()}
            arrays[f"case_{n}/rows"] = case.rows
            arrays |= {f"case_{n}/{name}": values for name, values in case.reference.arrays.items()}
        with atomic.replacing(path) as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # its last parameter is a flag

    @classmethod
    def load(cls, path: Path, settings: Preprocessing) -> Self:
        """Read what ``save`` wrote.

        Raises:
            BundleError: the file is missing, damaged or holds something else.
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
                reference = Outputs.of(_below(arrays, prefix))
                cases.append(Case(text | others, rows, reference))
            return cls(
                rows=rows_from_json(arrays["rows"].tobytes(), settings),
                encoded=encoded,
                reference=Outputs.of(arrays),
                predictions=json.loads(arrays["predictions"].tobytes()),
                cases=cases,
            )
        except (KeyError, ValueError, OSError) as error:
            raise BundleError(f"{path} holds no golden rows ({error}). Copy or export the bundle again.") from error


@dataclass(frozen=True)
class RealRows:
    """More rows than the golden ones, on which a less precise graph's predictions are counted.

    Attributes:
        rows: N rows as a caller passes them.
        reference: the torch model's outputs for them.
    """

    rows: Sequence[Row]
    reference: Outputs

    def save(self, path: Path, settings: Preprocessing) -> None:
        """Write them as ``Golden`` is written."""
        rows, reference = _packed(rows_to_json(self.rows, settings)), self.reference
        with atomic.replacing(path) as file:
            np.savez_compressed(file, rows=rows, **reference.arrays)  # type: ignore[arg-type]  # as above

    @classmethod
    def load(cls, path: Path, settings: Preprocessing) -> Self:
        """Read what ``save`` wrote.

        Raises:
            BundleError: the file is missing, damaged or holds something else.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                rows = rows_from_json(file["rows"].tobytes(), settings)
                return cls(rows, Outputs.of(file))
        except (KeyError, ValueError, OSError) as error:
            raise BundleError(f"{path} holds no rows ({error}). Copy or export the bundle again.") from error


def _packed(text: str) -> NDArray[np.uint8]:
    return np.frombuffer(text.encode(), dtype=np.uint8)


def _below(arrays: dict[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def verify(
    bundle: Path | str, *, device: Device = "auto", threads: int | None = None, precision: str | None = None
) -> dict[str, Any]:
    """Replay a bundle's proof on this machine, without torch, for every graph that can run here.

    Args:
        bundle: the folder.
        device: where graphs run; ``auto`` runs those made for the CPU there, also on a machine with a GPU.
        threads: for one batch; the usable cores when None.
        precision: only graphs of this precision; all when None.

    Returns:
        ``graphs``: by file, the certificate as measured here, in the form of ``parity.json``;
        ``not_run``: by file, why not.

    Raises:
        ParityError: the answers differ; every failure is listed.
        BundleError: the bundle is damaged, or has no graph of that precision.
        ProviderError: the device is not there, or none of the graphs can run here.
    """
    opened = Bundle.open(bundle)
    folder, manifest = opened.folder, opened.manifest
    here = settle(device)
    graphs = [graph for graph in manifest.graphs if precision in (None, graph.precision)]
    if not graphs:
        opened.graph(precision)  # raises, and lists those that are there
    golden = Golden.load(folder / GOLDEN, manifest.preprocessing)
    certificates, not_run = {}, {}
    for graph in graphs:
        own = "cpu" if graph.device == "cpu" and device == "auto" else here
        if graph.device not in ("any", own):
            not_run[graph.file] = f"it is made for {graph.device}, and the device here is {own}"
            continue
        runner = Runner(folder, device=own, threads=threads, graph=graph)
        tolerance = Tolerance.of_certificate(read_certificate(folder, graph.file))
        certificates[graph.file] = replay(runner, golden, tolerance, real=real_answers(runner))
    if not certificates:
        reasons = "; ".join(f"{file}: {why}" for file, why in not_run.items())
        raise ProviderError(
            f"No graph of {folder} can run here: {reasons}. Verify it on a machine that has the device."
        )
    return {"graphs": certificates, "not_run": not_run}


def real_answers(runner: Runner) -> tuple[Outputs, Outputs] | None:
    """The reference's answers to the bundle's real rows, and the runner's; None for an fp32 graph, which needs none."""
    if runner.graph.precision == "fp32":
        return None
    real = RealRows.load(runner.bundle.folder / REAL_ROWS, runner.preprocessor.settings)
    return real.reference, runner.run(runner.prepare(real.rows))


def replay(
    runner: Runner, golden: Golden, tolerance: Tolerance, *, real: tuple[Outputs, Outputs] | None = None
) -> dict[str, Any]:
    """Compare a runner with the reference: values at many shapes, then whole rows.

    An error is measured in standard deviations of the reference logits. A tolerance that wants every prediction
    kept is applied at every shape; one that wants a share of them, to the real rows.

    Args:
        runner: on the graph to judge.
        golden: rows and shapes with the reference's answers.
        tolerance: how far the graph's answers may lie from them.
        real: the reference's answers to more real rows, and the runner's.

    Returns:
        The certificate, ready for ``parity.json``.

    Raises:
        ParityError: listing every failed check.
    """
    failures: list[str] = []  # the runner has already compared names and shapes with the manifest
    deviation = _deviation(golden.reference.logits)
    far = None if golden.reference.novelty is None else _deviation(golden.reference.novelty)
    shapes = []
    for case in golden.cases:
        answers = runner.session.run(case.feeds)
        found = Outputs.of(answers)
        measured = _errors(found, case.reference, runner.task.kind, deviation, far)
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
    end_to_end = _errors(batched, golden.reference, runner.task.kind, deviation, far)
    failures += _judged(end_to_end, f"{len(golden.rows)} whole rows", tolerance)
    predictions = runner.table(runner.finish(batched))["prediction"]
    names = list(golden.predictions)
    same = _same(batched.logits, golden.reference.logits, runner.task.kind)
    wrong = [n for n, (a, b) in enumerate(zip(predictions, names, strict=True)) if a != b and same[n]]
    if runner.task.kind != "regression" and wrong:
        failures.append(
            f"{len(wrong)} of {len(predictions)} predictions have another name: golden row {wrong[0]} is "
            f"{predictions[wrong[0]]!r}, expected {names[wrong[0]]!r}"
        )
    alone = [runner.run(runner.prepare([row])) for row in golden.rows]
    invariance = _largest(np.concatenate([one.logits for one in alone]), batched.logits)
    further = {}
    if real is not None:
        further["real_rows"] = agreed = agreement(*real, kind=runner.task.kind)
        if not agreed["agreement"] >= tolerance.min_agreement:
            failures.append(
                f"{agreed['agreement']:.1%} of {agreed['count']} real rows keep their prediction, expected "
                f"{tolerance.min_agreement:.1%}"
            )

    if failures:
        raise ParityError(_listed(runner, failures))
    return {
        "precision": runner.graph.precision,
        "standard": tolerance.to_dict(),
        "spread": deviation,
        "worst_scaled_error": max(m["max_scaled_error"] for m in [*shapes, end_to_end]),
        "rows": {"count": len(golden.rows), **end_to_end},
        **further,
        "alone_against_batched": {"max_abs_error": invariance, "max_scaled_error": invariance / deviation},
        "shapes": shapes,
        "measured_with": {
            "provider": runner.session.provider,
            "onnxruntime": runner.session.version,
            "numpy": np.__version__,
            "machine": platform.machine(),
            "system": platform.system(),
        },
    }


def _deviation(logits: NDArray[np.float32]) -> float:
    """The unit in which errors are measured: the logits' standard deviation, never 0."""
    return float(max(logits.std(), 1e-6 * np.abs(logits).max(), 1e-12))


def agreement(reference: Outputs, found: Outputs, *, kind: TaskKind) -> dict[str, Any]:
    """How near two models' answers to the same N rows are, for the average and for each head.

    Returns:
        ``count``: N; ``agreement``: the share of rows with the reference's prediction; ``rms_scaled_error``: the
        root mean square error in standard deviations of the reference's logits; ``heads``: both, for each head.
    """

    def error(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
        return float(np.sqrt(((a.astype(np.float64) - b) ** 2).mean())) / _deviation(b)

    heads = range(reference.head_logits.shape[1])
    pairs = [(found.head_logits[:, k], reference.head_logits[:, k]) for k in heads]
    return {
        "count": len(reference.logits),
        "agreement": float(_same(found.logits, reference.logits, kind).mean()),
        "rms_scaled_error": error(found.logits, reference.logits),
        "heads": {
            "agreement": [float(_same(a, b, kind).mean()) for a, b in pairs],
            "rms_scaled_error": [error(a, b) for a, b in pairs],
        },
    }


def _errors(
    found: Outputs, reference: Outputs, kind: TaskKind, deviation: float, far: float | None
) -> dict[str, float]:
    """Errors over the average and all heads, the share of rows with the reference's prediction, and novelty's error.

    Args:
        found: a graph's answers.
        reference: the torch model's.
        kind: what they are.
        deviation: the standard deviation of the reference's logits on real rows.
        far: that of its novelty; None where there is none.
    """
    error = max(_largest(found.logits, reference.logits), _largest(found.head_logits, reference.head_logits))
    relative = np.abs(found.logits - reference.logits) / np.maximum(np.abs(reference.logits), deviation)
    novelty = {}
    if found.novelty is not None and reference.novelty is not None and far is not None:
        novelty["novelty_scaled_error"] = _largest(found.novelty, reference.novelty) / far
    elif found.novelty is not None or reference.novelty is not None:
        novelty["novelty_scaled_error"] = float("inf")  # one of them does not say
    return {
        "max_abs_error": error,
        "max_scaled_error": error / deviation,
        **novelty,
        "max_rel_error": float(relative.max(initial=0)),
        "agreement": float(_same(found.logits, reference.logits, kind, deviation).mean()),
    }


def _same(
    found: NDArray[np.float32], reference: NDArray[np.float32], kind: TaskKind, deviation: float | None = None
) -> NDArray[np.bool_]:
    """(N,) whether each row has the reference's prediction, from logits (N, C)."""
    if kind == "classification":
        same = found.argmax(axis=1) == reference.argmax(axis=1)
    elif kind == "multilabel":
        same = ((found > 0) == (reference > 0)).all(axis=1)
    else:
        same = (np.abs(found - reference) <= _ALIKE * (deviation or _deviation(reference))).all(axis=1)
    return np.asarray(same & np.isfinite(found).all(axis=1))


def _largest(found: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    with np.errstate(invalid="ignore"):  # inf - inf is NaN, which the next line takes for an infinite error
        difference = np.abs(found.astype(np.float64) - reference)
    return float("inf") if np.isnan(difference).any() else float(difference.max(initial=0))


def _judged(measured: dict[str, Any], what: str, tolerance: Tolerance) -> list[str]:
    failures, error = [], measured["max_scaled_error"]
    if not np.isfinite(error):
        failures.append(f"{what}: an answer is not finite")
    elif tolerance.max_error is not None and error > tolerance.max_error:
        failures.append(
            f"{what}: largest error {error:.2e} of the logits' standard deviation, allowed {tolerance.max_error:.0e}"
        )
    novelty = measured.get("novelty_scaled_error", 0.0)
    if not np.isfinite(novelty):
        failures.append(f"{what}: a novelty is not finite, or only the graph or its golden rows have one")
    elif tolerance.max_error is not None and novelty > tolerance.max_error:
        failures.append(
            f"{what}: largest error {novelty:.2e} of novelty's standard deviation, allowed {tolerance.max_error:.0e}"
        )
    if tolerance.min_agreement == 1 and measured["agreement"] < 1:
        failures.append(f"{what}: {1 - measured['agreement']:.1%} of the rows have another prediction")
    return failures


def _differing(found: Encoded, expected: Encoded) -> dict[str, int]:
    """How many golden rows preprocessing turns into other arrays than in training, by what differs."""
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
        f"{runner.bundle.folder / runner.graph.file} does not answer as its model does, on {runner.session.provider}:\n"
        + "\n".join(f"- {failure}" for failure in failures)
        + "\nDo not use this bundle; export the run again, and report it if that fails too."
    )
