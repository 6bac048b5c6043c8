"""From rows to the graph's arrays, for training and serving alike."""

from levi_serving.rows.preprocess import Encoded, Preprocessing, Preprocessor, Row

__all__ = ["Encoded", "Preprocessing", "Preprocessor", "Row"]
