"""The model: what METHOD's formulas say, on numbers small enough to follow."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from families import as_if_fitted
from transformers import AutoModel

from levi_deploy.config import ModelConfig, Pooling
from levi_deploy.model import Backbone, Levi
from levi_deploy.model.build import build
from levi_deploy.model.heads import average, loss
from levi_deploy.model.levi import stage_of
from levi_deploy.model.pooling import AttentionPooling, FixedPooling, Rung, TokenReading
from levi_serving.errors import UsageError
from levi_serving.predictions import Task
from levi_serving.rows.preprocess import Preprocessing
from levi_serving.rows.text import TextSettings


@pytest.fixture(scope="module")
def batch():
    torch.manual_seed(1)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    return torch.randint(5, 40, (3, 5)), mask


def named(batch):
    return dict(zip(("input_ids", "attention_mask"), batch, strict=True))


@pytest.mark.parametrize("taps", [(0,), (0, 2), (1, 2, 3), (4,), (0, 1, 2, 3, 4)])
def test_taps_are_transformers_hidden_states(backbone, batch, taps):
    whole = AutoModel.from_pretrained(backbone).eval()
    with torch.no_grad():
        expected = whole(*batch, output_hidden_states=True).hidden_states
        found = Backbone.load(str(backbone), lambda _: taps)(named(batch))
    for tap, hidden in zip(taps, found, strict=True):
        real = batch[1].bool()
        torch.testing.assert_close(hidden[real], expected[tap][real], rtol=1e-5, atol=1e-6)


def test_nothing_above_the_deepest_tap_is_kept(backbone):
    cut = Backbone.load(str(backbone), lambda _: (1, 2))
    assert {name.split(".")[3] for name, _ in cut.named_parameters() if ".layer." in name} == {"0", "1"}


def test_backbone_is_frozen_and_stays_in_evaluation_mode(backbone, batch):
    levi = _levi(backbone).train()
    assert not any(p.requires_grad for p in levi.backbone.parameters())
    assert not any(module.training for module in levi.backbone.modules())
    assert levi.ensemble.training
    first, second = levi.backbone(named(batch)), levi.backbone(named(batch))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_digest_knows_the_weights_and_not_the_taps(backbone, tmp_path):
    digest = Backbone.load(str(backbone), lambda _: (1,)).identity.digest
    assert Backbone.load(str(backbone), lambda _: (4,)).identity.digest == digest
    changed = AutoModel.from_pretrained(backbone)
    with torch.no_grad():
        changed.embeddings.word_embeddings.weight[7, 3] += 1e-3
    changed.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="have changed"):
        Backbone.load(str(tmp_path), lambda _: (1,), digest=digest)


def test_incomplete_checkpoint_is_refused(backbone, tmp_path):
    model = AutoModel.from_pretrained(backbone)
    state = {name: tensor for name, tensor in model.state_dict().items() if "layer.2." not in name}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(UsageError, match="has no weights for"):
        Backbone.load(str(tmp_path), lambda _: (1,))


def _levi(backbone, **changes) -> Levi:
    config = ModelConfig(**{"backbone": str(backbone), "taps": (1, 3), "queries": 2, **changes})
    loaded = Backbone.load(str(backbone), config.depths)
    rows = Preprocessing(text=TextSettings())
    task = Task(kind="classification", labels=("a", "b", "c"))
    ensemble = build(config, loaded.identity, rows, loaded.taps, task=task)
    if ensemble.novelty is not None:
        as_if_fitted(ensemble.novelty)
    return Levi(loaded, ensemble).eval()


@pytest.mark.parametrize("pooling", get_args(Pooling))
@pytest.mark.parametrize("branches", [("mlp",), ("cnn", "gru"), ("transformer",), ()])
def test_a_row_answers_alike_alone_and_padded(backbone, batch, pooling, branches):
    levi = _levi(backbone, pooling=pooling, branches=branches)
    with torch.no_grad():
        together = levi(*batch)
        assert [answer.shape for answer in together] == [(3, 3), (3, 2, 3), (3,)]
        alone = levi(batch[0][1:2, :3], batch[1][1:2, :3])
    for one, all_rows in zip(alone, together, strict=True):
        torch.testing.assert_close(one[0], all_rows[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", ["attention", "tokens", "ladder"])
def test_only_the_ensemble_trains_and_all_of_it(backbone, batch, pooling):
    levi = _levi(backbone, pooling=pooling)
    _, head_logits, _ = levi(*batch)
    loss(head_logits, torch.tensor([0, 1, 2]), "classification", torch.ones(2)).backward()
    without = [name for name, p in levi.ensemble.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []
    assert all(p.grad is None for p in levi.backbone.parameters())


def test_poolings_by_hand():
    hidden = torch.arange(24.0).reshape(2, 3, 4)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    assert FixedPooling("mean", 4)(hidden, mask)[0].tolist() == [[4, 5, 6, 7], [14, 15, 16, 17]]
    assert FixedPooling("first", 4)(hidden, mask)[0].tolist() == [[0, 1, 2, 3], [12, 13, 14, 15]]
    assert FixedPooling("last", 4)(hidden, mask)[0].tolist() == [[8, 9, 10, 11], [16, 17, 18, 19]]
    left = torch.tensor([[1, 1, 1], [0, 1, 1]])
    assert FixedPooling("last", 4)(hidden, left)[0].tolist() == [[8, 9, 10, 11], [20, 21, 22, 23]]


def test_attention_pooling_is_softmax_over_real_tokens():
    torch.manual_seed(0)
    pool = AttentionPooling(4, 2)
    hidden, mask = torch.randn(1, 3, 4), torch.tensor([[1, 1, 0]])
    pooled, _ = pool(hidden, mask)
    real = hidden[0, :2]
    expected = [real.mean(dim=0)]
    expected += [((real @ query / 2).softmax(dim=0) @ real) for query in pool.queries]
    torch.testing.assert_close(pooled[0], torch.cat(expected))


def test_token_reading_maps_each_token_and_pools_real_ones():
    torch.manual_seed(0)
    pool = TokenReading(8, ModelConfig(queries=2, side_width=4)).eval()
    hidden, mask = torch.randn(1, 3, 8), torch.tensor([[1, 1, 0]])
    pooled, handed_up = pool(hidden, mask)
    real = hidden[0, :2]
    tokens = F.gelu(pool.project(F.layer_norm(real, (8,))))
    queries = pool.summary.attend.queries
    expected = [real.mean(dim=0), tokens.mean(dim=0)]
    expected += [(tokens @ query / 2).softmax(dim=0) @ tokens for query in queries]
    torch.testing.assert_close(pooled[0], torch.cat([*expected, tokens.amax(dim=0)]))
    assert pooled.shape == (1, pool.width)
    assert handed_up is None


def test_a_rung_is_a_transformer_block_on_the_tap_and_what_lies_below():
    """Against torch's own pre-norm block with the same weights."""
    torch.manual_seed(0)
    rung = Rung(8, ModelConfig(queries=2, side_width=16)).eval()
    hidden, below, mask = torch.randn(2, 5, 8), torch.randn(2, 5, 16), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    block = torch.nn.TransformerEncoderLayer(16, 4, 32, activation=F.gelu, batch_first=True, norm_first=True).eval()
    block.self_attn.in_proj_weight, block.self_attn.in_proj_bias = rung.attend.weight, rung.attend.bias
    block.self_attn.out_proj = rung.mix
    block.norm1, block.norm2, block.linear1, block.linear2 = rung.norm_attend, rung.norm_net, rung.net[0], rung.net[2]
    start = rung.project(F.layer_norm(hidden, (8,)))
    real = mask.bool()
    with torch.no_grad():
        pooled, state = rung(hidden, mask, below)
        expected = block(start + below, src_key_padding_mask=~real)
        torch.testing.assert_close(state[real], expected[real])
        torch.testing.assert_close(pooled[1, :8], hidden[1, :3].mean(dim=0))
        torch.testing.assert_close(pooled[1, -16:], state[1, :3].amax(dim=0))
        fewer = torch.randn(2, 3, 16)  # as of a backbone that halves its feature maps
        _, state = rung(hidden, None, fewer)
        torch.testing.assert_close(state, block(start + fewer.mean(dim=1, keepdim=True)))


@pytest.mark.parametrize("pooling", ["ladder", "mean"])
def test_members_are_models_of_their_own_over_one_pass(backbone, batch, pooling):
    """Each member answers as a model of one member with its weights does."""
    branches = ("mlp", "cnn")
    both, one = (_levi(backbone, pooling=pooling, branches=branches, members=members) for members in (2, 1))
    own = dict(one.ensemble.named_children())
    with torch.no_grad():
        logits, head_logits, _ = both(*batch)
        assert head_logits.shape == (3, 2 * 2, 3)
        torch.testing.assert_close(logits, head_logits.mean(dim=1))
        for member in (0, 1):
            for name, parts in {"pools": 2, "branches": len(branches), "heads": 2}.items():
                there = list(both.ensemble.get_submodule(name))
                shared = len(there) == parts  # of fixed poolings there is one for all
                for n, part in enumerate(own[name]):
                    part.load_state_dict(there[n + (0 if shared else member * parts)].state_dict())
            expected = one(*batch)[1]
            torch.testing.assert_close(head_logits[:, 2 * member : 2 * member + 2], expected)
        assert not torch.allclose(head_logits[:, :2], head_logits[:, 2:], atol=1e-3)


@pytest.mark.parametrize("members", [1, 2])
def test_outputs_alone_are_averaged_where_heads_read_one_thing_each(backbone, batch, members):
    """Linear heads on the taps do not change with the branches, and the branches' head not with the taps."""
    levi = _levi(backbone, fusion="outputs", branches=("mlp", "cnn"), pooling="mean", members=members)
    heads, stages = levi.ensemble.heads, len(levi.ensemble.names)
    assert [head.norm is None for head in heads] == [False, False, True] * members
    assert [isinstance(head.net, torch.nn.Linear) for head in heads] == [True, True, False] * members
    assert levi.ensemble.layout([3, 2]) == [(0, [None, None]), (1, [None, None]), (None, [2, 1])]
    assert stages == 2
    with torch.no_grad():
        _, before, *_ = levi(*batch)
        for part in levi.ensemble.branches.parameters():
            part.add_(0.1)
        _, moved, *_ = levi(*batch)
        levi.backbone.model.get_input_embeddings().weight.add_(torch.randn(32))
        _, both, *_ = levi(*batch)
    taps = [n for n, head in enumerate(heads) if head.norm is not None]
    alone = [n for n, head in enumerate(heads) if head.norm is None]
    torch.testing.assert_close(moved[:, taps], before[:, taps])
    assert not torch.allclose(moved[:, alone], before[:, alone], atol=1e-4)
    torch.testing.assert_close(both[:, alone], moved[:, alone])
    assert not torch.allclose(both[:, taps], moved[:, taps], atol=1e-4)


def test_without_taps_or_branches_there_is_nothing_to_keep_apart(backbone):
    for changes in ({"taps": ()}, {"branches": ()}):
        apart, together = (_levi(backbone, pooling="mean", fusion=way, **changes) for way in ("outputs", "layers"))
        assert apart.ensemble.state_dict().keys() == together.ensemble.state_dict().keys()


def test_average_of_logits_and_of_probabilities():
    head_logits = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]])
    assert average(head_logits, "logits", "classification").tolist() == [[1.0, 0.5]]
    p = average(head_logits, "probabilities", "classification").softmax(dim=1)
    torch.testing.assert_close(p, head_logits.softmax(dim=2).mean(dim=1))
    p = average(head_logits, "probabilities", "multilabel").sigmoid()
    torch.testing.assert_close(p, head_logits.sigmoid().mean(dim=1))
    assert average(head_logits, "probabilities", "regression").tolist() == [[1.0, 0.5]]


def test_weights_of_the_average():
    head_logits, weights = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]]), torch.tensor([0.75, 0.25])
    assert average(head_logits, "logits", "classification", weights).tolist() == [[1.5, 0.25]]
    assert average(head_logits, "probabilities", "regression", weights).tolist() == [[1.5, 0.25]]
    p = average(head_logits, "probabilities", "classification", weights).softmax(dim=1)
    torch.testing.assert_close(p, (head_logits.softmax(dim=2) * weights[:, None]).sum(dim=1))
    p = average(head_logits, "probabilities", "multilabel", weights).sigmoid()
    torch.testing.assert_close(p, (head_logits.sigmoid() * weights[:, None]).sum(dim=1))


def test_average_of_probabilities_survives_extreme_logits():
    head_logits = torch.tensor([[[200.0, -200.0], [150.0, -150.0]]])
    for kind in ("classification", "multilabel"):
        assert torch.isfinite(average(head_logits, "probabilities", kind)).all()


def test_loss_weights_heads():
    head_logits, target = torch.tensor([[[0.0], [3.0]]]), torch.tensor([1.0])
    assert loss(head_logits, target, "regression", torch.tensor([3.0, 1.0])).item() == pytest.approx((3 * 1 + 4) / 4)


@pytest.mark.parametrize(
    ("heads", "stages", "expected"),
    [(3, 3, [0, 1, 2]), (1, 3, [2]), (4, 2, [0, 0, 1, 1]), (2, 3, [1, 2]), (5, 3, [0, 1, 1, 2, 2])],
)
def test_stages_go_in_order_and_the_last_head_reads_the_last(heads, stages, expected):
    assert [stage_of(k, heads=heads, stages=stages) for k in range(heads)] == expected


def test_without_a_norm_per_tap_scale_would_matter(backbone, batch):
    levi = _levi(backbone, branches=(), pooling="mean")
    hidden = levi.backbone(named(batch))
    logits, *_ = levi.ensemble(hidden, named(batch))
    scaled, *_ = levi.ensemble([1000 * tap for tap in hidden], named(batch))
    torch.testing.assert_close(scaled, logits, rtol=1e-3, atol=1e-3)
