"""The methods of ``levi compare``, by name: each turns one configuration, a LEVI model's, into its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from levi_deploy.config import Config, ModelConfig
from levi_deploy.methods.fine_tuning import full_fine_tuning
from levi_deploy.methods.jobs import Choice, Job, ensemble, interpolated, on_backbone, soup, started_from, trained
from levi_deploy.methods.probes import branch_alone, linear_probe
from levi_deploy.run import Run

__all__ = ["CHOICES", "METHODS", "Method"]

CHOICES = 4
"""The most trials that a method has."""
_RATES = (1.0, 3.0, 10.0, 1 / 3)
_ALPHAS = (0.5, 0.75, 0.25, 0.9)  # 0 and 1 are its two ends; 0.5 is what Wortsman et al. 2022 advise without a choice
_RANK = 8  # of LoRA, where the configuration names none: the rank of Hu et al. 2022 for most of their models


def _rates(config: Config) -> Sequence[Choice]:
    """The configuration's learning rate, and others around it."""
    return [{"learning_rate": config.training.learning_rate * factor} for factor in _RATES]


@dataclass(frozen=True)
class Method:
    """A method to compare.

    Attributes:
        title: in reports.
        configure: from the LEVI model's configuration and the backbone's depth L to the method's.
        family: which of them it is like: a part of LEVI by itself (``frozen``), one that trains the backbone
            (``tuned``), LEVI (``levi``), or LEVI with a part changed (``part``).
        on: the methods whose runs it is made of: the one that counts with the same seed.
        make: makes a run.
        choices: from its configuration to what it may try with one seed, at most ``CHOICES``.
        pooled: whether it is made once, of every run of ``on``: of all trials and all seeds.
    """

    title: str
    configure: Callable[[Config, int], Config]
    family: Literal["frozen", "tuned", "levi", "part"]
    on: tuple[str, ...] = ()
    make: Callable[[Job], Run] = trained
    choices: Callable[[Config], Sequence[Choice]] = _rates
    pooled: bool = False


def _same(config: Config, depth: int) -> Config:  # noqa: ARG001  # as the others
    return config


def _tuned(config: Config, depth: int) -> Config:  # noqa: ARG001  # as the others
    return full_fine_tuning(config)


def _outputs(config: Config, depth: int) -> Config:  # noqa: ARG001  # as the others
    """Full fine-tuning, with the branches and their head beside it."""
    tuned, own = full_fine_tuning(config), config.model
    model = replace(tuned.model, branches=own.branches, head_hidden=own.head_hidden, fusion="outputs", average="equal")
    return replace(tuned, model=model)


def _model(change: Callable[[ModelConfig, int], ModelConfig]) -> Callable[[Config, int], Config]:
    """A method that trains another model in the same way: without weights of heads, since heads differ, or a choice."""

    def configure(config: Config, depth: int) -> Config:
        training = replace(config.training, head_weights=(), select=False)
        return replace(config, model=change(config.model, depth), training=training)

    return configure


def _lora(config: ModelConfig, depth: int) -> ModelConfig:
    return replace(linear_probe(config, depth), lora=config.lora or _RANK)


METHODS = {
    "scratch": Method("branch alone, from scratch", _model(lambda model, _: branch_alone(model)), "frozen"),
    "linear-probe": Method("linear probe", _model(linear_probe), "frozen"),
    "fine-tune": Method("full fine-tuning", _tuned, "tuned"),
    "lp-ft": Method("LP-FT", _tuned, "tuned", on=("linear-probe",), make=started_from),
    "wise-ft": Method(
        "WiSE-FT",
        _tuned,
        "tuned",
        on=("linear-probe", "lp-ft"),
        make=interpolated,
        choices=lambda _: [{"alpha": alpha} for alpha in _ALPHAS],
    ),
    "soup": Method(
        "model soup",
        _tuned,
        "tuned",
        on=("lp-ft",),
        make=soup,
        choices=lambda _: [{"recipe": "greedy"}, {"recipe": "uniform"}],
        pooled=True,
    ),
    "output-ensemble": Method(
        "ensemble of outputs",
        _outputs,
        "tuned",
        on=("fine-tune", "scratch"),
        make=ensemble,
        choices=lambda _: [{}],
    ),
    "lora": Method("LoRA, linear head", _model(_lora), "tuned"),
    "levi": Method("LEVI, frozen", _same, "levi"),
    "levi-lora": Method("LEVI with LoRA", _model(lambda model, _: replace(model, lora=model.lora or _RANK)), "levi"),
    "levi-on-fine-tuned": Method("LEVI on the fine-tuned backbone", _same, "levi", on=("fine-tune",), make=on_backbone),
    "levi-on-wise-ft": Method("LEVI on the WiSE-FT backbone", _same, "levi", on=("wise-ft",), make=on_backbone),
    "no-branch": Method("LEVI without branch", _model(lambda model, _: replace(model, branches=())), "part"),
    "last-tap": Method("LEVI, last layer alone", _model(lambda model, depth: replace(model, taps=(depth,))), "part"),
    "all-taps": Method("LEVI, all layers", _model(lambda model, _: replace(model, taps="all")), "part"),
    "ladder": Method("LEVI, ladder", _model(lambda model, _: replace(model, pooling="ladder")), "part"),
    "tokens": Method("LEVI, token-reading", _model(lambda model, _: replace(model, pooling="tokens")), "part"),
    "attention": Method(
        "LEVI, attention pooling", _model(lambda model, _: replace(model, pooling="attention")), "part"
    ),
    "mean": Method("LEVI, mean pooling", _model(lambda model, _: replace(model, pooling="mean")), "part"),
    "equal": Method("LEVI, heads equal", _model(lambda model, _: replace(model, average="equal")), "part"),
    "weighed": Method("LEVI, heads weighed", _model(lambda model, _: replace(model, average="weighed")), "part"),
}
"""By the name that ``levi compare --methods`` takes; a method comes after those that it is made of."""
