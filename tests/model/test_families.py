"""Every family by one mechanism: its taps are transformers' hidden states, its cut is real, its graph is torch."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
import transformers
from families import CAUSAL, FAMILIES, IMAGES, as_if_fitted, write

from levi_deploy.config import ModelConfig
from levi_deploy.model import Levi
from levi_deploy.model.backbone import Backbone
from levi_deploy.model.build import build
from levi_export.convert import convert, outputs
from levi_export.convert import inputs as graph_inputs
from levi_export.graph import check, clean
from levi_serving.errors import UsageError
from levi_serving.predictions import Task
from levi_serving.rows.images import ImageSettings
from levi_serving.rows.preprocess import Preprocessing
from levi_serving.rows.text import TextSettings

pytestmark = pytest.mark.slow

TEXTS = [name for name in FAMILIES if name not in IMAGES]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def folder(name):
        if name not in made:
            made[name] = write(name, tmp_path_factory.mktemp(name.replace(" ", "-")))
        return str(made[name])

    return folder


def inputs(name, rows=3, tokens=7, seed=0, side="right"):
    torch.manual_seed(seed)
    if name in IMAGES:
        return {"pixel_values": torch.randn(rows, 3, 32, 32)}
    mask = torch.ones(rows, tokens, dtype=torch.int64)
    for row in range(1, rows):
        mask[row, max(1, tokens - 2 * row) :] = 0
    mask = mask if side == "right" else mask.flip(1)
    return {"input_ids": torch.randint(3, 60, (rows, tokens)) * mask, "attention_mask": mask}


def whole(name, folder):
    """transformers' own model of it."""
    kind = {"clip": "CLIPVisionModel", "siglip": "SiglipVisionModel", "t5": "T5EncoderModel"}.get(name)
    return getattr(transformers, kind or FAMILIES[name][0]).from_pretrained(folder).eval()


@pytest.mark.parametrize("name", FAMILIES)
def test_taps_are_transformers_hidden_states(name, folders):
    given = inputs(name)
    model = whole(name, folders(name))
    with torch.no_grad():
        answer = model(**given, output_hidden_states=True)
        backbone = Backbone.load(folders(name), lambda depth: tuple(range(depth + 1)))
        found = backbone(given)
    expected = list(answer.hidden_states)
    depth = backbone.identity.depth
    if name == "mobilenet_v2":  # transformers lists the layers' outputs alone
        expected = [None, *expected]
    expected[depth] = answer.last_hidden_state
    assert [tap.shape[-1] for tap in found] == list(backbone.identity.widths)
    real = given["attention_mask"].bool() if "attention_mask" in given else ...
    for tap, state in zip(found, expected, strict=True):
        if state is not None:
            state = state.flatten(2).transpose(1, 2) if state.dim() == 4 else state
            torch.testing.assert_close(tap[real], state[real], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_above_the_deepest_tap_is_kept_and_the_rest_is_as_it_was(name, folders):
    given = inputs(name)
    everything = Backbone.load(folders(name), lambda depth: tuple(range(depth + 1)))
    cut = Backbone.load(folders(name), lambda _: (0, 1))
    assert cut.identity.digest == everything.identity.digest
    assert sum(p.numel() for p in cut.parameters()) < 0.9 * sum(p.numel() for p in everything.parameters())
    with torch.no_grad():
        for a, b in zip(cut(given), everything(given)[:2], strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", TEXTS)
def test_what_a_family_is(name, folders):
    identity = Backbone.load(folders(name), lambda _: (1,)).identity
    assert (identity.modality, identity.causal, identity.vocabulary) == ("text", name in CAUSAL, 60)
    assert identity.depth == 3
    takes_types = name in ("bert", "electra")
    assert (identity.type_vocabulary > 1) is takes_types


@pytest.mark.parametrize("name", TEXTS)
def test_padding_moves_nothing(name, folders):
    backbone = Backbone.load(folders(name), lambda depth: (1, depth))
    for side in ("right", "left") if name in CAUSAL else ("right",):
        given = inputs(name, side=side)
        with torch.no_grad():
            together = backbone(given)
            for row in range(3):
                real = given["attention_mask"][row].bool()
                alone = backbone({key: value[row : row + 1, real] for key, value in given.items()})
                for a, b in zip(together, alone, strict=True):
                    torch.testing.assert_close(a[row, real], b[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_graph_answers_as_torch_at_sizes_never_traced(name, folders, tmp_path):
    """A whole model on three taps, by the exporter's own steps."""
    backbone = Backbone.load(folders(name), lambda depth: (0, depth - 1, depth))
    rows = Preprocessing(text=TextSettings())
    if name in IMAGES:
        rows = Preprocessing(image=ImageSettings(resize=(32, 32)))
    config = ModelConfig(pooling="last" if name in CAUSAL else "attention", queries=2, branches=())
    task = Task(kind="classification", labels=("a", "b", "c"))
    ensemble = build(config, backbone.identity, rows, backbone.taps, task=task)
    as_if_fitted(ensemble.novelty)
    levi = Levi(backbone, ensemble).eval()
    model = convert(levi, rows)
    clean(model)
    weights = sum(p.numel() * 4 for p in levi.state_dict().values())
    check(model, inputs=graph_inputs(levi, rows), outputs=outputs(ensemble), weights=weights)
    ir.save(model, tmp_path / "taps.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "taps.onnx")
    for size, tokens, side in ((1, 1, "right"), (3, 9, "right"), (5, 31, "left" if name in CAUSAL else "right")):
        given = inputs(name, rows=size, tokens=tokens, seed=size, side=side)
        feeds = {i.name: given[i.name].numpy() for i in session.get_inputs() if i.name in given}
        with torch.no_grad():
            expected = levi(**given)
        for a, b in zip(session.run(None, feeds), expected, strict=True):
            np.testing.assert_allclose(a, b.numpy(), rtol=1e-3, atol=2e-5 * float(b.std(correction=0) + b.abs().max()))


def test_one_weight_makes_another_digest(folders, tmp_path):
    folder = write("vit", tmp_path / "vit")
    digest = Backbone.load(str(folder), lambda _: (1,)).identity.digest
    assert digest == Backbone.load(folders("vit"), lambda _: (2,)).identity.digest
    model = transformers.ViTModel.from_pretrained(folder)
    with torch.no_grad():
        model.embeddings.cls_token[0, 0, 3] += 1e-3
    model.save_pretrained(folder)
    with pytest.raises(UsageError, match="its weights have changed"):
        Backbone.load(str(folder), lambda _: (1,), digest=digest)


def test_a_large_checkpoint_is_loaded_in_its_own_dtype(folders, tmp_path, monkeypatch):
    """Large is set to nothing here: half the memory, the same digest rule, and float32 taps."""
    folder = str(tmp_path / "half")
    transformers.BertModel.from_pretrained(folders("bert")).to(torch.bfloat16).save_pretrained(folder)
    widened = Backbone.load(folder, lambda depth: (0, depth))
    assert {p.dtype for p in widened.parameters()} == {torch.float32}
    monkeypatch.setattr("levi_deploy.model.backbone._LARGE", 0)
    own = Backbone.load(folder, lambda depth: (0, depth))
    assert {p.dtype for p in own.parameters()} == {torch.bfloat16}
    given = inputs("bert")
    with torch.no_grad():
        for a, b in zip(own(given), widened(given), strict=True):
            assert a.dtype == torch.float32
            torch.testing.assert_close(a, b, rtol=0.05, atol=0.05)


REFUSED = {
    "AlbertModel": ({"vocab_size": 60, "embedding_size": 16, "hidden_size": 32, "num_hidden_layers": 3,
                     "num_attention_heads": 4, "intermediate_size": 64}, r"\(albert\) cannot be tapped"),
    "BartModel": ({"vocab_size": 60, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
                   "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64,
                   "decoder_ffn_dim": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
                   "decoder_start_token_id": 2, "forced_eos_token_id": 2},
                  r"\(bart\) is an encoder-decoder whose encoder cannot be loaded alone"),
    "Wav2Vec2Model": ({"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
                       "intermediate_size": 64, "conv_dim": [16, 16], "conv_kernel": [3, 3], "conv_stride": [2, 2],
                       "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2},
                      r"\(wav2vec2\) reads input_values; expected a model of texts or images"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_families_that_cannot_be_tapped_are_refused_by_name(kind, tmp_path):
    settings, says = REFUSED[kind]
    model = getattr(transformers, kind)
    model(model.config_class(**settings)).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=says):
        Backbone.load(str(tmp_path), lambda _: (1,))
