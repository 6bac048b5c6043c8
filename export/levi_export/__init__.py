"""One ONNX graph, proven equal to the model it came from."""

from levi_export.export import export

__all__ = ["export"]
