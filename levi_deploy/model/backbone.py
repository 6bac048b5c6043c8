"""The frozen backbone f: hidden states at the tapped depths, and not a layer more.

The only file of the model that knows transformers. It knows no branch, no head and no training.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

from levi_serving.errors import UsageError
from levi_serving.text import TextSettings

__all__ = ["Backbone", "Identity", "save_tokenizer"]


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Which backbone a model was built on.

    Attributes:
        name: the hub id, or the folder's own name: never a path of this machine.
        digest: SHA-256 over the names, shapes and values of all its weights, before any cut.
        depth: L, its layers.
        widths: D of the hidden states at depths 0 … L.
        parameters: how many weights it has, before any cut.
        vocabulary: token ids it knows.
    """

    name: str
    digest: str
    depth: int
    widths: tuple[int, ...]
    parameters: int
    vocabulary: int
    modality: Literal["text", "image"] = "text"
    causal: bool = False
    type_vocabulary: int = 0
    image_size: int | None = None


class Backbone(nn.Module):
    """A pre-trained encoder that stays frozen and in evaluation mode, cut above its deepest tap.

    Tap 0 is what enters the first layer (the embeddings), tap l the output of layer l, and tap L the
    model's last hidden state, a final norm included: transformers' ``hidden_states``.

    Args:
        model: as ``transformers.AutoModel`` loads it.
        identity: which one it is.
        taps: t_1 < … < t_K.
    """

    def __init__(self, model: nn.Module, identity: Identity, taps: tuple[int, ...]) -> None:
        super().__init__()
        self.identity = identity
        self.taps = taps
        self.inputs: tuple[str, ...] = ("input_ids", "attention_mask")
        layers = _layers(model, identity)
        del layers[max(taps, default=0) :]
        self.model = model.requires_grad_(False).eval()
        self._seen: dict[int, Tensor] = {}
        for number, layer in enumerate(layers):
            if number in taps:
                layer.register_forward_pre_hook(self._remember_input(number), with_kwargs=True)
            if number + 1 in taps and number + 1 < identity.depth:
                layer.register_forward_hook(self._remember_output(number + 1))

    def train(self, mode: bool = True) -> Self:  # noqa: ARG002  # nn.Module's own signature
        """Stay in evaluation mode: the backbone is frozen, its drop-out included."""
        return super().train(False)

    def forward(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """Run the backbone once.

        Args:
            inputs: by name; those of ``self.inputs`` are read.

        Returns:
            The hidden states of the K taps, (B, T, D) each.
        """
        answer = self.model(**{name: inputs[name] for name in self.inputs if name in inputs})
        seen, self._seen = self._seen, {}
        return [seen.get(tap, answer.last_hidden_state) for tap in self.taps]

    def _remember_input(self, tap: int) -> Any:
        if tap > 0:
            return lambda *_: None

        def remember(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._seen[tap] = args[0] if args else kwargs["hidden_states"]

        return remember

    def _remember_output(self, tap: int) -> Any:
        def remember(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
            self._seen[tap] = output[0] if isinstance(output, tuple) else output

        return remember

    @classmethod
    def load(cls, source: str, taps: Callable[[int], tuple[int, ...]], *, digest: str | None = None) -> Self:
        """Load a backbone by hub id or folder.

        Args:
            source: what ``AutoModel.from_pretrained`` takes.
            taps: a function from the depth L to t_1 < … < t_K; it may refuse.
            digest: the digest it must have.

        Raises:
            UsageError: it cannot be loaded, cannot be tapped, or is not the one expected.
        """
        model, missing = _load(source)
        config = model.config
        identity = Identity(
            name=Path(source).name if Path(source).exists() else source,
            digest=_digest(model, missing),
            depth=int(config.num_hidden_layers),
            widths=(int(config.hidden_size),) * (1 + int(config.num_hidden_layers)),
            parameters=sum(p.numel() for p in model.parameters()),
            vocabulary=int(config.vocab_size),
        )
        if digest is not None and identity.digest != digest:
            raise UsageError(
                f"The backbone {source} has the digest {identity.digest[:12]}…, but this model was trained on one "
                f"with {digest[:12]}…: its weights have changed. Give the folder of the original weights."
            )
        return cls(model, identity, taps(identity.depth))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' own progress bar and its remarks on unused weights out of the command's output."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _load(source: str) -> tuple[Any, set[str]]:
    try:
        with _quiet():
            model, info = AutoModel.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(
            f"The backbone {source!r} cannot be loaded: {reason} "
            "Give a hub id, or a folder with config.json and the weights."
        ) from error
    needed = {"num_hidden_layers", "hidden_size", "vocab_size"}
    lacking = [name for name in sorted(needed) if not isinstance(getattr(model.config, name, None), int)]
    if lacking or getattr(model.config, "is_encoder_decoder", False):
        what = "is an encoder-decoder" if not lacking else f"states no {', '.join(lacking)}"
        raise UsageError(
            f"The backbone {source!r} ({model.config.model_type}) {what}; expected a text encoder such as BERT."
        )
    missing = set(info["missing_keys"])
    if lost := sorted(name for name in missing if "pooler" not in name):
        raise UsageError(
            f"The backbone {source!r} has no weights for {lost[0]} and {len(lost) - 1} others: the file is not a "
            f"whole {model.config.model_type} model. Give the folder of a complete checkpoint."
        )
    return model, missing


def _layers(model: nn.Module, identity: Identity) -> nn.ModuleList:
    """The list of the L layers, found by its length: every family names it otherwise."""
    found = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == identity.depth]
    if len(found) != 1:
        raise UsageError(
            f"The backbone {identity.name!r} ({type(model).__name__}) cannot be tapped: {len(found)} lists of "
            f"{identity.depth} layers were found in it, expected one. Choose another family."
        )
    return found[0]


def _digest(model: nn.Module, missing: set[str]) -> str:
    """SHA-256 over all weights but those the checkpoint lacked (drawn at random when loading)."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name not in missing:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().view(torch.uint8).numpy().data if tensor.dim() else tensor.numpy())
    return digest.hexdigest()


def save_tokenizer(source: str, path: Path, *, column: str, max_length: int, pair: str | None = None) -> TextSettings:
    """Write the backbone's tokenizer as one ``tokenizer.json`` and say how it pads and cuts.

    Args:
        source: a hub id or a folder.
        path: where the file goes; padding and truncation are taken out of it.
        column: of the rows, with the text.
        pair: of the rows, with the second text.
        max_length: the most tokens wanted.

    Returns:
        The settings for ``levi_serving.preprocess``.

    Raises:
        UsageError: there is no fast tokenizer, no padding token, or ``max_length`` is more than the
            tokenizer allows.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise UsageError(f"The tokenizer of {source!r} cannot be loaded: {str(error).splitlines()[0]}") from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UsageError(f"{source!r} has no fast tokenizer (tokenizer.json), which serving without torch needs.")
    if max_length > tokenizer.model_max_length:
        raise UsageError(
            f"max_length is {max_length}, but {source!r} takes at most {tokenizer.model_max_length} tokens."
        )
    backend.no_padding()
    backend.no_truncation()
    path.write_text(backend.to_str(), encoding="utf-8")
    return TextSettings(
        column=column,
        pair=pair,
        max_length=max_length,
        pad_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0,
        padding_side="left" if tokenizer.padding_side == "left" else "right",
    )
