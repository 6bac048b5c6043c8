"""Tables in and out, a window at a time: CSV, TSV, JSONL, Parquet, and folders of images."""

from levi_serving.tables.formats import find_format, located, read_columns
from levi_serving.tables.table import BadRow, Chunk, Format, Records, opened, require, source_name

__all__ = [
    "BadRow",
    "Chunk",
    "Format",
    "Records",
    "find_format",
    "located",
    "opened",
    "read_columns",
    "require",
    "source_name",
]
