"""``levi compare``: the same trials for each method, chosen on ID validation, measured on ID and OOD rows."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from levi_deploy.compare.inference import BASELINE, export_each, time_graphs
from levi_deploy.compare.measure import measure
from levi_deploy.compare.report import write
from levi_deploy.compare.results import collect
from levi_deploy.compare.shared import Progress, Shared, read_test_rows, silent
from levi_deploy.compare.trials import train_all
from levi_deploy.compare.workers import threads_of, workers
from levi_deploy.config import Config
from levi_deploy.methods import METHODS
from levi_deploy.methods.table import CHOICES
from levi_deploy.model.backbone import Backbone
from levi_deploy.training import prepare
from levi_serving import job
from levi_serving.environment import cache_folder
from levi_serving.errors import MissingExtraError, UsageError

__all__ = ["DEFAULT_METHODS", "compare"]

DEFAULT_METHODS = ("scratch", "linear-probe", "fine-tune", "levi", "levi-on-fine-tuned", "no-branch")

_REQUEST = "request.json"


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
    pairs: str | None = None,
    cost: bool = True,
    jobs: int = 1,
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
        methods: names of ``METHODS``. One that is made of runs of others brings these with it; the linear probe, which
            others are measured beside, is always among them.
        seeds: how many, from the configuration's on.
        budget: trials of each method, 1 to 4.
        splits: values of the split column to measure, the in-distribution one first; all that are neither training
            nor validation rows when empty, as the table has them.
        by: a column; the rows with each of its values are measured too.
        pairs: a column that versions of one test row share the value of, to measure what answers lean on; see
            ``evaluation.pairs``.
        cost: whether one run of each architecture is exported, and the time of its graph is measured.
        jobs: runs that are trained side by side, in processes that share out this one's threads when more than 1.
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
    _check(config, chosen, seeds=seeds, budget=budget, jobs=jobs)
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
    test = read_test_rows(data, config, prepared, splits=splits, by=by, pairs=pairs)
    if overwrite:
        shutil.rmtree(output, ignore_errors=True)
    job.start(output / _REQUEST, request)

    tell = progress or silent
    shared = Shared(output=output, prepared=prepared, test=test, cache=cache or cache_folder(), progress=tell)
    with workers(jobs, shared if jobs == 1 else replace(shared, progress=silent)) as submit:
        trials = train_all(configs, shared, submit, seeds=seeds, budget=budget, jobs=jobs)
        runs = {(trial.method, trial.seed): trial.run for trial in trials if trial.kept and trial.run is not None}
        answers = {key: submit(measure, run) for key, run in runs.items()}
        measured = {key: answer.result() for key, answer in answers.items()}
        first = {name: runs[name, config.training.seed] for name in chosen}
        bundles = export_each(first, shared, submit) if cost else {}
    inference = time_graphs(bundles, first[BASELINE].samples) if cost else None  # when no other job is running
    document = {
        "format_version": 1,
        "data": data.name,
        "rows": {"train": len(prepared.train), "validation": len(prepared.validation), **test.counts()},
        "task": prepared.task.kind,
        "seeds": seeds,
        "budget": budget,
        "jobs": jobs,
        "threads": threads_of(jobs),
        "config": config.to_dict(),
        "inference": inference,
        "trials": [trial.to_dict() for trial in trials],
    }
    document = collect(document, measured, test)
    write(output, document)
    return document


def _with_bases(methods: Sequence[str]) -> list[str]:
    """The methods in the table's order, each after those that it is made of.

    Raises:
        UsageError: there is none, or no such one.
    """
    if unknown := [name for name in methods if name not in METHODS]:
        raise UsageError(f"`methods` has {unknown[0]!r}; expected some of {', '.join(METHODS)}.")
    if not methods:
        raise UsageError(f"`methods` is empty; expected some of {', '.join(METHODS)}.")
    wanted = {*methods, BASELINE}
    for name in reversed(METHODS):
        if name in wanted:
            wanted |= set(METHODS[name].on)
    return [name for name in METHODS if name in wanted]


def _check(config: Config, methods: Sequence[str], *, seeds: int, budget: int, jobs: int) -> None:
    """Refuse numbers out of range, and a configuration whose methods could not be told apart."""
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", "plot", "Drawing the report")
    for name, value in (("seeds", seeds), ("jobs", jobs)):
        if value < 1:
            raise UsageError(f"`{name}` is {value}; expected 1 or more.")
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
