"""From file to file: a million messy rows in bounded memory, resumable."""

from levi_serving.files.predict import Summary, predict_file

__all__ = ["Summary", "predict_file"]
