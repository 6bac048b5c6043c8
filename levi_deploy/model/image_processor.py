"""How a backbone wants its images."""

from __future__ import annotations

from levi_serving.images import ImageSettings

__all__ = ["image_settings"]


def image_settings(source: str, *, column: str, size: int | None = None) -> ImageSettings:  # noqa: ARG001
    """The settings of a backbone's own image processor."""
    return ImageSettings(column=column, resize=(size or 224, size or 224))
