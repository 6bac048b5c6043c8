"""``levi compare``: the same trials for each method, chosen on ID validation, measured on ID and OOD rows.

A trial is a run like any other, kept in ``runs/METHOD/RATE-SEED`` of the report's folder (``-on-RATE-SEED`` behind it
where it is built on another run), so what was finished before an interruption is not trained again, and any of them can
be exported.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from levi_deploy.compare.measure import Measured, TestRows, measure, read_test_rows
from levi_deploy.compare.report import write
from levi_deploy.config import Config
from levi_deploy.methods import METHODS
from levi_deploy.model.backbone import Backbone
from levi_deploy.run import RECORD, TUNED, Run
from levi_deploy.training import Prepared, prepare, train
from levi_serving import job
from levi_serving.environment import cache_folder
from levi_serving.errors import DivergenceError, MissingExtraError, UsageError

__all__ = ["DEFAULT_METHODS", "RATES", "compare"]

RATES = (1.0, 3.0, 10.0, 1 / 3)
"""What the configuration's learning rate is multiplied by in a method's first, second, … trial."""
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

    Each method has ``budget`` trials with the first seed, which differ in the learning rate; the one with the lowest
    ID validation loss is trained with the other seeds too. Nothing else is chosen, and nothing on test rows.

    Args:
        data: a table whose split column tells training, ID validation and test rows apart.
        output: the report's folder.
        config: of the LEVI model; the methods change it.
        methods: names of ``METHODS``. One that is built on another's backbone brings that one with it.
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
    _check(config, seeds=seeds, budget=budget)
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
    bench.expect(len(chosen) * (budget + seeds - 1))
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
    """One training of a method.

    Attributes:
        method: its name.
        rate: the learning rate.
        seed: of every random choice.
        base_seconds: that training the method took which it is built on.
        kept: whether its learning rate is the method's, so that it counts.
        run: None where the training diverged.
        loss: on ID validation.
        measured: its answers on test rows, of a kept one.
    """

    method: str
    rate: float
    seed: int
    base_seconds: float = 0.0
    kept: bool = False
    run: Run | None = None
    loss: float = float("inf")
    measured: Measured | None = None

    @property
    def key(self) -> tuple[str, int]:
        """The method and the seed."""
        return self.method, self.seed

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        record: Mapping[str, Any] = self.run.record if self.run is not None else {}
        return {
            "method": self.method,
            "title": METHODS[self.method].title,
            "learning_rate": self.rate,
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
        """How many there will be."""
        self.all = trials
        self.tell("trials", 0, trials)

    def train(self, method: str, config: Config, base: Run | None) -> Trial:
        """One trial, or the finished one that lies there."""
        training = config.training
        name = f"{training.learning_rate:g}-{training.seed}"
        prepared = self.prepared
        if base is not None:
            name += f"-on-{base.folder.name}"  # with more trials the base may be another run
            config = replace(config, model=replace(config.model, backbone=str(base.folder / TUNED)))
            prepared = replace(prepared, backbone=base.backbone)
        before = sum(base.record["seconds"].values()) if base is not None else 0.0
        folder = self.output / "runs" / method / name
        trial = Trial(method=method, rate=training.learning_rate, seed=training.seed, base_seconds=before)
        try:
            run = Run.open(folder) if (folder / RECORD).is_file() else self._new(folder, prepared, config)
        except DivergenceError:
            run = None
        self.done += 1
        self.tell("trials", self.done, self.all)
        if run is None:
            return trial
        validation = run.record["validation"]
        return replace(trial, run=run, loss=validation["log_loss"] if "log_loss" in validation else validation["rmse"])

    def _new(self, folder: Path, prepared: Prepared, config: Config) -> Run:
        what = f"{folder.parent.name}, {folder.name}"
        return train(
            prepared,
            folder,
            config,
            resume=True,
            cache=self.cache,
            progress=lambda step, done, total: self.tell(f"{what}: {step}", done, total),
        )


def _method(
    name: str, config: Config, bench: _Bench, before: Sequence[Trial], *, seeds: int, budget: int
) -> list[Trial]:
    """All trials of one method: several rates with the first seed, the best one with the others."""
    on, first = METHODS[name].on, config.training.seed
    bases = {trial.seed: trial.run for trial in before if trial.kept and trial.method == on}

    def one(rate: float, seed: int) -> Trial:
        training = replace(config.training, learning_rate=rate, seed=seed)
        return bench.train(name, replace(config, training=training), bases.get(seed))

    tried = [one(config.training.learning_rate * factor, first) for factor in RATES[:budget]]
    best = min(tried, key=lambda trial: trial.loss)
    if best.run is None:
        raise DivergenceError(
            f"Every trial of {name!r} diverged: {', '.join(f'{trial.rate:g}' for trial in tried)}. Lower "
            "`learning_rate`, or leave the method out."
        )
    again = [one(best.rate, seed) for seed in range(first + 1, first + seeds)]
    kept = []
    for trial in (best, *again):
        if trial.run is None:
            raise DivergenceError(
                f"{name!r} diverged with the seed {trial.seed}, at {trial.rate:g}. Lower `learning_rate`."
            )
        measured = measure(trial.run, bench.test, cache=bench.cache)
        kept.append(replace(trial, kept=True, measured=measured))
    return [*kept, *(trial for trial in tried if trial is not best)]


def _with_bases(methods: Sequence[str]) -> list[str]:
    """The methods in the table's order, each after the one that it is built on.

    Raises:
        UsageError: there is none, or no such one.
    """
    if unknown := [name for name in methods if name not in METHODS]:
        raise UsageError(f"`methods` has {unknown[0]!r}; expected some of {', '.join(METHODS)}.")
    if not methods:
        raise UsageError(f"`methods` is empty; expected some of {', '.join(METHODS)}.")
    wanted = {*methods, *(base for name in methods if (base := METHODS[name].on) is not None)}
    return [name for name in METHODS if name in wanted]


def _check(config: Config, *, seeds: int, budget: int) -> None:
    """Refuse numbers out of range, and a configuration whose methods could not be told apart."""
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", "plot", "Drawing the report")
    if seeds < 1:
        raise UsageError(f"`seeds` is {seeds}; expected 1 or more.")
    if not 1 <= budget <= len(RATES):
        raise UsageError(f"`budget` is {budget}; expected 1 to {len(RATES)} trials for each method.")
    if config.data.split_column is None:
        raise UsageError("`split_column` is not set; a comparison needs it to tell test rows from training rows.")
    if config.training.fine_tune or config.training.train_backbone or config.model.lora:
        raise UsageError(
            "The configuration trains the backbone already (`fine_tune`, `train_backbone` or `lora`); expected that of "
            "a LEVI model on a frozen one, which the methods change."
        )
