"""From image files to pixels. Knows Pillow; knows no rows and no model."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["ImageSettings", "decode", "normalise"]


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """How an image becomes an array."""

    column: str = "image"
    resize: tuple[int, int] = (224, 224)
    crop: None = None
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    @property
    def height(self) -> int:
        """In pixels."""
        return self.resize[0]

    @property
    def width(self) -> int:
        """In pixels."""
        return self.resize[1]


def decode(cell: bytes | str | Path, settings: ImageSettings) -> NDArray[np.uint8]:
    """One image as (height, width, 3)."""
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(cell) if isinstance(cell, bytes) else cell).convert("RGB")
    except OSError as error:
        raise ValueError(str(error)) from error
    return np.asarray(image.resize((settings.width, settings.height)))


def normalise(pixels: NDArray[np.uint8], settings: ImageSettings) -> NDArray[np.float32]:
    """(B, height, width, 3) to (B, 3, height, width)."""
    scaled = (pixels / 255 - settings.mean) / settings.std
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2), dtype=np.float32)
