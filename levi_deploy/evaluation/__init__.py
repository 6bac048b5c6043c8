"""Measure what is served."""

from levi_deploy.evaluation.evaluate import assess, evaluate
from levi_deploy.evaluation.metrics import metrics

__all__ = ["assess", "evaluate", "metrics"]
