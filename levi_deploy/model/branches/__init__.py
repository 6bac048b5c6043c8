"""Branches: the small models trained from scratch.

A branch is a module made from ``(facts, config)`` with a width S, the inputs it reads, and one method,
``stages``. One from another package is named by its import string, ``package.module:Class``, or by the
name of an entry point in the group ``levi_deploy.branches``.
"""

from __future__ import annotations

import importlib
from importlib import metadata
from typing import Any

from torch import nn

from levi_deploy.config import BRANCH_GROUP, ModelConfig
from levi_deploy.model.branches.columns import TabularBranch
from levi_deploy.model.branches.facts import Branch, Facts
from levi_deploy.model.branches.graph import GraphBranch
from levi_deploy.model.branches.image import ImageCnnBranch
from levi_deploy.model.branches.text import CnnBranch, GruBranch, MlpBranch, TransformerBranch
from levi_serving.errors import UsageError

__all__ = ["Branch", "Facts", "branch_names", "make"]

_TABLE: dict[str, dict[str, type[nn.Module]]] = {  # by the input they read, then by name; the first is the default
    "input_ids": {"mlp": MlpBranch, "cnn": CnnBranch, "gru": GruBranch, "transformer": TransformerBranch},
    "pixel_values": {"cnn": ImageCnnBranch},
    "numeric": {"tabular": TabularBranch},
    "nodes": {"graph": GraphBranch},
}


def branch_names(config: ModelConfig, facts: Facts) -> tuple[str, ...]:
    """The branches to make: those that are configured, or one that fits each input of the rows."""
    if config.branches is not None:
        return config.branches
    return tuple(next(iter(_TABLE[name])) for name in _TABLE if name in facts.inputs)


def make(name: str, facts: Facts, config: ModelConfig) -> Any:
    """Make one branch by its name.

    Raises:
        UsageError: there is no such branch, or it does not fit what the rows have.
    """
    if ":" in name:
        return _import(name)(facts, config)
    for entry in metadata.entry_points(group=BRANCH_GROUP, name=name):
        return _import(entry.value)(facts, config)
    for read, classes in _TABLE.items():
        if name in classes and read in facts.inputs:
            return classes[name](facts, config)
    raise UsageError(f"The branch {name!r} does not fit: these rows have {', '.join(facts.inputs)} alone.")


def _import(name: str) -> Any:
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"The branch {name!r} cannot be imported: {error}.") from error
