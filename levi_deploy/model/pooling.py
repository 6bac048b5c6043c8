"""How a tap's tokens become one vector: (B, T, D) to (B, P).

An image's patches are tokens too.

Fixed poolings have nothing to learn, so their result can be computed once for a row and stored. The others learn, so
a row's tokens are stored instead. Each is called with what the tap below handed up, and hands something up itself:
only a ladder does.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from levi_deploy.config import FIXED_POOLINGS, ModelConfig
from levi_deploy.config import Pooling as Name

__all__ = ["AttentionPooling", "FixedPooling", "Rung", "TokenReading", "pooling"]


def mean(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """The mean over real tokens, (B, T, D) to (B, D)."""
    if mask is None:
        return hidden.mean(dim=1)
    weights = mask.to(hidden.dtype)
    weights = weights / weights.sum(dim=1, keepdim=True)
    return (weights.unsqueeze(1) @ hidden).squeeze(1)  # one matrix product: nothing of (B, T, D) is made


def first(hidden: Tensor, mask: Tensor | None) -> Tensor:  # noqa: ARG001  # as the other poolings
    """The first token (padding on the right), (B, T, D) to (B, D)."""
    return hidden[:, 0]


def last(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """The last real token, wherever the padding is, (B, T, D) to (B, D)."""
    if mask is None:
        return hidden[:, -1]
    positions = torch.arange(mask.shape[1], device=mask.device)
    index = (positions * mask).argmax(dim=1)
    return hidden.gather(1, index[:, None, None].expand(-1, 1, hidden.shape[2])).squeeze(1)


_FIXED: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {"mean": mean, "first": first, "last": last}


class FixedPooling(nn.Module):
    """A pooling with nothing to learn: ``mean``, ``first`` or ``last``."""

    def __init__(self, name: Name, width: int) -> None:
        super().__init__()
        self.width = width  # P = D
        self._pool = _FIXED[name]

    def forward(self, hidden: Tensor, mask: Tensor | None, below: Tensor | None = None) -> tuple[Tensor, None]:  # noqa: ARG002
        """Pool (B, T, D) under a mask (B, T), None where all is real, to (B, D)."""
        return self._pool(hidden, mask), None


class _Queries(nn.Module):
    """The mean, and beside it Q learned queries that attend over tokens of width W: (B, T, W) to (B, (1 + Q) · W).

    Each query q weighs token t by softmax_t(q · h_t / sqrt(W)): scaled dot-product attention (Vaswani et al. 2017)
    with the tokens as keys and values, so a query costs one row of two small products.
    """

    def __init__(self, width: int, queries: int) -> None:
        super().__init__()
        self.width = (1 + queries) * width
        self.queries = nn.Parameter(torch.randn(queries, width))

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        # The mean is a query of zeros: it weighs all real tokens alike. All of this is a constant when it serves.
        queries = torch.cat([torch.zeros_like(self.queries[:1]), self.queries]) / tokens.shape[2] ** 0.5
        scores = (tokens @ queries.T).transpose(1, 2)  # (B, 1 + Q, T): the scores are turned, not the tokens
        if mask is not None:
            scores = scores + _hidden(mask, tokens.dtype).unsqueeze(1)
        pooled: Tensor = (scores.softmax(dim=2) @ tokens).flatten(1)
        return pooled


class AttentionPooling(_Queries):
    """The tap's mean and Q learned queries over its tokens."""

    def forward(  # type: ignore[override]
        self,
        hidden: Tensor,
        mask: Tensor | None,
        below: Tensor | None = None,  # noqa: ARG002
    ) -> tuple[Tensor, None]:
        """Pool (B, T, D) under a mask (B, T), None where all is real, to (B, (1 + Q) · D)."""
        return super().forward(hidden, mask), None


class _Summary(nn.Module):
    """Tokens of width W as one vector: their mean, Q learned queries and the largest value: (B, (2 + Q) · W)."""

    def __init__(self, width: int, queries: int) -> None:
        super().__init__()
        self.attend = _Queries(width, queries)
        self.width = self.attend.width + width

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            largest = tokens.amax(dim=1)
        else:
            largest = (tokens + _hidden(mask, tokens.dtype).unsqueeze(2)).amax(dim=1)
        return torch.cat([self.attend(tokens, mask), largest], dim=1)


class TokenReading(nn.Module):
    """Each token through a small non-linear map before it is pooled, beside the tap's own mean."""

    def __init__(self, width: int, config: ModelConfig) -> None:
        super().__init__()
        units = config.side_width
        self.norm = nn.LayerNorm(width, elementwise_affine=False)  # the projection learns scale and shift
        self.project = nn.Linear(width, units)
        self.dropout = nn.Dropout(config.side_dropout)
        self.summary = _Summary(units, config.queries)
        self.width = width + self.summary.width

    def forward(
        self,
        hidden: Tensor,
        mask: Tensor | None,
        below: Tensor | None = None,  # noqa: ARG002
    ) -> tuple[Tensor, None]:
        """Pool (B, T, D) under a mask (B, T), None where all is real, to (B, D + (2 + Q) · W)."""
        tokens = self.dropout(F.gelu(self.project(self.norm(hidden))))
        return torch.cat([mean(hidden, mask), self.summary(tokens, mask)], dim=1), None


class Rung(nn.Module):
    """One rung of a ladder (Ladder Side-Tuning, Sung et al. 2022): a narrow transformer block beside a tap.

    The tap's tokens, normalised and projected to W, are added to what the rung below handed up; the block's output is
    handed up and summarised. Where the rung below had another number of tokens, as in a backbone that halves its
    feature maps, its mean is added to every token.
    """

    heads = 4

    def __init__(self, width: int, config: ModelConfig) -> None:
        super().__init__()
        units = config.side_width
        self.norm = nn.LayerNorm(width, elementwise_affine=False)  # the projection learns scale and shift
        self.project = nn.Linear(width, units)
        self.norm_attend = nn.LayerNorm(units)
        self.attend, self.mix = nn.Linear(units, 3 * units), nn.Linear(units, units)
        self.norm_net = nn.LayerNorm(units)
        self.net = nn.Sequential(nn.Linear(units, 2 * units), nn.GELU(), nn.Linear(2 * units, units))
        self.dropout = nn.Dropout(config.side_dropout)
        self.summary = _Summary(units, config.queries)
        self.width = width + self.summary.width

    def forward(self, hidden: Tensor, mask: Tensor | None, below: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Pool (B, T, D) under a mask (B, T), None where all is real.

        Args:
            hidden: the tap's tokens.
            mask: which of them are real.
            below: the state of the rung below, (B, T', W); None for the first.

        Returns:
            (B, D + (2 + Q) · W), and the state (B, T, W).
        """
        state = self.project(self.norm(hidden))
        if below is not None:
            state = state + (below if below.shape[1] == state.shape[1] else mean(below, mask).unsqueeze(1))
        query, key, value = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in self.attend(self.norm_attend(state)).chunk(3, dim=2)
        )  # (B, heads, T, W / heads)
        # Written out: of torch's own function the exporter makes twice as many nodes.
        scores = query @ key.transpose(2, 3) * query.shape[3] ** -0.5
        if mask is not None:
            scores = scores + _hidden(mask, scores.dtype)[:, None, None]
        attended = (scores.softmax(dim=3) @ value).transpose(1, 2).flatten(2)
        state = state + self.dropout(self.mix(attended))
        state = state + self.dropout(self.net(self.norm_net(state)))
        return torch.cat([mean(hidden, mask), self.summary(state, mask)], dim=1), state


def _hidden(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to hide padding, (B, T): 0 on real tokens, the lowest number on others."""
    return (1 - mask.to(dtype)) * torch.finfo(dtype).min


def pooling(config: ModelConfig, width: int) -> FixedPooling | AttentionPooling | TokenReading | Rung:
    """Make the pooling of one tap of D = ``width``."""
    if config.pooling in FIXED_POOLINGS:
        return FixedPooling(config.pooling, width)
    if config.pooling == "attention":
        return AttentionPooling(width, config.queries)
    return (TokenReading if config.pooling == "tokens" else Rung)(width, config)
