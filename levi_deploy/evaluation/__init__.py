"""Measure what is served."""

from levi_deploy.evaluation.evaluate import evaluate
from levi_deploy.evaluation.metrics import metrics

__all__ = ["evaluate", "metrics"]
