"""How a tap's tokens become one vector: (B, T, D) to (B, R·D).

An image's patches are tokens too.

Fixed poolings have nothing to learn, so their result can be computed once for a row and stored;
attention pooling learns, so a row's tokens are stored instead.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from levi_deploy.config import Pooling as Name

__all__ = ["AttentionPooling", "FixedPooling", "pooling"]


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

    learned = False

    def __init__(self, name: Name, width: int) -> None:
        super().__init__()
        self.width = width  # D
        self._pool = _FIXED[name]

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """Pool (B, T, D) under a mask (B, T), None where all is real, to (B, D)."""
        return self._pool(hidden, mask)


class AttentionPooling(nn.Module):
    """The mean, and beside it Q learned queries that attend over the tap's tokens.

    Each query q weighs token t by softmax_t(q · h_t / sqrt(D)): scaled dot-product attention (Vaswani
    et al. 2017) with the tokens as keys and values, so a query costs one row of two small products.
    """

    learned = True

    def __init__(self, width: int, queries: int) -> None:
        super().__init__()
        self.width = (1 + queries) * width  # (1 + Q) · D
        self.queries = nn.Parameter(torch.randn(queries, width))

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """Pool (B, T, D) under a mask (B, T), None where all is real, to (B, (1 + Q) · D)."""
        # The mean is a query of zeros: it weighs all real tokens alike. All of this is a constant when it serves.
        queries = torch.cat([torch.zeros_like(self.queries[:1]), self.queries]) / hidden.shape[2] ** 0.5
        scores = (hidden @ queries.T).transpose(1, 2)  # (B, 1 + Q, T): the scores are turned, not the tokens
        if mask is not None:
            scores = scores + (1 - mask.to(hidden.dtype)).unsqueeze(1) * torch.finfo(hidden.dtype).min
        pooled: Tensor = (scores.softmax(dim=2) @ hidden).flatten(1)
        return pooled


def pooling(name: Name, *, width: int, queries: int) -> FixedPooling | AttentionPooling:
    """Make the pooling of one tap of D = ``width``."""
    return AttentionPooling(width, queries) if name == "attention" else FixedPooling(name, width)
