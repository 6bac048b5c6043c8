"""Which backbone a model was built on, as plain data: no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Identity"]


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Which backbone a model was built on.

    Attributes:
        name: the hub id, or the folder's own name: never a path of this machine.
        digest: SHA-256 over the names, shapes and values of all its weights, before any cut.
        depth: L, its layers; of convolutional and Swin models their stages or blocks, as transformers lists them.
        widths: D of the hidden states at depths 0 … L.
        parameters: how many weights it has, before any cut.
        vocabulary: token ids it knows; 0 for images.
        modality: what it reads.
        causal: whether a token sees only those before it.
        type_vocabulary: token types it knows; 0 where it takes none.
        image_size: height and width it was made for, in pixels, where it says so.
        fine_tuned: whether its weights were trained further, by us.
    """

    name: str
    digest: str
    depth: int
    widths: tuple[int, ...]
    parameters: int
    vocabulary: int
    modality: Literal["text", "image"]
    causal: bool
    type_vocabulary: int
    image_size: int | None
    fine_tuned: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))  # JSON has lists

    @property
    def title(self) -> str:
        """What people are shown."""
        return f"{self.name}, fine-tuned" if self.fine_tuned else self.name
