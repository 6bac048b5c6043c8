"""A branch that reads images."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

from levi_deploy.config import ModelConfig
from levi_deploy.model.branches.facts import Facts

__all__ = ["ImageCnnBranch"]

_DEPTH = 4


class ImageCnnBranch(nn.Module):
    """M convolutions that halve the image each (four in the paper); a stage is the mean over its places."""

    inputs = ("pixel_values",)

    def __init__(self, facts: Facts, config: ModelConfig) -> None:  # noqa: ARG002  # as every branch
        super().__init__()
        self.width = config.branch_width
        sizes = [3, *[self.width] * (config.branch_depth or _DEPTH)]
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, kernel_size=3, stride=2, padding=1), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in pairwise(sizes)
        )
        self.dropout = nn.Dropout(config.branch_dropout)

    def stages(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """The M stages, (B, S) each."""
        state = inputs["pixel_values"]
        stages = []
        for layer in self.layers:
            state = layer(state)  # (B, S, h, w)
            stages.append(self.dropout(torch.mean(state, dim=(2, 3))))
        return stages
