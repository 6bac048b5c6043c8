"""The tap cache: a frozen backbone's hidden states, computed once for a set of rows and kept.

A row's taps never change, so every epoch, seed and ablation after the first reads them from disk,
memory-mapped, a depth an entry. Fixed pooling keeps (N, D) in float32; the others keep tokens in
float16: a text's real ones, ragged, no padding stored, and all of an image's.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from levi_deploy.config import FIXED_POOLINGS, Pooling
from levi_deploy.model.backbone import Backbone
from levi_deploy.model.pooling import FixedPooling
from levi_deploy.training.device import half
from levi_serving.engine.batching import Limits, plan
from levi_serving.errors import LeviError, UsageError
from levi_serving.rows.preprocess import Encoded

__all__ = ["Taps", "compute"]

_VERSION = 4
_ABOUT, _VALUES, _ASIDE = "about.json", "values.bin", ".computing-"
_LIMITS = {
    "cpu": Limits(tokens=2048, rows=512),  # fits a CPU's caches; larger batches were slower
    "cuda": Limits(tokens=65536, rows=2048),
}

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Taps:
    """The stored taps of N rows.

    Attributes:
        values: one array a tap: pooled (N, D) float32; an image's tokens (N, T, D) float16; a text's
            tokens (sum of lengths, D) float16.
        encoded: the rows that they were computed for.
        fixed: whether the taps are pooled already.
        rows: which of those rows take part, (N,); all of them when None.
    """

    values: list[NDArray[Any]]
    encoded: Encoded
    fixed: bool
    rows: NDArray[np.int64] | None = None

    def narrowed(self, rows: NDArray[np.int64], taps: Sequence[int]) -> Taps:
        """The chosen rows of the chosen taps; nothing is copied."""
        among = rows if self.rows is None else self.rows[rows]
        return Taps([self.values[tap] for tap in taps], self.encoded, self.fixed, among)

    def batch(self, rows: NDArray[np.int64]) -> list[Tensor]:
        """The K taps of the chosen B rows: (B, D) each when pooled, else (B, T, D), text padded with zeros."""
        rows = rows if self.rows is None else self.rows[rows]
        if self.fixed:
            return [torch.from_numpy(values[rows]) for values in self.values]
        if self.values[0].ndim == 3:
            return [torch.from_numpy(values[rows].astype(np.float32)) for values in self.values]
        tokens = self.encoded.tokens
        assert tokens is not None  # noqa: S101  # ragged taps are a text's
        real, places = tokens.real(rows), tokens.places(rows)
        where = np.flatnonzero(real)
        taps = []
        for values in self.values:
            padded = np.zeros((real.size, values.shape[1]), dtype=np.float32)
            padded[where] = values[places]
            taps.append(torch.from_numpy(padded.reshape(*real.shape, -1)))
        return taps


def compute(
    backbone: Backbone,
    encoded: Encoded,
    pooling: Pooling,
    *,
    folder: Path,
    exact: bool = True,
    progress: Progress | None = None,
) -> Taps:
    """Compute the taps of N rows, or open those that lie computed.

    Each depth is an entry of its own, so models that read different depths share what they have in common.

    Args:
        backbone: frozen, on the device that computes.
        encoded: the rows.
        pooling: fixed poolings are applied before storing.
        folder: the cache. An entry is complete or not there: it is written aside and renamed.
        exact: in float32 on a CUDA GPU too, where bfloat16 is faster.
        progress: given rows done and N, after each batch.

    Raises:
        UsageError: the disk has no room for the entries.
        LeviError: a hidden state does not fit float16.
    """
    fixed = pooling in FIXED_POOLINGS
    device = next(backbone.parameters()).device
    precision = nullcontext() if exact else half(device)
    dtype = "float32" if isinstance(precision, nullcontext) else "bfloat16"
    entries = folder / "taps" / _key(backbone, encoded, pooling, dtype)

    def missing() -> list[int]:
        return [depth for depth in backbone.taps if not (entries / str(depth) / _ABOUT).is_file()]

    if missing():
        with _alone(entries), tempfile.TemporaryDirectory(prefix=_ASIDE, dir=entries) as temporary:
            aside = Path(temporary)
            if depths := missing():  # another process may have computed them meanwhile
                store = _Store(aside, encoded, depths, fixed=fixed)
                _fill(store, backbone, encoded, pooling, device, precision, progress)
                store.close({"backbone": backbone.identity.name, "pooling": pooling if fixed else "none"})
            for depth in depths:
                try:
                    (aside / str(depth)).rename(entries / str(depth))
                except OSError:
                    if not (entries / str(depth) / _ABOUT).is_file():  # where processes do not wait for each other
                        raise
    stored = np.float32 if fixed else np.float16
    values = []
    for depth in backbone.taps:
        shape = json.loads((entries / str(depth) / _ABOUT).read_text(encoding="utf-8"))["shape"]
        values.append(np.memmap(entries / str(depth) / _VALUES, dtype=stored, mode="r", shape=tuple(shape)))
    return Taps(list(values), encoded, fixed)


@contextmanager
def _alone(entries: Path) -> Iterator[None]:
    """Wait while another process adds to these entries, and clear away what one left that was killed.

    Where the system has no such locks nobody waits: the same may then be computed twice.
    """
    entries.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:
        yield
        return
    with (entries / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the process ends, however it does
        for left in entries.glob(f"{_ASIDE}*"):
            shutil.rmtree(left, ignore_errors=True)
        yield


def _key(backbone: Backbone, encoded: Encoded, pooling: Pooling, dtype: str) -> str:
    """A digest of all that the taps of any depth depend on: weights, dtype, pooling, and what is read of rows."""
    stored = pooling if pooling in FIXED_POOLINGS else "tokens"
    settings = encoded.settings.text if backbone.identity.modality == "text" else encoded.settings.image
    digest = hashlib.sha256(repr((_VERSION, backbone.identity.digest, dtype, stored, settings)).encode())
    names = ("ids", "offsets", "types") if backbone.identity.modality == "text" else ("pixel_values",)
    arrays = encoded.stored()
    for name in names:
        if name in arrays:
            digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()[:32]


class _Store:
    """The entries of some depths while they are written; their shapes are known with the first batch."""

    def __init__(self, folder: Path, encoded: Encoded, depths: Sequence[int], *, fixed: bool) -> None:
        self.folder, self.encoded, self.depths, self.fixed = folder, encoded, depths, fixed
        self.values: list[np.memmap[Any, Any]] = []

    def open(self, taps: list[Tensor]) -> None:
        """Make room for N rows of such taps."""
        tokens, count = self.encoded.tokens, len(self.encoded)
        ragged = not self.fixed and tokens is not None and taps[0].dim() == 2
        first = len(tokens.ids) if ragged and tokens is not None else count
        dtype = np.dtype(np.float32 if self.fixed else np.float16)
        shapes = [(first, *tap.shape[1:]) for tap in taps]
        needed = sum(int(np.prod(shape)) for shape in shapes) * dtype.itemsize
        if needed > 0.95 * (free := shutil.disk_usage(self.folder).free):
            raise UsageError(
                f"The taps of {count} rows need {needed / 1e9:.1f} GB, but {self.folder.parent} has {free / 1e9:.1f} "
                "GB free. Point LEVI_CACHE to a larger disk, tap fewer layers, or set `pooling` to mean."
            )
        for depth, shape in zip(self.depths, shapes, strict=True):
            (self.folder / str(depth)).mkdir()
            file = self.folder / str(depth) / _VALUES
            self.values.append(np.memmap(file, dtype=dtype, mode="w+", shape=shape))

    def write(self, places: NDArray[np.int64], taps: list[Tensor]) -> None:
        """Put each tap's rows at their places.

        Raises:
            LeviError: a value does not fit.
        """
        if not self.values:
            self.open(taps)
        for values, tap in zip(self.values, taps, strict=True):
            if not self.fixed:
                tap = tap.to(torch.float16)
                if not torch.isfinite(tap).all():
                    raise LeviError(
                        "A hidden state of this backbone is too large for float16, in which its tokens are stored. "
                        "Set `pooling` to mean, first or last, which store float32."
                    )
            values[places] = tap.cpu().numpy()

    def close(self, about: dict[str, Any]) -> None:
        """Write everything out."""
        for depth, values in zip(self.depths, self.values, strict=True):
            values.flush()
            text = json.dumps({**about, "depth": depth, "shape": values.shape})
            (self.folder / str(depth) / _ABOUT).write_text(text + "\n", encoding="utf-8")


@torch.inference_mode()
def _fill(
    store: _Store,
    backbone: Backbone,
    encoded: Encoded,
    pooling: Pooling,
    device: torch.device,
    precision: AbstractContextManager[object],
    progress: Progress | None,
) -> None:
    pool = FixedPooling(pooling, 0) if pooling in FIXED_POOLINGS else None
    text = backbone.identity.modality == "text"
    tokens = encoded.tokens
    done = 0
    for rows in plan(encoded.costs, _LIMITS.get(device.type, _LIMITS["cpu"])):
        feeds = {name: torch.from_numpy(array).to(device) for name, array in encoded.batch(rows).items()}
        with precision:
            taps = dict(zip(backbone.taps, backbone(feeds), strict=True))
        hidden = [taps[depth] for depth in store.depths]  # (B, T, D) each
        mask = feeds["attention_mask"] if text else None
        if pool is not None:
            store.write(rows, [pool(tap, mask)[0] for tap in hidden])
        elif mask is None or tokens is None:
            store.write(rows, hidden)
        else:
            real = mask.bool()
            store.write(tokens.places(rows), [tap[real] for tap in hidden])  # (sum of lengths, D), row after row
        done += len(rows)
        if progress is not None:
            progress(done, len(encoded))
