"""Serve a LEVI bundle with onnxruntime, numpy and tokenizers alone.

``Runner(folder).predict(rows)`` answers; ``predict_file`` goes from file to file; ``verify`` replays a
bundle's proof on this machine; ``Bundle.open(folder)`` says what a bundle is.
"""

from levi_serving.bundle import Bundle
from levi_serving.engine.runner import Runner
from levi_serving.errors import LeviError
from levi_serving.files.predict import predict_file
from levi_serving.parity import verify
from levi_serving.predictions import Predictions

__all__ = ["Bundle", "LeviError", "Predictions", "Runner", "predict_file", "verify"]
