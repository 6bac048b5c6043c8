"""How a backbone wants its texts: its own tokenizer, as one ``tokenizer.json`` and ``TextSettings``."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig, AutoTokenizer

from levi_serving.errors import UsageError
from levi_serving.rows.text import TextSettings

__all__ = ["save_tokenizer"]

_OFFSET_POSITIONS = ("camembert", "mpnet", "roberta", "xlm-roberta")


def save_tokenizer(
    source: str, path: Path, *, column: str, max_length: int, pair: str | None = None, causal: bool = False
) -> TextSettings:
    """Write the backbone's tokenizer as one ``tokenizer.json`` and say how it pads and cuts.

    Args:
        source: a hub id or a folder.
        path: where the file goes; padding and truncation are taken out of it.
        column: of the rows, with the text.
        pair: of the rows, with the second text.
        causal: whether the backbone is; others are padded on the right.
        max_length: the most tokens wanted.

    Returns:
        The settings for ``levi_serving.rows.preprocess``.

    Raises:
        UsageError: there is no fast tokenizer, or ``max_length`` is more than it or the positions allow.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise UsageError(f"The tokenizer of {source!r} cannot be loaded: {str(error).splitlines()[0]}") from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UsageError(f"{source!r} has no fast tokenizer (tokenizer.json), which serving without torch needs.")
    if max_length > (most := min(tokenizer.model_max_length, _positions(source))):
        raise UsageError(f"`max_length` is {max_length}, but {source!r} takes at most {most} tokens.")
    backend.no_padding()
    backend.no_truncation()
    path.write_text(backend.to_str(), encoding="utf-8")
    return TextSettings(
        column=column,
        pair=pair,
        max_length=max_length,
        pad_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0,
        padding_side="left" if causal and tokenizer.padding_side == "left" else "right",
    )


def _positions(source: str) -> int:
    """Tokens that a model's positions allow; RoBERTa and its kin count from the padding id onwards."""
    config = AutoConfig.from_pretrained(source)
    most = getattr(config, "max_position_embeddings", None)
    if not isinstance(most, int) or most <= 0:
        return 2**31
    return most - (1 + config.pad_token_id if config.model_type in _OFFSET_POSITIONS else 0)
