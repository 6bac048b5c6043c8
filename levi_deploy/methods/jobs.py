"""One trial of a method as a job that ends as a run: trained, trained on or from another run, or a mean of runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from levi_deploy.config import Config
from levi_deploy.methods.weights import average_outputs, average_weights, greedy_soup
from levi_deploy.run import TUNED, Run
from levi_deploy.training import Prepared, train

__all__ = ["Choice", "Job", "ensemble", "interpolated", "on_backbone", "soup", "started_from", "trained"]

Choice = Mapping[str, Any]
"""What tells a trial of a method from its others, by name: a learning rate, a share, a recipe."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What makes one run of a method.

    Attributes:
        choice: of this trial.
        config: of the method, with the seed; a learning rate that is chosen is in it.
        bases: the runs that it is made of.
        prepared: the rows.
        output: the run's folder; an unfinished run in it is resumed or replaced.
        cache: where taps are kept.
        progress: given what is being done, steps done, and all steps.
    """

    choice: Choice
    config: Config
    bases: Sequence[Run]
    prepared: Prepared
    output: Path
    cache: Path
    progress: Callable[[str, int, int], None] = lambda *_: None


def trained(job: Job) -> Run:
    """Training, from the pre-trained backbone."""
    return _train(job, job.prepared, job.config)


def on_backbone(job: Job) -> Run:
    """Training on the backbone that another run trained, frozen again."""
    (base,) = job.bases
    config = replace(job.config, model=replace(job.config.model, backbone=str(base.folder / TUNED)))
    return _train(job, replace(job.prepared, backbone=base.backbone), config)


def started_from(job: Job) -> Run:
    """Training that starts from the weights of another run."""
    (base,) = job.bases
    return _train(job, job.prepared, job.config, start=base)


def interpolated(job: Job) -> Run:
    """Weights between two runs, at the share ``alpha`` of the way from the first to the second."""
    alpha = job.choice["alpha"]
    return average_weights(job.bases, [1 - alpha, alpha], job.prepared, job.output, job.config)


def soup(job: Job) -> Run:
    """The mean of all runs' weights, or of those that a greedy recipe lets in."""
    if job.choice["recipe"] == "greedy":
        return greedy_soup(job.bases, job.prepared, job.output, job.config)
    count = len(job.bases)
    return average_weights(job.bases, [1 / count] * count, job.prepared, job.output, job.config)


def ensemble(job: Job) -> Run:
    """The mean of the outputs of a fine-tuned model and of the branches alone."""
    tuned, branches = job.bases
    return average_outputs(tuned, branches, job.prepared, job.output, job.config)


def _train(job: Job, prepared: Prepared, config: Config, *, start: Run | None = None) -> Run:
    return train(prepared, job.output, config, start=start, resume=True, cache=job.cache, progress=job.progress)
