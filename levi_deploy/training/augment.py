"""What an image branch is shown in training.

The backbone always sees an image as it is, so its stored taps stay right whatever the branch is shown.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["flip_crop"]


def flip_crop(pixels: Tensor) -> Tensor:
    """Images (B, 3, height, width), each mirrored with chance one half and shifted by up to an eighth."""
    height, width = pixels.shape[2:]
    mirrored = torch.rand(len(pixels), 1, 1, 1, device=pixels.device) < 0.5
    pixels = torch.where(mirrored, pixels.flip(3), pixels)
    down, right = height // 8, width // 8
    padded = torch.nn.functional.pad(pixels, (right, right, down, down), mode="reflect")
    tops = torch.randint(0, 2 * down + 1, (len(pixels),)).tolist()
    lefts = torch.randint(0, 2 * right + 1, (len(pixels),)).tolist()
    places = zip(padded, tops, lefts, strict=True)
    return torch.stack([image[:, top : top + height, left : left + width] for image, top, left in places])
