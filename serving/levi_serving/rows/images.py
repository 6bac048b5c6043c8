"""From image files to pixels, as the backbone's own image processor makes them.

The only file that knows Pillow, and it imports it when the first image is decoded.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from levi_serving.errors import MissingExtraError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["LARGEST", "ImageSettings", "decode", "fit", "normalise"]

LARGEST = 89_478_485
"""Pixels of the largest image that is decoded (Pillow's own limit): a small file can hold gigabytes."""

_HIGH = 65_535  # the largest value of a 16-bit grey


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """How an image becomes an array: resized, cropped around its centre, scaled, normalised, in this order.

    Attributes:
        column: the row's column that holds the image.
        resize: (height, width); or the shorter side, the other in proportion; or None.
        crop: (height, width) cut from the centre, black where the image is smaller; or None.
        resample: Pillow's filter.
        scale: what a value 0 … 255 is multiplied with.
        mean: subtracted then, by channel.
        std: divided by last, by channel.
    """

    column: str = "image"
    resize: tuple[int, int] | int | None = (224, 224)
    crop: tuple[int, int] | None = None
    resample: Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"] = "bilinear"
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        for name in ("resize", "crop", "mean", "std"):
            if isinstance(value := getattr(self, name), list):  # from JSON
                object.__setattr__(self, name, tuple(value))
        if self.crop is None and not isinstance(self.resize, tuple):
            raise ValueError("neither resize nor crop gives every image one size")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of every array."""
        if self.crop is not None:
            return self.crop
        assert isinstance(self.resize, tuple)  # noqa: S101  # as checked above
        return self.resize

    @property
    def height(self) -> int:
        """In pixels."""
        return self.size[0]

    @property
    def width(self) -> int:
        """In pixels."""
        return self.size[1]


def decode(cell: object, settings: ImageSettings) -> NDArray[np.uint8]:
    """Read one image and bring it to size.

    It is turned as its EXIF data say, laid on white where it is transparent, and of several frames the
    first is taken; 16-bit grey is scaled to 8 bits.

    Args:
        cell: a file's bytes, its path, or a mapping with ``bytes`` (as the datasets library writes).
        settings: resize, crop and filter.

    Returns:
        (height, width, 3), not yet scaled or normalised.

    Raises:
        ValueError: why the cell cannot be used.
        MissingExtraError: Pillow is not installed.
    """
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ModuleNotFoundError as error:
        raise MissingExtraError("PIL", "image", "Reading images") from error
    source = _source(cell)
    bomb = (Image.DecompressionBombError, Image.DecompressionBombWarning)
    try:
        with Image.open(source) as image:
            if image.width * image.height > LARGEST:
                raise bomb[0]
            pixels = _rgb(ImageOps.exif_transpose(image))
    except bomb as error:
        raise ValueError(f"the image has more than {LARGEST:,} pixels; make it smaller.") from error
    except FileNotFoundError as error:
        raise ValueError(f"there is no file {source}.") from error
    except UnidentifiedImageError as error:
        raise ValueError("this is no image, or of a format that Pillow does not know.") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # Pillow's ways to say damaged
        raise ValueError(f"the image cannot be read: {str(error) or type(error).__name__}.") from error
    return fit(pixels, settings)


def _source(cell: object) -> io.BytesIO | Path:
    if isinstance(cell, Mapping) and cell.get("bytes") is not None:
        cell = cell["bytes"]
    if isinstance(cell, bytes | bytearray | memoryview):
        if not len(cell):
            raise ValueError("the image is empty.")
        return io.BytesIO(cell)
    if isinstance(cell, str | Path):
        if not str(cell).strip():
            raise ValueError("the image is empty; expected a path.")
        if Path(cell).is_dir():
            raise ValueError(f"{cell} is a folder; expected an image.")
        return Path(cell)
    raise ValueError(
        "the image is missing." if cell is None else f"found {type(cell).__name__}; expected a path or bytes."
    )


def _rgb(image: Image) -> Image:
    """Any mode as RGB."""
    import PIL.Image

    if image.mode == "F":
        raise ValueError("its values are floating-point numbers, whose range is not known; save it in 8 bits")
    if image.mode.startswith("I"):  # 16 bits, which a plain conversion would clip
        values = np.asarray(image).astype(np.int64)
        if values.min(initial=0) < 0 or values.max(initial=0) > _HIGH:
            raise ValueError("its values have more than 16 bits; save it in 8 bits")
        return PIL.Image.fromarray(np.round(values * (255 / _HIGH)).astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        clear = image.convert("RGBA")
        return PIL.Image.alpha_composite(PIL.Image.new("RGBA", clear.size, (255, 255, 255, 255)), clear).convert("RGB")
    return image.convert("RGB")


def fit(image: Image, settings: ImageSettings) -> NDArray[np.uint8]:
    """Resize and crop an RGB image: (height, width, 3)."""
    import PIL.Image

    width, height = image.size
    if (wanted := settings.resize) is not None:
        if isinstance(wanted, int):
            short, long = sorted((height, width))
            other = int(wanted * long / short)
            wanted = (other, wanted) if width <= height else (wanted, other)
        if min(wanted) < 1 or wanted[0] * wanted[1] > LARGEST:
            raise ValueError(f"an image of {width} x {height} pixels cannot be resized in proportion.")
        image = image.resize((wanted[1], wanted[0]), PIL.Image.Resampling[settings.resample.upper()])
    pixels = np.asarray(image)
    return _cropped(pixels, settings.crop) if settings.crop is not None else np.ascontiguousarray(pixels)


def _cropped(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """The middle of an image; black around one that is smaller. Halves are rounded as transformers does."""
    result = np.zeros((*size, 3), dtype=np.uint8)
    target, source = [], []
    for have, want in zip(pixels.shape[:2], size, strict=True):
        pad = math.ceil((max(have, want) - have) / 2)
        start = (have - want) // 2 + pad  # in the padded image
        first, last = max(pad, start), min(pad + have, start + want)
        target.append(slice(first - start, last - start))
        source.append(slice(first - pad, last - pad))
    result[tuple(target)] = pixels[tuple(source)]
    return result


def normalise(pixels: NDArray[np.uint8], settings: ImageSettings) -> NDArray[np.float32]:
    """Scale and normalise (B, height, width, 3) to the graph's ``pixel_values`` (B, 3, height, width)."""
    mean, std = np.asarray(settings.mean, dtype=np.float64), np.asarray(settings.std, dtype=np.float64)
    values = np.arange(256)[None] * settings.scale  # every value there is, once for each channel
    table = ((values - mean[:, None]) / std[:, None]).astype(np.float32)
    result = np.empty((len(pixels), 3, *pixels.shape[1:3]), dtype=np.float32)
    for channel in range(3):
        np.take(table[channel], pixels[..., channel], out=result[:, channel], mode="clip")
    return result
