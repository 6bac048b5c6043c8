"""The trials of a comparison: which there are, which can run now, and which of them count.

A trial is a run like any other, kept in ``runs/METHOD/CHOICE-SEED`` of the report's folder (with ``-on-`` and a digest
behind it where it is made of other runs), so what was finished before an interruption is not trained again, and any of
them can be exported.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from levi_deploy.compare.report import in_words
from levi_deploy.compare.shared import Shared
from levi_deploy.compare.workers import Submit
from levi_deploy.config import Config
from levi_deploy.methods import METHODS
from levi_deploy.methods.jobs import Choice, Job
from levi_deploy.methods.weights import validation_loss
from levi_deploy.run import RECORD, Run
from levi_serving.errors import DivergenceError

__all__ = ["Trial", "train_all"]


_TRAINING = ("fine_tune", "select", "fit")  # of a run's seconds


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
    """

    method: str
    choice: Choice
    seed: int
    bases: tuple[Trial, ...] = ()
    kept: bool = False
    run: Run | None = None

    @property
    def loss(self) -> float:
        """What it is chosen by, on ID validation."""
        return float("inf") if self.run is None else validation_loss(self.run)

    @property
    def training_seconds(self) -> float:
        """All that it took to train, with what it is made of, and what that is made of, each run once.

        Hidden states that are stored, and what is fitted afterwards, do not count: all trials share the first.
        """
        runs: dict[Path, float] = {}
        waiting = [self]
        while waiting:
            trial = waiting.pop()
            waiting += trial.bases
            if trial.run is not None:
                runs[trial.run.folder] = sum(trial.run.record["seconds"][name] for name in _TRAINING)
        return sum(runs.values())

    @property
    def folder(self) -> str:
        """Where its run lies: a choice, a seed, and a digest of the bases, since with more trials others may be it."""
        said = [f"{value:g}" if isinstance(value, float) else str(value) for value in self.choice.values()]
        name = "-".join([*said, str(self.seed)])
        digests = [base.run.fingerprint for base in self.bases if base.run is not None]
        if digests:
            name += f"-on-{hashlib.sha256(''.join(digests).encode()).hexdigest()[:8]}"
        return f"runs/{self.method}/{name}"

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
            "run": None if self.run is None else self.folder,
            "validation_loss": None if self.run is None else self.loss,
            "validation": record.get("validation"),
            "best_epoch": record.get("best_epoch"),
            "trained_parameters": record["parameters"]["trained"] if record else None,
            "threads": record.get("threads"),
            "seconds": record.get("seconds"),
            "training_seconds": None if self.run is None else self.training_seconds,
        }


@dataclass(frozen=True)
class _Task:
    """A trial that is to be: with the choice of that number, or with the best one when None."""

    method: str
    seed: int
    number: int | None


class _Plan:
    """Which trials there are to be, and what became of those that are done.

    Args:
        configs: of each method.
        seeds: how many.
        budget: the most choices of each method.
    """

    def __init__(self, configs: Mapping[str, Config], seeds: int, budget: int) -> None:
        self.configs = configs
        self.choices = {name: METHODS[name].choices(config)[:budget] for name, config in configs.items()}
        self.done: dict[_Task, Trial] = {}
        self.tasks: list[_Task] = []
        for name, config in configs.items():
            first = config.training.seed
            others = [] if METHODS[name].pooled else range(first + 1, first + seeds)
            self.tasks += [_Task(name, first, number) for number in range(len(self.choices[name]))]
            self.tasks += [_Task(name, seed, None) for seed in others]

    def ready(self, task: _Task) -> Trial | None:
        """The trial before its run, where all that it depends on is there."""
        method = METHODS[task.method]
        bases = [self._bases(on, task.seed, pooled=method.pooled) for on in method.on]
        if any(there is None for there in bases):
            return None
        if task.number is not None:
            choice = self.choices[task.method][task.number]
        elif (best := self._best(task.method)) is not None:
            choice = best.choice
        else:
            return None
        trials = tuple(trial for there in bases for trial in there or () if trial.run is not None)
        return Trial(method=task.method, choice=choice, seed=task.seed, bases=trials)

    def finish(self, task: _Task, trial: Trial) -> None:
        """Note what became of a trial.

        Raises:
            DivergenceError: the method has no run that could count.
        """
        self.done[task] = trial
        if trial.run is not None:
            return
        if task.number is None:
            raise DivergenceError(
                f"{task.method!r} diverged with the seed {task.seed}, at {in_words(trial.choice)}. Lower "
                "`learning_rate`."
            )
        best = self._best(task.method)
        if best is not None and best.run is None:
            tried = ", ".join(map(in_words, self.choices[task.method]))
            raise DivergenceError(
                f"Every trial of {task.method!r} diverged: {tried}. Lower `learning_rate`, or leave the method out."
            )

    def trials(self) -> list[Trial]:
        """All of them, method by method, those that count first."""
        found = []
        for name in self.configs:
            own = [(task, trial) for task, trial in self.done.items() if task.method == name]
            best = self._best(name)
            marked = [replace(trial, kept=task.number is None or trial is best) for task, trial in own]
            found += sorted(marked, key=lambda trial: (not trial.kept, trial.seed if trial.kept else 0))
        return found

    def _best(self, method: str) -> Trial | None:
        """The trial with the lowest ID validation loss, once all choices are tried."""
        tried = [self.done.get(task) for task in self.tasks if task.method == method and task.number is not None]
        there = [trial for trial in tried if trial is not None]
        return min(there, key=lambda trial: trial.loss) if len(there) == len(tried) else None

    def _bases(self, method: str, seed: int, *, pooled: bool) -> list[Trial] | None:
        """The trial of a method that counts with a seed, or every one of them; None before it is there."""
        if pooled:
            own = [task for task in self.tasks if task.method == method]
            return [self.done[task] for task in own] if all(task in self.done for task in own) else None
        trial = self.done.get(_Task(method, seed, None)) or self._best(method)
        return [trial] if trial is not None and trial.seed == seed else None


def train_all(
    configs: Mapping[str, Config], shared: Shared, submit: Submit, *, seeds: int, budget: int, jobs: int
) -> list[Trial]:
    """Run every trial as soon as what it is made of is there, and mark those that count.

    Args:
        configs: of each method, which comes after those that it is made of.
        shared: what the trials share.
        submit: runs a job, see ``workers``.
        seeds: how many, from the configuration's on.
        budget: the most choices that each method tries, with the first seed.
        jobs: how many run at a time.

    Returns:
        All trials, method by method, those that count first.

    Raises:
        DivergenceError: every choice of a method diverged, or its best one did with another seed.
    """
    plan = _Plan(configs, seeds, budget)
    running: dict[Future[bool], tuple[_Task, Trial]] = {}
    started: set[_Task] = set()
    shared.progress("trials", 0, len(plan.tasks))
    while len(plan.done) < len(plan.tasks):
        for task in plan.tasks:
            if len(running) == jobs:
                break
            if task in started or (trial := plan.ready(task)) is None:
                continue
            started.add(task)
            folder = shared.output / trial.folder
            if (folder / RECORD).is_file():
                plan.finish(task, replace(trial, run=Run.open(folder)))
            else:
                training = replace(configs[trial.method].training, seed=trial.seed)
                if "learning_rate" in trial.choice:
                    training = replace(training, learning_rate=trial.choice["learning_rate"])
                config = replace(configs[trial.method], training=training)
                bases = [base.run.folder for base in trial.bases if base.run is not None]
                running[submit(make, trial.method, trial.choice, config, bases, folder)] = task, trial
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            task, trial = running.pop(future)
            plan.finish(task, replace(trial, run=Run.open(shared.output / trial.folder) if future.result() else None))
        shared.progress("trials", len(plan.done), len(plan.tasks))
    return plan.trials()


def make(shared: Shared, method: str, choice: Choice, config: Config, bases: Sequence[Path], folder: Path) -> bool:
    """Make one run, here or in a process of its own; False where the training diverged."""
    job = Job(
        choice=choice,
        config=config,
        bases=[Run.open(base) for base in bases],
        prepared=shared.prepared,
        output=folder,
        cache=shared.cache,
        progress=lambda step, done, total: shared.progress(f"{method}, {folder.name}: {step}", done, total),
    )
    try:
        METHODS[method].make(job)
    except DivergenceError:
        return False
    return True
