"""LEVI: layer-wise ensemble of different views (Roh et al., ICML 2024, arXiv 2402.04644).

A frozen pre-trained backbone, small branches trained from scratch, and K adapting layers that read both
at several depths. The prediction is their average. One alphabet of shapes: B rows, T tokens (or
patches), D backbone width, L backbone depth, K adapting layers, P width of a pooled tap, M stages of
a branch, S branch width, C outputs.

Where there are several members, all but the backbone is there as often: K counts every member's adapting layers.

This file says how the parts fit together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from levi_deploy.config import FIXED_POOLINGS, ModelConfig
from levi_deploy.model.backbone import Backbone
from levi_deploy.model.branches import Branch, Facts, branch_names, make
from levi_deploy.model.heads import AdaptingHead, average
from levi_deploy.model.novelty import Novelty, places
from levi_deploy.model.pooling import pooling
from levi_serving.predictions import Outputs, Task

__all__ = ["INPUTS", "Ensemble", "Levi", "outputs", "without_fitted"]

INPUTS = ("input_ids", "attention_mask", "token_type_ids", "pixel_values", "numeric", "categorical", "nodes")
"""Every input a model can have, in the graph's order; a model declares those that its parts read."""


class Levi(nn.Module):
    """The whole model: the backbone runs once, and its taps feed the ensemble."""

    def __init__(self, backbone: Backbone | None, ensemble: Ensemble) -> None:
        super().__init__()
        self.backbone = backbone  # None for the branches alone
        self.ensemble = ensemble

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.ensemble.weights.device

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the inputs that any part reads."""
        read = set(self.backbone.inputs if self.backbone is not None else ())
        for branch in self.ensemble.branches:
            read.update(cast("Branch", branch).inputs)
        return tuple(name for name in INPUTS if name in read)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        numeric: Tensor | None = None,
        categorical: Tensor | None = None,
        nodes: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Answer B rows.

        Args:
            input_ids: token ids, (B, T) int64.
            attention_mask: (B, T) int64, 1 for real tokens.
            token_type_ids: which text of a pair a token is of, (B, T) int64.
            pixel_values: normalised images, (B, 3, height, width).
            numeric: standardised columns, (B, n).
            categorical: buckets, (B, m) int64.
            nodes: a node of each side of the graph, (B, 2) int64.

        Returns:
            ``logits`` (B, C), the average; ``head_logits`` (B, K, C); and, where there are taps, ``novelty`` (B,).
        """
        given = (input_ids, attention_mask, token_type_ids, pixel_values, numeric, categorical, nodes)
        inputs = {name: value for name, value in zip(INPUTS, given, strict=True) if value is not None}
        hidden = self.backbone(inputs) if self.backbone is not None else []
        return tuple(answer.float() for answer in self.ensemble(hidden, inputs))


class Ensemble(nn.Module):
    """All that trains: the taps' poolings, the branches, and the adapting layers whose mean is the prediction.

    It reads hidden states, so training on stored ones needs no backbone.

    Args:
        config: the architecture.
        facts: what the branches are made for.
        taps: t_1 < … < t_K; none for the branches alone.
        widths: D of each tap.
        masked: whether the taps' tokens are text, which is padded.
        task: what it answers.
    """

    def __init__(
        self,
        config: ModelConfig,
        facts: Facts,
        *,
        taps: tuple[int, ...],
        widths: tuple[int, ...],
        masked: bool,
        task: Task,
    ) -> None:
        super().__init__()
        self.config, self.taps, self.task, self.masked = config, taps, task, masked
        self.names = branch_names(config, facts)
        self.widths = widths
        self.members = config.members  # one after the other, in each of the lists
        branches = [make(name, facts, config) for name in self.names * self.members]
        self.branches = nn.ModuleList(branches)
        pools = [pooling(config, width) for width in widths * (1 if config.pooling in FIXED_POOLINGS else self.members)]
        self.pools = nn.ModuleList(pools)
        width = sum(branch.width for branch in branches[: len(self.names)])
        read = [(pool.width, width, config.head_hidden) for pool in pools[: len(taps)]]
        if not taps:
            read = [(0, width, config.head_hidden)]
        elif self.apart:
            read = [(pool.width, 0, 0) for pool in pools[: len(taps)]] + [(0, width, config.head_hidden)]
        self.heads = nn.ModuleList(
            AdaptingHead(
                tap_width=tap, stage_width=stage, outputs=task.outputs, hidden=hidden, dropout=config.head_dropout
            )
            for tap, stage, hidden in read * self.members
        )
        self.novelty = Novelty(*(widths[k] for k in places(len(taps)))) if taps else None
        # Regression: the target's mean and spread in training, so that heads learn in units of one.
        self.shift: Tensor
        self.scale: Tensor
        self.register_buffer("shift", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))
        # Of the heads in the average; fitted on ID validation after training where they are not all the same.
        self.weights: Tensor
        self.register_buffer("weights", torch.full((len(self.heads),), 1 / len(self.heads)))
        # Fitted on ID validation after training: softmax(logits / temperature) is calibrated (Guo et al. 2017).
        self.temperature: Tensor
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, hidden: list[Tensor], inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """From the taps' hidden states to the prediction.

        Args:
            hidden: H_{t_1} … H_{t_K}, (B, T, D) each; an image's T and D may differ between taps.
            inputs: the rows' inputs by name, for the branches; ``attention_mask`` for pooling text.

        Returns:
            As ``answer``.
        """
        return self.answer(self.pool(hidden, inputs), inputs)

    def pool(self, hidden: list[Tensor], inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """Pool each tap over its tokens, from the lowest up, for each member that pools in its own way.

        Args:
            hidden: the taps' hidden states, (B, T, D) each.
            inputs: the rows' inputs by name.

        Returns:
            (B, P) for each tap, of one member after the other; once for all members where there is nothing to learn.
        """
        mask = inputs["attention_mask"] if self.masked else None
        pooled, state = [], None
        for n, pool in enumerate(self.pools):
            vector, state = pool(hidden[n % len(hidden)], mask, state if n % len(hidden) else None)
            pooled.append(vector)
        return pooled

    def answer(self, pooled: list[Tensor], inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """All that the model says of B rows.

        Args:
            pooled: the taps as ``pool`` gives them, (B, P) each; empty for the branches alone.
            inputs: the rows' inputs by name.

        Returns:
            ``logits`` (B, C), the average; ``head_logits`` (B, K, C); and, where there are taps, ``novelty`` (B,).
        """
        answers = self.combine(pooled, inputs)
        if self.novelty is None:
            return answers
        # Every pooling's vector begins with the tap's own D: its mean, or what a fixed pooling gives.
        middle, last = (pooled[k][:, : self.widths[k]] for k in places(len(self.taps)))
        return (*answers, self.novelty(middle, last))

    @property
    def apart(self) -> bool:
        """Whether taps and branches have heads of their own."""
        return self.config.fusion == "outputs" and bool(self.taps) and bool(self.names)

    def layout(self, stages: Sequence[int]) -> list[tuple[int | None, list[int | None]]]:
        """What each head of one member reads, counted from 0: a tap, and a stage of each branch; None for none.

        Args:
            stages: M of each branch.
        """
        if self.apart:
            alone: list[tuple[int | None, list[int | None]]] = [
                (k, [None] * len(stages)) for k in range(len(self.taps))
            ]
            return [*alone, (None, [count - 1 for count in stages])]
        heads = max(1, len(self.taps))
        return [
            (k if self.taps else None, [stage_of(k, heads=heads, stages=count) for count in stages])
            for k in range(heads)
        ]

    def combine(self, pooled: list[Tensor], inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Let every adapting layer read its tap beside its branch stages, and average.

        Args:
            pooled: the taps as ``pool`` gives them, (B, P) each; empty for the branches alone.
            inputs: the rows' inputs by name.

        Returns:
            ``logits`` (B, C) and ``head_logits`` (B, K, C).
        """
        branches = [cast("Branch", branch).stages(inputs) for branch in self.branches]
        heads = self.layout([len(stages) for stages in branches[: len(self.names)]])
        answers = []
        for n, head in enumerate(self.heads):
            member, k = divmod(n, len(heads))
            own = branches[member * len(self.names) : (member + 1) * len(self.names)]
            tap, read = heads[k]
            answers.append(
                head(
                    None if tap is None else pooled[(member * len(self.taps) + tap) % len(pooled)],
                    [stages[stage] for stages, stage in zip(own, read, strict=True) if stage is not None],
                )
            )
        head_logits = torch.stack(answers, dim=1)  # (B, K, C)
        if self.task.kind == "regression":
            head_logits = head_logits * self.scale + self.shift
        weights = self.weights if self.config.average == "weighed" else None
        logits = average(head_logits, self.config.average_of, self.task.kind, weights)
        return logits if self.task.kind == "regression" else logits / self.temperature, head_logits


def outputs(answers: Sequence[Tensor]) -> Outputs:
    """The model's answers as arrays, as the graph gives them."""
    names = ("logits", "head_logits", "novelty")
    return Outputs.of({name: answer.cpu().numpy() for name, answer in zip(names, answers, strict=False)})


def without_fitted(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An ensemble's weights without what is fitted after training: the heads' weights, temperature and novelty."""
    fitted = ("weights", "temperature", "novelty")
    return {name: tensor for name, tensor in state.items() if name.partition(".")[0] not in fitted}


def stage_of(k: int, *, heads: int, stages: int) -> int:
    """The branch stage m(k) that adapting layer k reads, both counted from 0.

    In order, evenly, and the last adapting layer reads the last stage.
    """
    return -(-(k + 1) * stages // heads) - 1
