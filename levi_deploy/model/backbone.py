"""The frozen backbone f: hidden states at the tapped depths, and not a layer more.

The only file of the model that knows transformers' models.

One mechanism serves every family: the layers are the model's outermost list of modules, a tap is what
goes into the first or comes out of one of them, and the widths are seen in one small run. So a new
family needs no code; where something behind the layers does not survive their cut, a line in ``_ENDS``.
"""

from __future__ import annotations

import hashlib
import inspect
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
import transformers
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_TEXT_ENCODING_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
)
from transformers.utils import logging

from levi_deploy.identity import Identity
from levi_serving import atomic
from levi_serving.errors import UsageError

__all__ = ["Backbone", "quiet"]

_LARGE = 2_000_000_000  # parameters; a half-precision checkpoint above it is not widened to float32
_ATTENTION = {} if int(transformers.__version__.partition(".")[0]) > 4 else {"attn_implementation": "eager"}
"""In transformers 4 a BERT keeps the attention that it is loaded with; the export needs this one."""
_ENDS = {  # by family: what follows the layers and fits only the last one's channels
    "convnext": ("layernorm",),
    "convnextv2": ("layernorm",),
    "mobilenet_v2": ("conv_1x1",),
    "swin": ("layernorm",),
    "swinv2": ("layernorm",),
}


class Backbone(nn.Module):
    """A pre-trained encoder, cut above its deepest tap: frozen and in evaluation mode until ``unfreeze``.

    Tap 0 is what enters the first layer (the embeddings), tap l the output of layer l, and tap L the
    model's last hidden state, a final norm included. Feature maps (B, C, h, w) become h · w tokens.

    Args:
        model: as transformers loads it.
        identity: which one it is.
        taps: t_1 < … < t_K.

    Attributes:
        inputs: the names of the inputs it reads.
        unfrozen: whether all of its weights train.
    """

    def __init__(self, model: Any, identity: Identity, taps: tuple[int, ...]) -> None:
        super().__init__()
        self.identity = identity
        self.taps = taps
        self.inputs: tuple[str, ...] = ("pixel_values",)
        if identity.modality == "text":
            self.inputs = ("input_ids", "attention_mask")
            if identity.type_vocabulary > 1:
                self.inputs += ("token_type_ids",)
        layers = _layers(model)
        if max(taps, default=0) < identity.depth:
            for name in _ENDS.get(model.config.model_type, ()):
                setattr(model, name, nn.Identity())
        del layers[max(taps, default=0) :]
        self.model: Any = model.requires_grad_(False).eval()
        takes = inspect.signature(model.forward).parameters
        self._positions = identity.causal and "position_ids" in takes
        self._interpolates = "interpolate_pos_encoding" in takes
        self._seen: dict[int, Tensor] = {}
        self._adapted: list[Any] = []
        self.unfrozen = False
        if 0 in taps and len(layers):
            layers[0].register_forward_pre_hook(self._remember_input, with_kwargs=True)
        for number, layer in enumerate(layers, start=1):
            if number in taps and number < identity.depth:
                layer.register_forward_hook(self._remember_output(number))

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode while frozen: drop-out and batch statistics are part of what is frozen."""
        return super().train(mode and self.unfrozen)

    def unfreeze(self) -> None:
        """Let all weights train: full fine-tuning."""
        self.unfrozen = True
        self.model.requires_grad_(True)

    def save(self, folder: Path) -> None:
        """Write the weights and the configuration as transformers does; the folder is whole or not there."""
        aside = folder.with_name(folder.name + atomic.SUFFIX)
        shutil.rmtree(aside, ignore_errors=True)
        with quiet():
            self.model.save_pretrained(aside)
        aside.rename(folder)

    def forward(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """Run the backbone once.

        Args:
            inputs: by name; those of ``self.inputs`` are read. ``token_type_ids`` may be left out.

        Returns:
            The hidden states of the K taps, (B, T, D) float32 each; an image's T and D may differ.
        """
        given: dict[str, Any] = {name: inputs[name] for name in self.inputs if name in inputs}
        if self._positions:  # counted from a row's first real token, so that padding on the left moves nothing
            given["position_ids"] = (given["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
        if self._interpolates:
            given["interpolate_pos_encoding"] = given["pixel_values"].shape[-1] != self.identity.image_size
        if "pixel_values" in given:
            given["pixel_values"] = given["pixel_values"].to(self.model.dtype)
        last = self.model(**given).last_hidden_state
        seen, self._seen = self._seen, {}
        return [_tokens(seen.get(tap, last)) for tap in self.taps]

    def add_adapters(self, rank: int) -> None:
        """Put low-rank adapters (Hu et al. 2022) beside every linear layer; they alone require gradients.

        Raises:
            UsageError: there is no linear layer.
            ModuleNotFoundError: peft is not installed.
        """
        from peft import LoraConfig, get_peft_model

        try:
            config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
            # It works in place: self.model holds the adapters. In a list, so that they are not counted twice.
            self._adapted = [get_peft_model(self.model, config)]
        except ValueError as error:
            raise UsageError(
                f"The backbone {self.identity.name!r} has no linear layer, and LoRA's adapters stand beside linear "
                "layers. Leave `lora` out, or choose a transformer."
            ) from error

    def adapters(self) -> dict[str, Tensor]:
        """The adapters' weights by name."""
        return {name: tensor for name, tensor in self.model.state_dict().items() if "lora_" in name}

    def merge(self, adapters: Mapping[str, Tensor]) -> None:
        """Add adapters into the weights they stand beside and take them away."""
        if unknown := self.model.load_state_dict(adapters, strict=False).unexpected_keys:
            raise UsageError(f"The adapters do not fit the backbone {self.identity.name!r}: {unknown[0]} is unknown.")
        self.model = self._adapted.pop().merge_and_unload()
        self.model.requires_grad_(False)

    def _remember_input(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._seen[0] = args[0] if args else kwargs["hidden_states"]

    def _remember_output(self, tap: int) -> Any:
        def remember(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
            self._seen[tap] = output[0] if isinstance(output, tuple) else output

        return remember

    @classmethod
    def load(
        cls,
        source: str,
        taps: Callable[[int], tuple[int, ...]],
        *,
        digest: str | None = None,
        fine_tuned_from: Identity | None = None,
    ) -> Self:
        """Load a backbone by hub id or folder.

        Args:
            source: a hub id or a folder, with the model's configuration and weights. Of T5 and its kin
                the encoder is loaded, of CLIP and SigLIP the vision tower.
            taps: a function from the depth L to t_1 < … < t_K; it may refuse.
            digest: the digest it must have.
            fine_tuned_from: what it was before ``save``, where it was fine-tuned here; it keeps that name.

        Raises:
            UsageError: it cannot be loaded, cannot be tapped, or is not the one expected.
        """
        model, missing = _load(source)
        config = model.config
        text = model.main_input_name == "input_ids"
        size = getattr(config, "image_size", None)
        identity = Identity(
            name=fine_tuned_from.name if fine_tuned_from else Path(source).name if Path(source).exists() else source,
            fine_tuned=fine_tuned_from is not None,
            digest=_digest(model, missing),
            depth=len(_layers(model)),
            widths=_widths(model),
            parameters=sum(p.numel() for p in model.parameters()),
            vocabulary=int(config.vocab_size) if text else 0,
            modality="text" if text else "image",
            causal=text and _causal(model),
            type_vocabulary=_type_vocabulary(model) if text else 0,
            image_size=int(size[-1] if isinstance(size, list | tuple) else size) if not text and size else None,
        )
        if digest is not None and identity.digest != digest:
            raise UsageError(
                f"The backbone {source} has the digest {identity.digest[:12]}…, but this model was trained on one "
                f"with {digest[:12]}…: its weights have changed. Give the folder of the original weights."
            )
        return cls(model, identity, taps(identity.depth))


def _tokens(hidden: Tensor) -> Tensor:
    """(B, T, D) in float32; a feature map's places are tokens."""
    return (hidden.flatten(2).transpose(1, 2) if hidden.dim() == 4 else hidden).float()


@contextmanager
def quiet() -> Iterator[None]:
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
    """The model, and the names of weights its checkpoint lacks and may lack."""
    try:
        with quiet():
            config = AutoConfig.from_pretrained(source)
            kind, config = _kind(source, config)
            with torch.device("meta"):
                parameters = sum(p.numel() for p in kind._from_config(config).parameters())
            dtype = torch.float32 if parameters < _LARGE else "auto"
            model, info = kind.from_pretrained(
                source, config=config, dtype=dtype, output_loading_info=True, **_ATTENTION
            )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(
            f"The backbone {source!r} cannot be loaded: {reason} "
            "Give a hub id, or a folder with config.json and the weights."
        ) from error
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    _check_layers(source, model)
    missing = set(info["missing_keys"])
    if lost := sorted(name for name in missing if "pooler" not in name):
        raise UsageError(
            f"The backbone {source!r} has no weights for {lost[0]} and {len(lost) - 1} others: the file is not a "
            f"whole {model.config.model_type} model. Give the folder of a complete checkpoint."
        )
    return model.eval(), missing


def _kind(source: str, config: Any) -> tuple[Any, Any]:
    """The class to load, and its configuration: the part of a larger model that gives hidden states of one input.

    Raises:
        UsageError: the family has no such part.
    """
    family = config.model_type
    if type(vision := getattr(config, "vision_config", None)) in MODEL_MAPPING:
        config = vision
    kinds: Any = MODEL_FOR_TEXT_ENCODING_MAPPING if type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING else MODEL_MAPPING
    if type(config) not in kinds:
        raise UsageError(f"The backbone {source!r} ({family}) is no model that transformers loads for hidden states.")
    if kinds is MODEL_MAPPING and getattr(config, "is_encoder_decoder", False):
        raise UsageError(
            f"The backbone {source!r} ({family}) is an encoder-decoder whose encoder cannot be loaded alone. "
            "Choose an encoder, a decoder, a T5 or a vision model."
        )
    kind = kinds[type(config)]
    if kind.main_input_name not in ("input_ids", "pixel_values"):
        raise UsageError(
            f"The backbone {source!r} ({family}) reads {kind.main_input_name}; expected a model of texts or images."
        )
    return kind, config


def _lists(model: nn.Module) -> dict[str, nn.ModuleList]:
    """The lists of modules that lie in no other list, by name."""
    found: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not any(name.startswith(outer + ".") for outer in found):
            found[name] = module
    return found


def _layers(model: nn.Module) -> nn.ModuleList:
    """The list of the L layers: the longest of the outermost lists."""
    return max(_lists(model).values(), key=len)


def _check_layers(source: str, model: Any) -> None:
    lists, family = _lists(model), model.config.model_type
    stated = getattr(model.config, "num_hidden_layers", None)
    if not lists or (isinstance(stated, int) and stated != len(_layers(model))):
        found = ", ".join(f"{name} with {len(modules)}" for name, modules in lists.items()) or "none"
        raise UsageError(
            f"The backbone {source!r} ({family}) cannot be tapped: expected one list of {stated or 'its'} layers, "
            f"found {found}. Models that share a layer between depths, as ALBERT does, are not supported."
        )


@torch.no_grad()
def _widths(model: Any) -> tuple[int, ...]:
    """D at each depth 0 … L, seen in a run of one small row."""
    layers, seen = _layers(model), dict[int, int]()

    def width(hidden: Any) -> int:
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        return int(hidden.shape[1] if hidden.dim() == 4 else hidden.shape[-1])

    def enter(_: Any, args: Any, kwargs: Any) -> None:
        seen[0] = width(args[0] if args else kwargs["hidden_states"])

    def leave(number: int) -> Any:
        return lambda _, __, output: seen.__setitem__(number, width(output))

    hooks = [layers[0].register_forward_pre_hook(enter, with_kwargs=True)]
    hooks += [layer.register_forward_hook(leave(number)) for number, layer in enumerate(layers, start=1)]
    try:
        if model.main_input_name == "input_ids":
            ids = torch.ones(1, 4, dtype=torch.int64)
            answer = model(input_ids=ids, attention_mask=torch.ones_like(ids))
        else:
            size = getattr(model.config, "image_size", None) or 64
            sides = size if isinstance(size, list | tuple) else (size, size)
            answer = model(pixel_values=torch.zeros(1, 3, *sides, dtype=model.dtype))
    finally:
        for hook in hooks:
            hook.remove()
    seen[len(layers)] = width(answer.last_hidden_state)
    return tuple(seen[depth] for depth in range(len(layers) + 1))


@torch.no_grad()
def _causal(model: Any) -> bool:
    """Whether a later token leaves the first one's hidden state as it is."""
    rows = torch.tensor([[1, 1, 1], [1, 1, 2]])
    hidden = model(input_ids=rows, attention_mask=torch.ones_like(rows)).last_hidden_state
    return bool(torch.allclose(hidden[0, 0], hidden[1, 0], atol=1e-6))


def _type_vocabulary(model: Any) -> int:
    takes = "token_type_ids" in inspect.signature(model.forward).parameters
    return int(getattr(model.config, "type_vocab_size", 0) or 0) if takes else 0


def _digest(model: nn.Module, missing: set[str]) -> str:
    """SHA-256 over all weights but those the checkpoint lacked (drawn at random when loading)."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name not in missing:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().view(torch.uint8).numpy().data if tensor.dim() else tensor.numpy())
    return digest.hexdigest()
