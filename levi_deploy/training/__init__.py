"""Train models on rows that are prepared once, on stored taps where the backbone is frozen."""

from levi_deploy.training.prepare import Prepared, prepare
from levi_deploy.training.train import train

__all__ = ["Prepared", "prepare", "train"]
