"""Serve a LEVI bundle with onnxruntime, numpy and tokenizers alone.

``Runner(folder).predict(rows)`` answers; ``predict_file`` goes from file to file; ``verify`` replays a
bundle's proof on this machine; ``Bundle.open(folder)`` tells what a bundle is.
"""

from levi_serving.bundle import Bundle
from levi_serving.errors import LeviError
from levi_serving.parity import verify
from levi_serving.predict import predict_file
from levi_serving.predictions import Predictions
from levi_serving.runner import Runner

__all__ = ["Bundle", "LeviError", "Predictions", "Runner", "predict_file", "verify"]
