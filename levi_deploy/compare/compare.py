"""``levi compare``: the same trials for each method, chosen on ID validation, measured on ID and OOD rows.

A trial is a run like any other, kept in ``runs/METHOD/CHOICE-SEED`` of the report's folder (with ``-on-`` and a digest
behind it where it is made of other runs), so what was finished before an interruption is not trained again, and any of
them can be exported.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from levi_deploy.compare.measure import Measured, TestRows, measure, read_test_rows
from levi_deploy.compare.report import in_words, write
from levi_deploy.config import Config
from levi_deploy.methods import METHODS
from levi_deploy.methods.jobs import Choice, Job
from levi_deploy.methods.table import CHOICES
from levi_deploy.methods.weights import validation_loss
from levi_deploy.model.backbone import Backbone
from levi_deploy.run import RECORD, Run
from levi_deploy.training import Prepared, prepare
from levi_serving import job
from levi_serving.environment import cache_folder
from levi_serving.errors import DivergenceError, MissingExtraError, UsageError

__all__ = ["DEFAULT_METHODS", "compare"]

DEFAULT_METHODS = ("scratch", "linear-probe", "fine-tune", "levi", "levi-on-fine-tuned", "no-branch")

_REQUEST = "request.json"

Progress = Callable[[str, float, float], None]


def compare(
    data: Path,
    output: Path,
    config: Config,
    *,
    methods: Sequence[str] = DEFAULT_METHODS,
    seeds: int = 3,
    budget: int = 3,
    splits: Sequence[str] = (),
    by: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train every method on the same rows and measure it on rows that no choice has seen.

    Each method has ``budget`` trials with the first seed, which differ in the learning rate, or in what it has in the
    place of one; the one with the lowest ID validation loss is trained with the other seeds too. Nothing else is
    chosen, and nothing on test rows.

    Args:
        data: a table whose split column tells training, ID validation and test rows apart.
        output: the report's folder.
        config: of the LEVI model; the methods change it.
        methods: names of ``METHODS``. One that is made of runs of others brings these with it.
        seeds: how many, from the configuration's on.
        budget: trials of each method, 1 to 4.
        splits: values of the split column to measure, the in-distribution one first; all that are neither training
            nor validation rows when empty, as the table has them.
        by: a column; the rows with each of its values are measured too.
        resume: go on in a folder with trials of the same table and configuration; more methods, seeds or trials
            may be asked for than before.
        overwrite: remove what is in ``output`` first.
        cache: where taps are kept; see ``levi_serving.environment.cache_folder``.
        progress: given what is being done, steps done, and all steps.

    Returns:
        The document of ``results.json``; that, ``report.md`` and ``index.html`` lie in ``output``.

    Raises:
        UsageError: a method, a split or a number is wrong.
        MissingExtraError: matplotlib is not installed.
        TableError: the table is wrong.
        DivergenceError: every trial of a method diverged.
    """
    chosen = _with_bases(methods)
    _check(config, chosen, seeds=seeds, budget=budget)
    request = {"data": str(data), **config.to_dict()}
    if (
        not overwrite
        and output.exists()
        and any(output.iterdir())
        and not job.resumes(output / _REQUEST, request, resume=resume)
    ):
        raise UsageError(f"{output} exists and is not empty. Choose another folder, or set `overwrite`.")
    backbone = Backbone.load(config.model.backbone, lambda _: ()).identity
    configs = {name: METHODS[name].configure(config, backbone.depth) for name in chosen}  # wrong settings first
    prepared = prepare(data, config)
    test = read_test_rows(data, config, prepared, splits=splits, by=by)
    if overwrite:
        shutil.rmtree(output, ignore_errors=True)
    job.start(output / _REQUEST, request)

    bench = _Bench(output, prepared, test, cache or cache_folder(), progress or (lambda *_: None))
    for name in chosen:
        others = 0 if METHODS[name].pooled else seeds - 1
        bench.expect(len(METHODS[name].choices(configs[name])[:budget]) + others)
    trials: list[Trial] = []
    for name in chosen:
        trials += _method(name, configs[name], bench, trials, seeds=seeds, budget=budget)
    document = {
        "format_version": 1,
        "data": data.name,
        "rows": {"train": len(prepared.train), "validation": len(prepared.validation), **test.counts()},
        "task": prepared.task.kind,
        "seeds": seeds,
        "budget": budget,
        "config": config.to_dict(),
        "trials": [trial.to_dict() for trial in trials],
    }
    return write(output, document, {trial.key: trial.measured for trial in trials if trial.kept}, test)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of a method, or what became of it.

    Attributes:
        method: its name.
        choice: what tells it from the method's other trials.
        seed: of every random choice.
        bases: the trials that it is made of.
        kept: whether its choice is the method's, so that it counts.
        run: None where the training diverged.
        measured: its answers on test rows, of a kept one.
    """

    method: str
    choice: Choice
    seed: int
    bases: tuple[Trial, ...] = ()
    kept: bool = False
    run: Run | None = None
    measured: Measured | None = None

    @property
    def key(self) -> tuple[str, int]:
        """The method and the seed."""
        return self.method, self.seed

    @property
    def loss(self) -> float:
        """What it is chosen by, on ID validation."""
        return float("inf") if self.run is None else validation_loss(self.run)

    @property
    def base_seconds(self) -> float:
        """All that it took to train what this one is made of, and what that is made of, each run once."""
        runs: dict[Path, float] = {}
        waiting = list(self.bases)
        while waiting:
            trial = waiting.pop()
            waiting += trial.bases
            if trial.run is not None:
                runs[trial.run.folder] = sum(trial.run.record["seconds"].values())
        return sum(runs.values())

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        record: Mapping[str, Any] = self.run.record if self.run is not None else {}
        return {
            "method": self.method,
            "title": METHODS[self.method].title,
            "choice": dict(self.choice),
            "seed": self.seed,
            "kept": self.kept,
            "diverged": self.run is None,
            "run": None if self.run is None else f"runs/{self.method}/{self.run.folder.name}",
            "validation_loss": None if self.run is None else self.loss,
            "validation": record.get("validation"),
            "best_epoch": record.get("best_epoch"),
            "trained_parameters": record["parameters"]["trained"] if record else None,
            "seconds": record.get("seconds"),
            "base_seconds": self.base_seconds,
        }


class _Bench:
    """What all trials share: the rows, the caches, and how far they are."""

    def __init__(self, output: Path, prepared: Prepared, test: TestRows, cache: Path, tell: Progress) -> None:
        self.output, self.prepared, self.test, self.cache, self.tell = output, prepared, test, cache, tell
        self.done = self.all = 0

    def expect(self, trials: int) -> None:
        """So many more there will be."""
        self.all += trials
        self.tell("trials", 0, self.all)

    def make(self, method: str, choice: Choice, config: Config, bases: tuple[Trial, ...]) -> Trial:
        """One trial, or the finished one that lies there."""
        trial = Trial(method=method, choice=choice, seed=config.training.seed, bases=bases)
        folder = self.output / "runs" / method / _name(trial)
        runs = [base.run for base in bases if base.run is not None]
        job = Job(
            choice=choice,
            config=config,
            bases=runs,
            prepared=self.prepared,
            output=folder,
            cache=self.cache,
            progress=lambda step, done, total: self.tell(f"{method}, {folder.name}: {step}", done, total),
        )
        try:
            run = Run.open(folder) if (folder / RECORD).is_file() else METHODS[method].make(job)
        except DivergenceError:
            run = None
        self.done += 1
        self.tell("trials", self.done, self.all)
        return replace(trial, run=run)


def _name(trial: Trial) -> str:
    """Its folder's: choice, seed, and a digest of the runs that it is made of, since with more trials others may be."""
    said = [f"{value:g}" if isinstance(value, float) else str(value) for value in trial.choice.values()]
    name = "-".join([*said, str(trial.seed)])
    digests = [base.run.fingerprint for base in trial.bases if base.run is not None]
    return f"{name}-on-{hashlib.sha256(''.join(digests).encode()).hexdigest()[:8]}" if digests else name


def _method(
    name: str, config: Config, bench: _Bench, before: Sequence[Trial], *, seeds: int, budget: int
) -> list[Trial]:
    """All trials of one method: several choices with the first seed, the best one with the others."""
    method, first = METHODS[name], config.training.seed

    def one(choice: Choice, seed: int) -> Trial:
        rate = choice.get("learning_rate", config.training.learning_rate)
        training = replace(config.training, learning_rate=rate, seed=seed)
        bases = tuple(
            trial
            for on in method.on
            for trial in before
            if trial.method == on and trial.run is not None and (method.pooled or (trial.kept and trial.seed == seed))
        )
        return bench.make(name, choice, replace(config, training=training), bases)

    tried = [one(choice, first) for choice in method.choices(config)[:budget]]
    best = min(tried, key=lambda trial: trial.loss)
    if best.run is None:
        raise DivergenceError(
            f"Every trial of {name!r} diverged: {', '.join(in_words(trial.choice) for trial in tried)}. Lower "
            "`learning_rate`, or leave the method out."
        )
    again = [] if method.pooled else [one(best.choice, seed) for seed in range(first + 1, first + seeds)]
    kept = []
    for trial in (best, *again):
        if trial.run is None:
            raise DivergenceError(
                f"{name!r} diverged with the seed {trial.seed}, at {in_words(trial.choice)}. Lower `learning_rate`."
            )
        measured = measure(trial.run, bench.test, cache=bench.cache)
        kept.append(replace(trial, kept=True, measured=measured))
    return [*kept, *(trial for trial in tried if trial is not best)]


def _with_bases(methods: Sequence[str]) -> list[str]:
    """The methods in the table's order, each after those that it is made of.

    Raises:
        UsageError: there is none, or no such one.
    """
    if unknown := [name for name in methods if name not in METHODS]:
        raise UsageError(f"`methods` has {unknown[0]!r}; expected some of {', '.join(METHODS)}.")
    if not methods:
        raise UsageError(f"`methods` is empty; expected some of {', '.join(METHODS)}.")
    wanted = set(methods)
    for name in reversed(METHODS):
        if name in wanted:
            wanted |= set(METHODS[name].on)
    return [name for name in METHODS if name in wanted]


def _check(config: Config, methods: Sequence[str], *, seeds: int, budget: int) -> None:
    """Refuse numbers out of range, and a configuration whose methods could not be told apart."""
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", "plot", "Drawing the report")
    if seeds < 1:
        raise UsageError(f"`seeds` is {seeds}; expected 1 or more.")
    if not 1 <= budget <= CHOICES:
        raise UsageError(f"`budget` is {budget}; expected 1 to {CHOICES} trials for each method.")
    if seeds == budget == 1 and (pooled := [name for name in methods if METHODS[name].pooled]):
        raise UsageError(
            f"{pooled[0]!r} is made of all runs of {METHODS[pooled[0]].on[0]!r}, and there is one. Set `budget` or "
            "`seeds` to 2 or more."
        )
    if config.data.split_column is None:
        raise UsageError("`split_column` is not set; a comparison needs it to tell test rows from training rows.")
    if config.training.fine_tune or config.training.train_backbone or config.model.lora:
        raise UsageError(
            "The configuration trains the backbone already (`fine_tune`, `train_backbone` or `lora`); expected that of "
            "a LEVI model on a frozen one, which the methods change."
        )
