"""One ONNX graph, proven equal to the model it came from."""

from levi_export.pipeline import export

__all__ = ["export"]
