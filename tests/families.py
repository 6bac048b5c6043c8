"""A tiny backbone of each family, from its own config class, with random weights. Nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from words import FILLER, WORDS

from levi_deploy.model.novelty import Novelty

PINNED = pytest.mark.skipif(
    int(transformers.__version__.partition(".")[0]) < 5,
    reason="transformers 4 writes a few operators of these models otherwise",
)
"""For tests of what exactly a graph has: on its answers nothing depends."""

TEXT = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
IMAGE = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TOWERS = {"vision_config": IMAGE, "text_config": {**TEXT, "max_position_embeddings": 64, **SPECIAL}}
DEBERTA = {"relative_attention": True, "position_buckets": 8, "share_att_key": True, "pos_att_type": ["p2c", "c2p"]}
T5 = {"vocab_size": 60, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 3, "num_heads": 4}
DISTIL = {"vocab_size": 60, "dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 64}
GPT2 = {"vocab_size": 60, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, **SPECIAL}
SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [1, 2], "num_heads": [2, 4], "window_size": 4}
CONVNEXT = {"hidden_sizes": [8, 16, 24], "depths": [1, 2, 1], "num_stages": 3, "image_size": 32}
LLAMA = {**TEXT, "num_key_value_heads": 2, "max_position_embeddings": 64, **SPECIAL}

FAMILIES = {  # by name: the model's class without its ending, its configuration
    "bert": ("BertModel", {**TEXT, "max_position_embeddings": 64}),
    "roberta": ("RobertaModel", {**TEXT, "max_position_embeddings": 66, "type_vocab_size": 1}),
    "distilbert": ("DistilBertModel", DISTIL),
    "mpnet": ("MPNetModel", {**TEXT, "max_position_embeddings": 66}),
    "electra": ("ElectraModel", {**TEXT, "embedding_size": 16, "max_position_embeddings": 64}),
    "deberta-v2": ("DebertaV2Model", {**TEXT, **DEBERTA, "max_position_embeddings": 64}),
    "modernbert": (
        "ModernBertModel", {**TEXT, **SPECIAL, "max_position_embeddings": 64, "cls_token_id": 1, "sep_token_id": 2}
    ),
    "t5": ("T5Model", T5),
    "t5 v1.1": ("T5EncoderModel", {**T5, "feed_forward_proj": "gated-gelu"}),
    "llama": ("LlamaModel", LLAMA),
    "qwen3": ("Qwen3Model", {**LLAMA, "head_dim": 8}),
    "gpt2": ("GPT2Model", GPT2),
    "vit": ("ViTModel", IMAGE),
    "dinov2": ("Dinov2Model", {**IMAGE, "mlp_ratio": 2}),
    "swin": ("SwinModel", SWIN),
    "convnext": ("ConvNextModel", CONVNEXT),
    "mobilenet_v2": ("MobileNetV2Model", {"image_size": 32, "depth_multiplier": 0.25}),
    "clip": ("CLIPModel", TOWERS),
    "siglip": ("SiglipModel", TOWERS),
}  # fmt: skip
CAUSAL = ("llama", "qwen3", "gpt2")
IMAGES = ("vit", "dinov2", "swin", "convnext", "mobilenet_v2", "clip", "siglip")


def write(name: str, folder: Path, *, tokenizer: bool = False, padding_side: str = "right") -> Path:
    """Save one into a folder, as a checkpoint of its family; with a tokenizer whose ids it knows where asked for."""
    kind, settings = FAMILIES[name]
    if tokenizer:
        settings = {**settings, "vocab_size": write_tokenizer(folder, padding_side=padding_side)}
    kind = getattr(transformers, kind)
    torch.manual_seed(0)
    model = kind(kind.config_class(**settings)).eval()
    with torch.no_grad():  # as after training: no bias or norm at its starting value
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


def as_if_fitted(novelty: Novelty) -> None:
    """Give distances that differ from row to row something to be measured from, in place."""
    for buffer in novelty.buffers():
        buffer.copy_(torch.randn_like(buffer).abs())


def write_tokenizer(folder: Path, *, padding_side: str = "right") -> int:
    """Save a tokenizer of whole words and letters, for texts and pairs, and return how many ids it has."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*special, *FILLER, *WORDS["positive"], *WORDS["negative"], *"abcdefghijklmnopqrstuvwxyz.,!?'0123456789"]
    vocabulary = {word: n for n, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    # What such files often carry, and what must never have an effect here.
    tokenizer.enable_padding(length=40)
    tokenizer.enable_truncation(5)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=64, padding_side=padding_side,
    ).save_pretrained(folder)  # fmt: skip
    return len(vocabulary)
