"""What this machine can do at most, measured: float32 matrix products, and memory streamed.

Both are the best of several tries, so that other work on the machine lowers them as little as possible.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from levi_serving.bench.breakdown.onnx_file import matrix_product
from levi_serving.engine.session import Session

__all__ = ["Peak", "measure_peak", "numpy_products"]

_SIZES = (512, 1024, 2048)  # of square matrices; small ones fit the caches, large ones have less overhead
_SECONDS = 0.4  # of each size
_STREAM_BYTES = 128 * 2**20  # each of the two arrays: more than any cache holds
# A variable that lowers numpy's own rate would make ours look better than it is.
_LIMITS = ("OPENBLAS_CORETYPE",)
_THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")


@dataclass(frozen=True)
class Peak:
    """Rates of this machine with a number of threads.

    Attributes:
        threads: that were used.
        products: operations of float32 matrix products in a second.
        by: whose product was the fastest, and of which size.
        stream: bytes read and written in a second by copying one array into another.
    """

    threads: int
    products: float
    by: str
    stream: float


def measure_peak(threads: int) -> Peak:
    """Measure with that many threads, as a session has; takes about five seconds."""
    found = {f"onnxruntime, {size} x {size}": _onnxruntime(size, threads) for size in _SIZES}
    # numpy's threads can be set only before it is loaded: a process of its own.
    environment = {name: value for name, value in os.environ.items() if name not in _LIMITS}
    environment |= dict.fromkeys(_THREADS, str(threads))
    code = "from levi_serving.bench.breakdown.peak import numpy_products; print(*numpy_products())"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    rates = map(float, done.stdout.split())
    found |= {f"numpy, {size} x {size}": rate for size, rate in zip(_SIZES, rates, strict=True)}
    by = max(found, key=found.__getitem__)
    return Peak(threads, found[by], by, _stream(threads))


def numpy_products() -> list[float]:
    """Operations in a second of numpy's float32 product, for each size."""
    rates = []
    for size in _SIZES:
        left, right = _square(size), _square(size)
        result = np.empty_like(left)
        rates.append(2 * size**3 / _fastest(partial(np.matmul, left, right, out=result)))
    return rates


def _onnxruntime(size: int, threads: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "product.onnx"
        path.write_bytes(matrix_product(size, size, size, _square(size).tobytes()))
        session = Session(path, device="cpu", threads=threads)
        feeds = {"x": _square(size)}
        return 2 * size**3 / _fastest(lambda: session.run(feeds))


def _stream(threads: int) -> float:
    """Bytes in a second of a copy: each is read once and written once, and both count."""
    source = np.ones(_STREAM_BYTES, dtype=np.uint8)
    target = np.zeros_like(source)  # written, so that its pages are there
    bounds = np.linspace(0, _STREAM_BYTES, threads + 1).astype(int)
    pieces = [slice(start, stop) for start, stop in itertools.pairwise(bounds)]

    def copy(piece: slice) -> None:
        np.copyto(target[piece], source[piece])  # without Python's lock

    with ThreadPoolExecutor(threads) as pool:
        return 2 * _STREAM_BYTES / _fastest(lambda: list(pool.map(copy, pieces)))


def _square(size: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.random.default_rng(0).random((size, size), dtype=np.float32)


def _fastest(act: Callable[[], object]) -> float:
    """Seconds of the fastest of at least three runs, after one that does not count."""
    act()
    took: list[float] = []
    while len(took) < 3 or sum(took) < _SECONDS:
        started = time.perf_counter()
        act()
        took.append(time.perf_counter() - started)
    return min(took)
