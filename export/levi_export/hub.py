"""The files by which transformers and optimum-onnx open a bundle: configuration, tokenizer, image processor.

They repeat ``levi.json`` in those libraries' own terms, and nothing in levi-deploy reads them. A model of one text
(or pair) or of one image opens there; a model of further columns does not, since those libraries have no such input.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from levi_deploy.model import Levi
from levi_deploy.run import Run
from levi_serving import atomic
from levi_serving.rows.images import ImageSettings
from levi_serving.rows.preprocess import TOKENIZER
from levi_serving.rows.text import TextSettings

__all__ = ["write_hub_files"]

_KINDS = {
    "classification": "single_label_classification",
    "multilabel": "multi_label_classification",
    "regression": "regression",
}


def write_hub_files(folder: Path, trained: Run, levi: Levi) -> None:
    """Write ``config.json`` and what prepares a row, into a folder that has its ``tokenizer.json``.

    A model without a backbone has no configuration that those libraries know: its ``config.json`` has only labels.
    """
    rows = trained.preprocessing
    documents: dict[str, Mapping[str, Any]] = {"config.json": _config(trained, levi)}
    single = rows.columns is None and (rows.text is None or rows.image is None)
    if single and rows.text is not None:
        documents["tokenizer_config.json"] = _tokenizer(rows.text, folder / TOKENIZER, levi.inputs)
    elif single and rows.image is not None:
        documents["preprocessor_config.json"] = _image_processor(rows.image)
    for name, document in documents.items():
        atomic.write(folder / name, json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def _config(trained: Run, levi: Levi) -> dict[str, Any]:
    """The backbone's configuration with this task's labels."""
    config: dict[str, Any] = levi.backbone.model.config.to_dict() if levi.backbone is not None else {}
    return {
        **{name: value for name, value in config.items() if not name.startswith("_")},
        "id2label": dict(enumerate(trained.task.labels)),
        "label2id": {label: c for c, label in enumerate(trained.task.labels)},
        "problem_type": _KINDS[trained.task.kind],
    }


def _tokenizer(text: TextSettings, path: Path, inputs: tuple[str, ...]) -> dict[str, Any]:
    """A fast tokenizer of any family: everything but padding, length and inputs is in ``tokenizer.json``."""
    special = {token["id"]: token["content"] for token in json.loads(path.read_bytes())["added_tokens"]}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": text.max_length,
        "model_input_names": [name for name in inputs if name in ("input_ids", "attention_mask", "token_type_ids")],
        "padding_side": text.padding_side,
        "truncation_side": "right",
        # Naming a token here makes it special; one that is not special already would then split texts elsewhere.
        **({"pad_token": special[text.pad_id]} if text.pad_id in special else {}),
    }


def _image_processor(image: ImageSettings) -> dict[str, Any]:
    """CLIP's processor: resize, crop, scale and normalise in this order, each set by its own options."""
    from PIL import Image

    height_width = ("height", "width")
    resized = image.resize if isinstance(image.resize, tuple) else None
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": image.resize is not None,
        "size": dict(zip(height_width, resized, strict=True)) if resized else {"shortest_edge": image.resize or 1},
        "resample": int(Image.Resampling[image.resample.upper()]),
        "do_center_crop": image.crop is not None,
        "crop_size": dict(zip(height_width, image.crop or image.size, strict=True)),
        "do_rescale": True,
        "rescale_factor": image.scale,
        "do_normalize": True,
        "image_mean": list(image.mean),
        "image_std": list(image.std),
    }
