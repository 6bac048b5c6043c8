"""Train LEVI models on stored taps."""

from levi_deploy.training.baselines import branch_alone, linear_probe
from levi_deploy.training.checkpoint import Run
from levi_deploy.training.train import train

__all__ = ["Run", "branch_alone", "linear_probe", "train"]
