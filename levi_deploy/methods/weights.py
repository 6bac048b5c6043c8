"""Methods that train nothing of their own: runs whose weights come from finished runs.

Weights are averaged where the runs are of one model and descend from one pre-trained backbone, so that they lie close
enough (Neyshabur et al. 2020); running statistics of batch norms are averaged as weights are. Outputs are averaged
where one of two runs reads the backbone alone, and the other one the branches.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from levi_deploy.config import Config
from levi_deploy.evaluation import metrics
from levi_deploy.model.architecture import count_stages
from levi_deploy.model.build import build
from levi_deploy.model.levi import Levi, without_fitted
from levi_deploy.run import Run
from levi_deploy.training import Prepared
from levi_deploy.training.device import settle
from levi_deploy.training.train import calibrate, conclude
from levi_serving.errors import UsageError
from levi_serving.rows.preprocess import TOKENIZER

__all__ = ["average_outputs", "average_weights", "greedy_soup", "validation_loss"]


def average_weights(
    runs: Sequence[Run], shares: Sequence[float], prepared: Prepared, output: Path, config: Config
) -> Run:
    """A run whose weights, those of the backbone and of the heads, are the weighed mean of other runs' weights.

    With the linear probe and the model that was fine-tuned from it this is WiSE-FT (Wortsman et al. 2022), with several
    fine-tuned models and equal shares a uniform soup (Wortsman et al. 2022, "Model soups"). What is fitted on ID
    validation after training, as the temperature, is fitted anew.

    Args:
        runs: of one model, each with a backbone.
        shares: of each run in the mean, summing to 1.
        prepared: the rows that they were trained on.
        output: the new run's folder; what is in it is replaced.
        config: of the new run: of a model as theirs, whose backbone trains.

    Raises:
        UsageError: the runs are of different models.
    """
    started = time.perf_counter()
    shutil.rmtree(output, ignore_errors=True)
    return _run(_mean(runs, shares), prepared, output, config, _origin(runs, shares), started)


def greedy_soup(runs: Sequence[Run], prepared: Prepared, output: Path, config: Config) -> Run:
    """A greedy soup: from the best run on, each further one is let in where the mean's ID validation loss falls.

    The recipe of Wortsman et al. 2022, "Model soups", with the loss in the place of accuracy. Arguments and errors as
    for ``average_weights``.
    """
    started = time.perf_counter()
    shutil.rmtree(output, ignore_errors=True)
    best, *others = sorted(runs, key=validation_loss)
    chosen, loss = [best], validation_loss(best)
    device = settle(config.training.device)
    for run in others:
        levi = _mean([*chosen, run], [1 / (len(chosen) + 1)] * (len(chosen) + 1)).to(device)
        task, predictions = calibrate(levi, prepared.validation, config)
        found = _loss(metrics(predictions, prepared.validation.targets, task))
        if found < loss:
            chosen, loss = [*chosen, run], found
    shares = [1 / len(chosen)] * len(chosen)
    return _run(_mean(chosen, shares), prepared, output, config, _origin(chosen, shares), started)


def average_outputs(tuned: Run, branches: Run, prepared: Prepared, output: Path, config: Config) -> Run:
    """A run that answers with the mean of two runs' outputs: an ensemble without anything in between.

    Args:
        tuned: of one linear head on the last layer, as ``full_fine_tuning`` gives it.
        branches: of the branches alone.
        prepared: the rows that they were trained on.
        output: the new run's folder; what is in it is replaced.
        config: of the new run: ``fusion`` is ``outputs``, else as that of ``tuned`` with the branches and the hidden
            units of the other.
    """
    started = time.perf_counter()
    shutil.rmtree(output, ignore_errors=True)
    levi = tuned.levi()
    last = len(levi.ensemble.heads)
    weights = tuned.ensemble().state_dict()
    for name, tensor in branches.ensemble().state_dict().items():
        if name.startswith("branches."):
            weights[name] = tensor
        elif name.startswith("heads.0."):
            weights[name.replace("heads.0.", f"heads.{last}.")] = tensor
    levi.ensemble = build(config.model, tuned.backbone, prepared.preprocessing, tuned.taps, task=tuned.task).eval()
    levi.ensemble.load_state_dict(without_fitted(weights), strict=False)
    return _run(levi, prepared, output, config, {"outputs_of": [tuned.fingerprint, branches.fingerprint]}, started)


def validation_loss(run: Run) -> float:
    """What a trial is chosen by: log loss on ID validation, for regression the root mean squared error."""
    return _loss(run.record["validation"])


def _loss(found: Mapping[str, float]) -> float:
    return found["log_loss"] if "log_loss" in found else found["rmse"]


def _mean(runs: Sequence[Run], shares: Sequence[float]) -> Levi:
    """The weighed mean of models, one of them in memory at a time beside it."""
    levi = runs[0].levi()
    mean = _trained(levi)
    for name, tensor in mean.items():
        mean[name] = shares[0] * tensor
    for run, share in zip(runs[1:], shares[1:], strict=True):
        own = _trained(run.levi())
        if {name: tensor.shape for name, tensor in own.items()} != {name: t.shape for name, t in mean.items()}:
            raise UsageError(
                f"The weights of {run.folder} are not those of a model as in {runs[0].folder}, so they have no mean. "
                "Give runs of one model."
            )
        for name, tensor in own.items():
            mean[name] += share * tensor
    levi.load_state_dict(mean, strict=False)
    return levi


def _origin(runs: Sequence[Run], shares: Sequence[float]) -> dict[str, Any]:
    return {"mean_of": [run.fingerprint for run in runs], "shares": list(shares)}


def _trained(levi: Levi) -> dict[str, Tensor]:
    """All weights and statistics, without whole numbers and what is fitted after training."""
    assert levi.backbone is not None  # noqa: S101  # the runs have one
    own = without_fitted(levi.ensemble.state_dict())
    parts = {"backbone": levi.backbone.state_dict(), "ensemble": own}
    return {
        f"{part}.{name}": tensor
        for part, state in parts.items()
        for name, tensor in state.items()
        if tensor.is_floating_point()
    }


def _run(
    levi: Levi,
    prepared: Prepared,
    output: Path,
    config: Config,
    origin: Mapping[str, Any],
    started: float,
) -> Run:
    output.mkdir(parents=True)
    if prepared.tokenizer is not None:
        (output / TOKENIZER).write_text(prepared.tokenizer, encoding="utf-8")
    device = settle(config.training.device)
    stages = count_stages(levi.ensemble, prepared.preprocessing)
    return conclude(
        levi.to(device),
        prepared,
        prepared.train,
        prepared.validation,
        output,
        config,
        stages=stages,
        history=[],
        seconds={"fine_tune": 0.0, "select": 0.0, "taps": 0.0, "fit": time.perf_counter() - started, "novelty": 0.0},
        device=device,
        further={"origin": origin},
    )
