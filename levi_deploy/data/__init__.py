"""From a table to what training and evaluation need: rows, targets, and which rows are which. No torch."""

from levi_deploy.data.dataset import Dataset, TrainingData, load, read
from levi_deploy.data.targets import encode_targets

__all__ = ["Dataset", "TrainingData", "encode_targets", "load", "read"]
