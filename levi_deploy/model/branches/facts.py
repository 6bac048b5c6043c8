"""What a branch is, and what it may know of the rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Branch", "Facts"]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a model is built for, beside its configuration.

    Attributes:
        vocabulary: token ids there are; 0 without text.
        pixels: height and width of an image; None without.
        numeric: columns of numbers.
        categorical: the buckets of each categorical column, the unknown one included.
        nodes: the nodes of each side of the graph, the unseen one included; empty without.
        edges: (2, E) int64, a node of each side for each edge. Needed to train a graph branch; to load
            one, the tables folded from it are enough.
    """

    vocabulary: int = 0
    pixels: tuple[int, int] | None = None
    numeric: int = 0
    categorical: tuple[int, ...] = ()
    nodes: tuple[int, ...] = ()
    edges: NDArray[np.int64] | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        """What a branch can read of a row; numeric and categorical columns are one."""
        there = {
            "input_ids": self.vocabulary > 0,
            "pixel_values": self.pixels is not None,
            "numeric": self.numeric > 0 or bool(self.categorical),
            "nodes": bool(self.nodes),
        }
        return tuple(name for name, has in there.items() if has)


class Branch(Protocol):
    """What a branch offers, beside being a ``torch.nn.Module`` made from ``(facts, config)``.

    Attributes:
        width: S of each stage.
        inputs: names of the graph inputs it reads: ``input_ids``, ``attention_mask``, ``pixel_values``,
            ``numeric``, ``categorical``, ``nodes``.
    """

    width: int
    inputs: tuple[str, ...]

    def stages(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """The M stages, (B, S) each, for a batch of inputs by name."""
        ...
