"""Branches that read text: the backbone's token ids, with embeddings of their own. Padding has no effect."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from levi_deploy.config import ModelConfig
from levi_deploy.model.branches.facts import Facts
from levi_deploy.model.pooling import mean

__all__ = ["CnnBranch", "GruBranch", "MlpBranch", "TransformerBranch"]

_DEPTH = 3


class _TextBranch(nn.Module):
    """Token embeddings of width E, and what all text branches share."""

    inputs = ("input_ids", "attention_mask")

    def __init__(self, facts: Facts, config: ModelConfig) -> None:
        super().__init__()
        self.width = config.branch_width
        self.depth = config.branch_depth or _DEPTH
        self.embedding = nn.Embedding(facts.vocabulary, config.branch_embedding)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.dropout = nn.Dropout(config.branch_dropout)

    def embed(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The tokens' embeddings, (B, T, E), zero where a row is padded; and the mask (B, T)."""
        embedded, mask = self.embedding(inputs["input_ids"]), inputs["attention_mask"]
        return embedded * mask.unsqueeze(2).to(embedded.dtype), mask


class MlpBranch(_TextBranch):
    """The mean of the token embeddings, then M layers; each layer is a stage (the paper's branch for text)."""

    def __init__(self, facts: Facts, config: ModelConfig) -> None:
        super().__init__(facts, config)
        sizes = [config.branch_embedding, *[self.width] * self.depth]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    def stages(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """The M stages, (B, S) each."""
        state = mean(self.embedding(inputs["input_ids"]), inputs["attention_mask"])  # (B, E)
        stages = []
        for layer in self.layers:
            state = self.dropout(torch.relu(layer(state)))  # (B, S)
            stages.append(state)
        return stages


class CnnBranch(_TextBranch):
    """M convolutions over three tokens each; a stage is the largest value over the tokens (Kim 2014)."""

    def __init__(self, facts: Facts, config: ModelConfig) -> None:
        super().__init__(facts, config)
        sizes = [config.branch_embedding, *[self.width] * self.depth]
        self.layers = nn.ModuleList(nn.Conv1d(a, b, kernel_size=3, padding=1) for a, b in pairwise(sizes))

    def stages(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """The M stages, (B, S) each."""
        embedded, mask = self.embed(inputs)
        real = mask.unsqueeze(1).to(embedded.dtype)  # (B, 1, T)
        state = embedded.transpose(1, 2)  # (B, E, T)
        stages = []
        for layer in self.layers:
            state = torch.relu(layer(state)) * real  # never below 0, so a padded place is never the largest
            stages.append(self.dropout(state.amax(dim=2)))  # (B, S)
        return stages


class GruBranch(_TextBranch):
    """M gated recurrent layers (Cho et al. 2014); a stage is a layer's state after the last real token."""

    def __init__(self, facts: Facts, config: ModelConfig) -> None:
        super().__init__(facts, config)
        sizes = [config.branch_embedding, *[self.width] * self.depth]
        self.layers = nn.ModuleList(_Gru(a, b) for a, b in pairwise(sizes))

    def stages(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """The M stages, (B, S) each."""
        state, mask = self.embed(inputs)
        # Real tokens first, wherever the padding was, so that no state ever sees padding before a token.
        places = torch.arange(mask.shape[1], device=mask.device) + mask.argmax(dim=1, keepdim=True)
        places = places.clamp(max=mask.shape[1] - 1).unsqueeze(2)  # what comes after the last one is not read
        state = state.gather(1, places.expand(-1, -1, state.shape[2]))
        end = (mask.sum(dim=1) - 1)[:, None, None].expand(-1, 1, self.width)
        stages = []
        for layer in self.layers:
            state = layer(state)  # (B, T, S)
            stages.append(self.dropout(state.gather(1, end).squeeze(1)))
            state = self.dropout(state)
        return stages


class _Gru(nn.GRU):
    """One recurrent layer, from (B, T, E) to (B, T, S). torch's exporter has no form for it, ONNX has: its own GRU."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(inputs, width, batch_first=True)

    def forward(self, state: Tensor) -> Tensor:  # type: ignore[override]  # without the last state
        """All states of one direction."""
        if not torch.compiler.is_exporting():
            states: Tensor = super().forward(state)[0]
            return states
        recurrent = [self._gates(weights).unsqueeze(0) for weights in (self.weight_ih_l0, self.weight_hh_l0)]
        bias = torch.cat([self._gates(self.bias_ih_l0), self._gates(self.bias_hh_l0)]).unsqueeze(0)
        states = torch.onnx.ops.symbolic(
            "GRU",
            [state.transpose(0, 1), *recurrent, bias],
            attrs={"hidden_size": self.hidden_size, "linear_before_reset": 1},
            dtype=state.dtype,
            shape=(state.shape[1], 1, state.shape[0], self.hidden_size),
            version=20,
        )
        return states.squeeze(1).transpose(0, 1)

    def _gates(self, weights: Any) -> Tensor:
        """From torch's order of the gates (reset, update, new) to ONNX's (update, reset, new)."""
        size = self.hidden_size
        result: Tensor = torch.cat([weights[size : 2 * size], weights[:size], weights[2 * size :]])
        return result


class TransformerBranch(_TextBranch):
    """M self-attention layers with their norms first (Xiong et al. 2020); a stage is the mean over real tokens.

    Sinusoidal positions (Vaswani et al. 2017), counted from a row's first real token.
    """

    def __init__(self, facts: Facts, config: ModelConfig) -> None:
        super().__init__(facts, config)
        self.enter = nn.Linear(config.branch_embedding, self.width)
        self.layers = nn.ModuleList(_SelfAttention(self.width, config.branch_dropout) for _ in range(self.depth))
        rates = torch.exp(torch.arange(0, self.width, 2) * (-9.21034 / self.width))  # log 10000
        self.rates: Tensor
        self.register_buffer("rates", rates, persistent=False)

    def stages(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """The M stages, (B, S) each."""
        embedded, mask = self.embed(inputs)
        angles = (mask.cumsum(dim=1) - 1).unsqueeze(2).to(embedded.dtype) * self.rates  # (B, T, ⌈S/2⌉)
        positions = torch.cat([angles.sin(), angles.cos()], dim=2)[:, :, : self.width]
        state = self.enter(embedded) + 0.1 * positions  # embeddings start as small
        stages = []
        for layer in self.layers:
            state = layer(state, mask)
            stages.append(self.dropout(mean(state, mask)))
        return stages


class _SelfAttention(nn.Module):
    """One layer with H heads of at least 16 units each."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.heads = next(h for h in range(max(1, width // 16), 0, -1) if width % h == 0)
        self.norm, self.norm_out = nn.LayerNorm(width), nn.LayerNorm(width)
        self.project, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.net = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, state: Tensor, mask: Tensor) -> Tensor:
        """From (B, T, S) and a mask (B, T) to (B, T, S)."""
        parts = self.project(self.norm(state)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)  # (B, H, T, S / H)
        scores = query @ key.transpose(2, 3) / key.shape[3] ** 0.5
        hidden = (1 - mask[:, None, None].to(scores.dtype)) * torch.finfo(scores.dtype).min
        attended = F.softmax(scores + hidden, dim=3) @ value
        state = state + self.dropout(self.mix(attended.transpose(1, 2).flatten(2)))
        result: Tensor = state + self.dropout(self.net(self.norm_out(state)))
        return result
