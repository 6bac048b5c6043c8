"""The methods of ``levi compare``, by name: each turns one configuration, a LEVI model's, into its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from levi_deploy.config import Config, ModelConfig
from levi_deploy.methods.fine_tuning import full_fine_tuning
from levi_deploy.methods.probes import branch_alone, linear_probe

__all__ = ["METHODS", "Method"]

_RANK = 8  # of LoRA, where the configuration names none: the rank of Hu et al. 2022 for most of their models


@dataclass(frozen=True)
class Method:
    """A method to compare.

    Attributes:
        title: in reports.
        configure: from the LEVI model's configuration and the backbone's depth L to the method's.
        on: the method whose trained backbone it is built on; None for the pre-trained one.
    """

    title: str
    configure: Callable[[Config, int], Config]
    on: str | None = None


def _same(config: Config, depth: int) -> Config:  # noqa: ARG001  # as the others
    return config


def _model(change: Callable[[ModelConfig, int], ModelConfig]) -> Callable[[Config, int], Config]:
    """A method that trains another model in the same way; weights of heads are left out, since heads differ."""

    def configure(config: Config, depth: int) -> Config:
        training = replace(config.training, head_weights=())
        return replace(config, model=change(config.model, depth), training=training)

    return configure


def _lora(config: ModelConfig, depth: int) -> ModelConfig:
    return replace(linear_probe(config, depth), lora=config.lora or _RANK)


METHODS = {
    "scratch": Method("branch alone, from scratch", _model(lambda model, _: branch_alone(model))),
    "linear-probe": Method("linear probe", _model(linear_probe)),
    "fine-tune": Method("full fine-tuning", lambda config, _: full_fine_tuning(config)),
    "lora": Method("LoRA, linear head", _model(_lora)),
    "levi": Method("LEVI, frozen", _same),
    "levi-lora": Method("LEVI with LoRA", _model(lambda model, _: replace(model, lora=model.lora or _RANK))),
    "levi-on-fine-tuned": Method("LEVI on the fine-tuned backbone", _same, on="fine-tune"),
    "no-branch": Method("LEVI without branch", _model(lambda model, _: replace(model, branches=()))),
    "last-tap": Method("LEVI, last layer alone", _model(lambda model, depth: replace(model, taps=(depth,)))),
    "all-taps": Method("LEVI, all layers", _model(lambda model, _: replace(model, taps="all"))),
    "ladder": Method("LEVI, ladder", _model(lambda model, _: replace(model, pooling="ladder"))),
    "tokens": Method("LEVI, token-reading", _model(lambda model, _: replace(model, pooling="tokens"))),
    "attention": Method("LEVI, attention pooling", _model(lambda model, _: replace(model, pooling="attention"))),
    "mean": Method("LEVI, mean pooling", _model(lambda model, _: replace(model, pooling="mean"))),
    "equal": Method("LEVI, heads equal", _model(lambda model, _: replace(model, average="equal"))),
    "weighed": Method("LEVI, heads weighed", _model(lambda model, _: replace(model, average="weighed"))),
}
"""By the name that ``levi compare --methods`` takes; a method comes after the one that it is built on."""
