"""How a backbone wants its images: its own image processor of transformers, as ``ImageSettings``.

The translation is tried on images before it is trusted, so a processor that does more than resize, crop
and normalise is refused, whatever its name.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from transformers import AutoConfig, AutoImageProcessor
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

from levi_deploy.model.backbone import quiet
from levi_serving.errors import MissingExtraError, UsageError
from levi_serving.rows.images import ImageSettings, fit, normalise

__all__ = ["image_settings"]

_TRIED = ((37, 53), (300, 200), (512, 513), (16, 90))  # heights and widths of the images it is tried on
_WARPED = 384  # ConvNeXt resizes without a crop from this size


def image_settings(source: str, *, column: str, size: int | None = None) -> ImageSettings:
    """Say how a backbone's images are made.

    Args:
        source: a hub id or a folder. Where it has no ``preprocessor_config.json``, its family's default.
        column: of the rows, with the image.
        size: height and width of the arrays, in pixels; the backbone's own when None.

    Raises:
        UsageError: there is no processor, or it does what serving cannot.
        MissingExtraError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise MissingExtraError("PIL", "image", "Reading images") from error
    with quiet():  # it remarks that torchvision, which nothing here asks for, is missing
        processor = _processor(source)
    options = _resized(processor, size) if size is not None else {}
    settings = _translated(source, processor, options, column)
    draw = np.random.default_rng(0)
    for height, width in _TRIED:
        image = Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8))
        expected = np.asarray(processor(image, return_tensors="np", **options)["pixel_values"])
        found = normalise(fit(image, settings)[None], settings)
        if found.shape != expected.shape or np.abs(found - expected).max() > 1e-5:
            raise _refused(source, processor, "it does more than resize, crop and normalise")
    return settings


def _processor(source: str) -> Any:
    try:
        return AutoImageProcessor.from_pretrained(source, backend="pil")  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        config = AutoConfig.from_pretrained(source)
        if type(config) not in IMAGE_PROCESSOR_MAPPING:
            raise UsageError(f"The backbone {source!r} has no image processor: {str(error).splitlines()[0]}") from error
        kinds: Any = IMAGE_PROCESSOR_MAPPING[type(config)]  # a mapping by backend, or slow and fast before 5.0
        return (kinds["pil"] if isinstance(kinds, dict) else kinds[0])()


def _resized(processor: Any, size: int) -> dict[str, Any]:
    """The processor's options for another size: a crop keeps its share of the resized image."""
    shorter = _of(processor.size, "shortest_edge")
    crop = getattr(processor, "crop_size", None) if getattr(processor, "do_center_crop", False) else None
    if shorter is None:
        return {"size": {"height": size, "width": size}}
    if crop is None:
        return {"size": {"shortest_edge": size}}
    return {
        "size": {"shortest_edge": round(size * shorter / _of(crop, "height"))},
        "crop_size": {"height": size, "width": size},
    }


def _of(size: Any, name: str) -> Any:
    return size.get(name) if isinstance(size, dict) else getattr(size, name, None)


def _translated(source: str, processor: Any, options: dict[str, Any], column: str) -> ImageSettings:
    from PIL import Image

    size, crop = options.get("size", getattr(processor, "size", None)), None
    resize: Any = None
    if getattr(processor, "do_resize", False):
        resize = _of(size, "shortest_edge") or (_of(size, "height"), _of(size, "width"))
        share = getattr(processor, "crop_pct", None)
        if share and isinstance(resize, int):
            whole = (resize, resize)
            resize, crop = (int(resize / share), whole) if resize < _WARPED else (whole, None)
    if getattr(processor, "do_center_crop", False):
        cut = options.get("crop_size", processor.crop_size)
        crop = (_of(cut, "height"), _of(cut, "width"))
    normalises = getattr(processor, "do_normalize", False)
    try:
        return ImageSettings(
            column=column,
            resize=resize,
            crop=crop,
            resample=Image.Resampling(processor.resample).name.lower(),  # type: ignore[arg-type]
            scale=float(processor.rescale_factor) if getattr(processor, "do_rescale", False) else 1.0,
            mean=tuple(map(float, processor.image_mean)) if normalises else (0.0, 0.0, 0.0),
            std=tuple(map(float, processor.image_std)) if normalises else (1.0, 1.0, 1.0),
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise _refused(source, processor, str(error)) from error


def _refused(source: str, processor: Any, why: str) -> UsageError:
    return UsageError(
        f"The images of {source!r} cannot be made without transformers: {type(processor).__name__}: {why}. "
        "Choose another backbone."
    )
