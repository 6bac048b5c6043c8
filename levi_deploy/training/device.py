"""Where training computes: a GPU where torch has one, else the CPU."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from levi_deploy.config import TrainingDevice
from levi_serving.errors import ProviderError

__all__ = ["half", "settle", "title"]


def settle(device: TrainingDevice) -> torch.device:
    """The device to train on; ``auto`` is the first of cuda, mps and cpu that torch has here.

    Raises:
        ProviderError: torch does not have the device.
    """
    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return torch.device(next(name for name, there in found.items() if there))
    if not found[device]:
        raise ProviderError(
            f"`device` is {device!r}, but torch {torch.__version__} finds only "
            f"{', '.join(name for name, there in found.items() if there)} here. Install a torch that is built for it, "
            "check its driver, or set `device` to auto."
        )
    return torch.device(device)


def half(device: torch.device) -> AbstractContextManager[object]:
    """On a CUDA GPU, matrix products in bfloat16 under torch's autocast; elsewhere float32.

    For what tolerates it: the backbone's passes in training. What is validated, calibrated and recorded is float32.
    """
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.autocast("cuda", torch.bfloat16)
    return nullcontext()


def title(device: torch.device) -> str:
    """The device in words, for the run's record."""
    return f"cuda: {torch.cuda.get_device_name(device)}" if device.type == "cuda" else device.type
