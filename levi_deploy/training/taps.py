"""The tap cache: a frozen backbone's hidden states, computed once for a set of rows and kept.

A row's taps never change, so every epoch, seed and ablation after the first reads them from disk,
memory-mapped. Fixed pooling keeps (N, K, D) in float32; attention pooling keeps every real token's
(K, D) in float16, ragged, no padding stored. It knows no targets and nothing of how they are used.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from levi_deploy.config import Pooling
from levi_deploy.model.backbone import Backbone
from levi_deploy.model.pooling import FixedPooling
from levi_serving.batching import plan
from levi_serving.errors import LeviError, UsageError
from levi_serving.preprocess import Encoded

__all__ = ["Taps", "cache_folder", "compute"]

_VERSION = 1
_VALUES = "taps.bin"
_BATCH_TOKENS = 2048  # fits a CPU's caches; larger batches were slower

Progress = Callable[[int, int], None]


def cache_folder() -> Path:
    """Where taps are kept: ``LEVI_CACHE``, or ``levi-deploy`` in the user's cache folder."""
    if folder := os.environ.get("LEVI_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "levi-deploy"


@dataclass(frozen=True)
class Taps:
    """The stored taps of N rows.

    Attributes:
        values: memory-mapped; fixed pooling (N, K, D) float32, attention (K, sum of lengths, D) float16.
        encoded: the rows' token ids.
        fixed: whether the taps are pooled already.
    """

    values: NDArray[np.float32] | NDArray[np.float16]
    encoded: Encoded
    fixed: bool

    def batch(self, rows: NDArray[np.int64]) -> list[Tensor]:
        """The K taps of the chosen B rows: (B, D) each when pooled, else (B, T, D), padded with zeros."""
        if self.fixed:
            return list(torch.from_numpy(self.values[rows]).unbind(dim=1))
        lengths = self.encoded.lengths[rows]
        longest, width = int(lengths.max()), self.values.shape[2]
        padded = torch.zeros((self.values.shape[0], len(rows), longest, width))
        for place, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            start = int(self.encoded.offsets[row])
            where = slice(0, length) if self.encoded.settings.padding_side == "right" else slice(-length, None)
            padded[:, place, where] = torch.from_numpy(self.values[:, start : start + length].astype(np.float32))
        return list(padded.unbind(dim=0))


def compute(
    backbone: Backbone,
    encoded: Encoded,
    pooling: Pooling,
    *,
    folder: Path,
    progress: Progress | None = None,
) -> Taps:
    """Compute the taps of N rows, or open them where they lie computed.

    Args:
        backbone: frozen.
        encoded: the rows' token ids.
        pooling: fixed poolings are applied before storing.
        folder: the cache. An entry is complete or not there: it is written aside and renamed.
        progress: told rows done and N, after each batch.

    Raises:
        UsageError: the disk has no room for the entry.
        LeviError: a hidden state does not fit float16.
    """
    fixed = pooling != "attention"
    taps, width = len(backbone.taps), backbone.identity.width
    shape = (len(encoded), taps, width) if fixed else (taps, len(encoded.ids), width)
    dtype = np.float32 if fixed else np.float16
    entry = folder / "taps" / _key(backbone, encoded, pooling)
    if not (entry / _VALUES).is_file():
        needed = int(np.prod(shape)) * np.dtype(dtype).itemsize
        entry.parent.mkdir(parents=True, exist_ok=True)
        if needed > 0.95 * (free := shutil.disk_usage(entry.parent).free):
            raise UsageError(
                f"The taps of {len(encoded)} rows need {needed / 1e9:.1f} GB, but {folder} has {free / 1e9:.1f} GB "
                "free. Point LEVI_CACHE to a larger disk, tap fewer layers, or use --pooling mean."
            )
        aside = Path(tempfile.mkdtemp(prefix=".computing-", dir=entry.parent))
        try:
            values = np.memmap(aside / _VALUES, dtype=dtype, mode="w+", shape=shape)
            _fill(values, backbone, encoded, pooling, progress)
            values.flush()
            (aside / "about.json").write_text(
                json.dumps({"backbone": backbone.identity.name, "taps": backbone.taps, "pooling": pooling}) + "\n"
            )
            try:
                aside.rename(entry)
            except OSError:
                if not (entry / _VALUES).is_file():  # another process may have finished the same entry first
                    raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return Taps(np.memmap(entry / _VALUES, dtype=dtype, mode="r", shape=shape), encoded, fixed)


def _key(backbone: Backbone, encoded: Encoded, pooling: Pooling) -> str:
    """A digest of all that the taps depend on: weights, depths, pooling, padding side, and token ids."""
    digest = hashlib.sha256()
    stored = pooling if pooling != "attention" else "tokens"
    settings = (_VERSION, backbone.identity.digest, backbone.taps, stored, encoded.settings.padding_side)
    digest.update(repr(settings).encode())
    digest.update(np.ascontiguousarray(encoded.offsets).data)
    digest.update(np.ascontiguousarray(encoded.ids).data)
    return digest.hexdigest()[:32]


@torch.inference_mode()
def _fill(
    values: np.memmap[tuple[int, ...], np.dtype[np.float32 | np.float16]],
    backbone: Backbone,
    encoded: Encoded,
    pooling: Pooling,
    progress: Progress | None,
) -> None:
    pool = FixedPooling(pooling, backbone.identity.width) if pooling != "attention" else None
    done = 0
    for rows in plan(encoded.lengths, max_tokens=_BATCH_TOKENS, max_rows=512):
        feeds = {name: torch.from_numpy(array) for name, array in encoded.batch(rows).items()}
        hidden = backbone(**feeds)  # K × (B, T, D)
        if pool is not None:
            values[rows] = torch.stack([pool(tap, feeds["attention_mask"]) for tap in hidden], dim=1).numpy()
        else:
            _store_tokens(values, hidden, feeds["attention_mask"].bool(), rows, encoded)
        done += len(rows)
        if progress is not None:
            progress(done, len(encoded))


def _store_tokens(
    values: NDArray[np.float32 | np.float16],
    hidden: Sequence[Tensor],
    real: Tensor,
    rows: NDArray[np.int64],
    encoded: Encoded,
) -> None:
    starts, lengths = encoded.offsets[rows], encoded.lengths[rows]
    for k, tap in enumerate(hidden):
        tokens = tap[real].to(torch.float16)  # (sum of lengths, D), row after row
        if not torch.isfinite(tokens).all():
            raise LeviError(
                "A hidden state of this backbone is too large for float16, in which attention pooling stores "
                "tokens. Use --pooling mean, first or last, which store float32."
            )
        pieces = tokens.numpy()
        place = 0
        for start, length in zip(starts, lengths, strict=True):
            values[k, start : start + length] = pieces[place : place + length]
            place += length
