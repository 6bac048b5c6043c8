"""A choice that sees shift: the members of LEVI's family, judged on training rows that were held out together.

Plain ID validation prefers what fits the training distribution, wherever that leads. So part of the training rows is
held out that differs from the rest: a domain where rows have names of domains, else a cluster of each class in the
*middle* tap, which tells rows apart by style rather than by what is asked. Each candidate is trained on the rest and
judged on what was held out; the simplest one inside the noise is chosen. No row outside the training rows takes part.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from levi_deploy.config import Config, ModelConfig, Pooling
from levi_deploy.model.build import build
from levi_deploy.model.heads import average
from levi_deploy.model.levi import Levi
from levi_deploy.model.novelty import places
from levi_deploy.training.calibrate import head_weights
from levi_deploy.training.clusters import kmeans
from levi_deploy.training.fit import fit, predict
from levi_deploy.training.novelty import pooled_taps
from levi_deploy.training.prepare import Examples, Prepared
from levi_serving import atomic
from levi_serving.errors import DivergenceError, UsageError
from levi_serving.predictions import Outputs, TaskKind

__all__ = ["Candidate", "choose", "family", "folds", "select"]

_FOLDS = 3
_FEWEST = 8  # rows that are worth holding out
_PROBE_RATE = 10.0  # a linear layer on normalised features bears higher rates than what is deeper, and needs them

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Candidate:
    """A member of the family.

    Attributes:
        name: in the record.
        model: its architecture.
        rate: what the learning rate is multiplied by.
    """

    name: str
    model: ModelConfig
    rate: float = 1.0


def family(config: ModelConfig, depths: tuple[int, ...]) -> list[Candidate]:
    """The candidates without branch, from the simplest up.

    A linear probe on the deepest tap; then each form of adapting layer on the deepest tap alone and on all.

    Args:
        config: the model that was asked for: its taps, widths and drop-out are those of all.
        depths: its taps t_1 < … < t_K.
    """
    last, bare = depths[-1:], replace(config, branches=(), average="equal")
    probe = replace(bare, taps=last, pooling="mean", head_hidden=0, head_dropout=0.0)
    found = [Candidate("linear probe", probe, rate=_PROBE_RATE)]
    forms: list[Pooling] = ["mean", "tokens", "ladder"]
    if config.pooling not in forms:
        forms.insert(1, config.pooling)
    for form in forms:
        for taps in dict.fromkeys([last, depths]):
            where = "all taps" if len(taps) > 1 else "last tap"
            found.append(Candidate(f"{form}, {where}", replace(bare, taps=taps, pooling=form)))
    return found


def folds(
    rows: Examples, kind: TaskKind, *, domains: Sequence[str] | None, middle: NDArray[np.float32] | None, seed: int
) -> list[tuple[str, NDArray[np.int64]]]:
    """Which training rows are held out together, in up to three ways.

    Args:
        rows: N training rows.
        kind: what their targets are.
        domains: the name of each row's domain; None where there are none.
        middle: the middle tap, mean-pooled, (N, D), for clusters where there are no domains.
        seed: of the clusters.

    Returns:
        The name and the places of what is held out.

    Raises:
        UsageError: there is only one domain, or there are too few rows.
    """
    if domains is not None:
        counts = Counter(domains)
        if len(counts) < 2:
            raise UsageError(
                f"`domain` names a column that has only {domains[0]!r} on training rows; expected two domains or more. "
                "Leave it out, and clusters of rows are held out."
            )
        names = np.asarray(domains)
        held = [(name, np.flatnonzero(names == name)) for name, _ in sorted(counts.items(), key=lambda n: (-n[1], n))]
    else:
        assert middle is not None  # noqa: S101  # where there are no domains
        cluster = _style(middle, _classes(rows.targets, kind), seed)
        held = [(f"cluster {fold + 1}", np.flatnonzero(cluster == fold)) for fold in range(_FOLDS)]
    usable = [(name, places) for name, places in held if _FEWEST <= len(places) <= len(rows) - _FEWEST]
    if not usable:
        raise UsageError(
            f"`select` holds out training rows, but of {len(rows)} no part has {_FEWEST} rows or more beside as many. "
            "Give more rows, or leave `select` out."
        )
    return usable[:_FOLDS]


def _classes(targets: NDArray[Any], kind: TaskKind) -> NDArray[np.int64]:
    """What clusters must not tell apart: the class; which labels hold; the third of the values."""
    if kind == "classification":
        return targets.astype(np.int64)
    if kind == "multilabel":
        return np.unique(targets, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)
    return np.searchsorted(np.quantile(targets, [1 / 3, 2 / 3]), targets).astype(np.int64)


def _style(middle: NDArray[np.float32], classes: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Clusters within each class, numbered alike in all: by their place where all rows vary most."""
    centred = middle - middle.mean(axis=0)
    _, _, directions = np.linalg.svd(centred[: 2 * centred.shape[1] + 1000], full_matrices=False)
    along = centred @ directions[0]
    result = np.zeros(len(middle), dtype=np.int64)
    for value in np.unique(classes):
        members = np.flatnonzero(classes == value)
        if len(members) <= _FOLDS:
            continue
        _, cluster = kmeans(middle[members], _FOLDS, seed=seed)
        places = [along[members[cluster == n]].mean() if (cluster == n).any() else np.inf for n in range(_FOLDS)]
        result[members] = np.argsort(np.argsort(places))[cluster]
    return result


def select(
    prepared: Prepared,
    rows: Examples,
    validation: Examples,
    depths: tuple[int, ...],
    config: Config,
    *,
    state: Path,
    device: torch.device,
    progress: Progress,
) -> tuple[Config, dict[str, Any]]:
    """Choose form of adapting layer, taps, branch, weights of the heads, and epochs.

    Args:
        prepared: what the rows were prepared for.
        rows: training rows with the tokens of all taps stored.
        validation: ID validation rows, likewise; they choose nothing here, and their metric is only written down.
        depths: t_1 < … < t_K, the taps that are stored.
        config: what was asked for.
        state: a file for what is done, so that no training is repeated after an interruption; the caller removes it.
        device: to train on.
        progress: given what is being done, trainings done, and the most there may be.

    Returns:
        The configuration that was chosen, and the record: what was held out, what each candidate reached there and on
        ID validation (``_score``), and what was chosen.

    Raises:
        UsageError: nothing can be held out.
        DivergenceError: every training diverged.
    """
    settings = config.training
    kind = prepared.task.kind
    text = prepared.backbone.modality == "text"
    middle, _ = places(len(depths))
    style = pooled_taps(rows, taps=(middle,), masked=text)[0] if prepared.domains is None else None
    held = folds(rows, kind, domains=prepared.domains, middle=style, seed=settings.seed)
    trials = _Trials(prepared, rows, validation, depths, config, held, state, device, progress)
    found = family(config.model, depths)
    for fold in range(len(held)):
        for candidate in trials.worth(found, fold):
            trials.run(candidate, fold)
    if not any(map(trials.judged, found)):
        raise DivergenceError("Every candidate of `select` diverged. Lower `learning_rate`.")
    chosen = trials.best(found)
    branched = replace(
        chosen, name=f"{chosen.name}, branch", model=replace(chosen.model, branches=config.model.branches)
    )
    if config.model.branches != ():
        for fold in trials.judged(chosen):
            for candidate in trials.affordable([branched], fold):
                trials.run(candidate, fold)
        found.append(branched)
        chosen = trials.best([chosen, branched])
    how, epochs = trials.average(chosen), trials.epochs(chosen)
    rate = settings.learning_rate * chosen.rate
    training = replace(settings, epochs=epochs, learning_rate=rate)
    return replace(config, model=replace(chosen.model, average=how), training=training), {
        "held_out": [{"name": name, "rows": len(places)} for name, places in held],
        "candidates": [trials.record(candidate) for candidate in found if trials.judged(candidate)],
        "chosen": chosen.name,
        "average": how,
        "epochs": epochs,
    }


def choose(scores: Sequence[NDArray[np.float64]]) -> int:
    """The first candidate that is not below the best one by more than the standard error of their difference.

    Args:
        scores: of each candidate, from the simplest up, on the same rows: higher is better, (N,) each.
    """
    best = max(range(len(scores)), key=lambda n: scores[n].mean())
    return next(n for n, own in enumerate(scores) if _behind(own, scores[best]) <= 1)


def _behind(own: NDArray[np.float64], best: NDArray[np.float64]) -> float:
    """How many standard errors of their mean difference one candidate lies below another, row by row."""
    difference = best - own
    error = difference.std() / np.sqrt(len(difference))
    return float(difference.mean() / error) if error else 0.0


class _Trials:
    """Trainings of candidates without what is held out, kept in a file as they are done."""

    def __init__(
        self,
        prepared: Prepared,
        rows: Examples,
        validation: Examples,
        depths: tuple[int, ...],
        config: Config,
        held: Sequence[tuple[str, NDArray[np.int64]]],
        state: Path,
        device: torch.device,
        progress: Progress,
    ) -> None:
        self.prepared, self.rows, self.validation, self.depths = prepared, rows, validation, depths
        self.config, self.held, self.state, self.device, self.tell = config, held, state, device, progress
        self.done: dict[str, dict[str, Any]] = json.loads(state.read_text(encoding="utf-8")) if state.is_file() else {}

    def affordable(self, found: Sequence[Candidate], fold: int) -> list[Candidate]:
        """The candidates, where all of them can still be trained without a part; else none."""
        new = [candidate for candidate in found if fold not in self.judged(candidate)]
        return list(found) if len(self.done) + len(new) <= self.config.training.select_trainings else []

    def worth(self, found: Sequence[Candidate], fold: int) -> list[Candidate]:
        """The candidates to train without a part: those that the parts before have not shown to be worse."""
        if fold == 0:
            return list(found)[: self.config.training.select_trainings]
        there = [candidate for candidate in found if fold - 1 in self.judged(candidate)]
        scores = [self.scores(candidate) for candidate in there]
        best = max(scores, key=lambda own: own.mean(), default=np.zeros(0))
        kept = [c for c, own in zip(there, scores, strict=True) if _behind(own, best) <= 2]
        return self.affordable(kept, fold)

    def run(self, candidate: Candidate, fold: int) -> None:
        """Train a candidate without a part of the training rows, and judge it there."""
        key = f"{candidate.name} | {fold}"
        if key in self.done:
            return
        self.tell(
            f"without {self.held[fold][0]}: {candidate.name}", len(self.done), self.config.training.select_trainings
        )
        out = self.held[fold][1]
        kept = np.setdiff1d(np.arange(len(self.rows)), out)
        taps = candidate.model.depths(self.prepared.backbone.depth)
        of = [self.depths.index(tap) for tap in taps]
        training, held, validation = (
            rows.narrowed(places, of)
            for rows, places in (
                (self.rows, kept),
                (self.rows, out),
                (self.validation, np.arange(len(self.validation))),
            )
        )
        prepared, settings = self.prepared, self.config.training
        torch.manual_seed(settings.seed)
        ensemble = build(
            candidate.model, prepared.backbone, prepared.preprocessing, taps, task=prepared.task, edges=prepared.edges
        )
        levi = Levi(None, ensemble).to(self.device)
        aside = self.state.with_suffix(".safetensors")
        try:
            rate = settings.learning_rate * candidate.rate
            settings = replace(settings, head_weights=(), learning_rate=rate)
            history = fit(levi, training, held, settings, state=aside)
        except DivergenceError:
            return  # not judged, so not chosen
        finally:
            aside.unlink(missing_ok=True)
        answered, known = predict(levi, held), predict(levi, validation)
        self._keep(
            key,
            {
                "equal": _score(answered.logits, held.targets, prepared.task.kind),
                "weighed": _score(self._weighed(answered, known), held.targets, prepared.task.kind),
                "validation": _score(known.logits, validation.targets, prepared.task.kind),
                "epoch": min(history, key=lambda record: record["validation_loss"])["epoch"],
            },
        )

    def _weighed(self, answered: Outputs, known: Outputs) -> NDArray[np.float32]:
        """The answers on held-out rows with the heads weighed on ID validation rows, as they would be in the end."""
        task, of = self.prepared.task, self.config.model.average_of
        weights = head_weights(known.head_logits, self.validation.targets, of=of, kind=task.kind)
        heads = torch.from_numpy(answered.head_logits)
        return average(heads, of, task.kind, torch.from_numpy(weights)).numpy()

    def _keep(self, key: str, result: dict[str, Any]) -> None:
        self.done[key] = result
        atomic.write(self.state, json.dumps(self.done))

    def judged(self, candidate: Candidate) -> list[int]:
        """The parts without which a candidate was trained."""
        return [fold for fold in range(len(self.held)) if f"{candidate.name} | {fold}" in self.done]

    def scores(self, candidate: Candidate, how: str = "equal") -> NDArray[np.float64]:
        """What a candidate scored on all rows that were held out from it, (N,)."""
        return np.concatenate([self.done[f"{candidate.name} | {n}"][how] for n in self.judged(candidate)])

    def best(self, found: Sequence[Candidate]) -> Candidate:
        """The simplest candidate inside the noise, of those that were judged on the most rows."""
        most = max(len(self.judged(candidate)) for candidate in found)
        there = [candidate for candidate in found if len(self.judged(candidate)) == most]
        return there[choose([self.scores(candidate) for candidate in there])]

    def average(self, candidate: Candidate) -> Literal["weighed", "equal"]:
        """Whether weights of the heads help on what was held out."""
        scores = [self.scores(candidate, how) for how in ("equal", "weighed")]
        return "weighed" if choose(scores) else "equal"

    def epochs(self, candidate: Candidate) -> int:
        """The epoch that was best on what was held out: the middle one of all parts."""
        return int(median(self.done[f"{candidate.name} | {n}"]["epoch"] for n in self.judged(candidate)))

    def record(self, candidate: Candidate) -> dict[str, Any]:
        """What a candidate reached, for the run."""
        scores, known = self.scores(candidate), self.scores(candidate, "validation")
        return {
            "name": candidate.name,
            "parts": len(self.judged(candidate)),
            "held_out": round(float(scores.mean()), 4),
            "held_out_weighed": round(float(self.scores(candidate, "weighed").mean()), 4),
            "validation": round(float(known.mean()), 4),
        }


def _score(logits: NDArray[np.float32], targets: NDArray[Any], kind: TaskKind) -> list[float]:
    """A number a row, higher is better: 1 for a right answer; the share of right labels; minus the squared error."""
    if kind == "classification":
        scores = logits.argmax(axis=1) == targets
    elif kind == "multilabel":
        scores = ((logits > 0) == (targets > 0)).mean(axis=1)
    else:
        scores = -((logits[:, 0].astype(np.float64) - targets) ** 2)
    return [round(float(score), 6) for score in scores]
