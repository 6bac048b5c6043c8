"""Branches: padding has no effect, all of it learns, a graph folds into a table, anyone can add one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from levi_deploy.config import BRANCHES, Config, DataConfig, ModelConfig
from levi_deploy.model.branches import Facts, branch_names, make
from levi_serving.errors import UsageError

pytestmark = pytest.mark.slow

EDGES = np.asarray([[1, 1, 2, 3], [1, 2, 2, 1]])
FACTS = Facts(vocabulary=50, pixels=(24, 32), numeric=2, categorical=(4, 3), nodes=(5, 4), edges=EDGES)
ONLY = {
    "mlp": Facts(vocabulary=50),
    "cnn": Facts(vocabulary=50),
    "gru": Facts(vocabulary=50),
    "transformer": Facts(vocabulary=50),
    "image cnn": Facts(pixels=(24, 32)),
    "tabular": Facts(numeric=2, categorical=(4, 3)),
    "graph": Facts(nodes=(5, 4), edges=EDGES),
}
SMALL = {"branch_width": 12, "branch_embedding": 8}


def inputs():
    torch.manual_seed(3)
    return {
        "input_ids": torch.randint(1, 50, (4, 6)),
        "attention_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] + [0] * 5, [1] * 5 + [0]]),
        "pixel_values": torch.randn(4, 3, 24, 32),
        "numeric": torch.randn(4, 2),
        "categorical": torch.tensor([[0, 1], [1, 2], [2, 0], [3, 1]]),
        "nodes": torch.tensor([[1, 1], [2, 2], [0, 3], [4, 0]]),
    }


def built(name, **changes):
    torch.manual_seed(0)
    return make(name.removeprefix("image "), ONLY[name], ModelConfig(**{**SMALL, **changes}))


@pytest.mark.parametrize("name", ONLY)
def test_stages_and_what_is_read(name):
    branch = built(name).eval()
    stages = branch.stages({key: value for key, value in inputs().items() if key in branch.inputs})
    assert [tuple(stage.shape) for stage in stages] == [(4, branch.width)] * len(stages)
    assert len(built(name, branch_depth=5).train().eval().stages(inputs())) == 5
    assert not torch.equal(stages[0][0], stages[0][1]), "rows differ"


@pytest.mark.parametrize("name", ONLY)
def test_all_of_it_learns(name):
    branch = built(name, branch_dropout=0.0).train()
    sum((stage**2).sum() for stage in branch.stages(inputs())).backward()
    assert [
        n for n, p in branch.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.abs().sum())
    ] == []


@pytest.mark.parametrize("name", ["mlp", "cnn", "gru", "transformer"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_has_no_effect(name, side):
    branch, given = built(name).eval(), inputs()
    row = {key: given[key][1:2, :4] for key in branch.inputs}
    padded = {key: nn.functional.pad(value, (0, 3) if side == "right" else (3, 0)) for key, value in row.items()}
    padded["input_ids"][padded["attention_mask"] == 0] = 7
    for alone, wide in zip(branch.stages(row), branch.stages(padded), strict=True):
        torch.testing.assert_close(alone, wide, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["cnn", "gru", "transformer"])
def test_word_order_matters_to_all_but_the_mean(name):
    given = {"input_ids": torch.tensor([[4, 5, 6, 7]]), "attention_mask": torch.ones(1, 4, dtype=torch.int64)}
    turned = {**given, "input_ids": given["input_ids"].flip(1)}
    assert torch.allclose(built("mlp").eval().stages(given)[0], built("mlp").eval().stages(turned)[0])
    assert not torch.allclose(built(name).eval().stages(given)[-1], built(name).eval().stages(turned)[-1])


def test_propagation_by_hand_and_folded():
    """Users 1 and 2, items 1 and 2 by EDGES: LightGCN's weights are 1 / sqrt(deg(a) deg(b))."""
    branch = built("graph", branch_depth=1).train()
    e = branch.embedding.detach()
    user, item = e[:5], e[5:]
    first = item[1] / np.sqrt(2 * 2) + item[2] / np.sqrt(2 * 2)
    (table,) = branch.propagate()
    torch.testing.assert_close(table[1], (user[1] + first) / 2)
    torch.testing.assert_close(table[0], user[0], msg="the unseen node stays itself")
    torch.testing.assert_close(table[4], user[4], msg="so does one without edges")
    branch.eval()
    torch.testing.assert_close(branch.folded[0], table)
    served = make("graph", Facts(nodes=(5, 4)), ModelConfig(**SMALL, branch_depth=1))  # no edges where it is loaded
    served.load_state_dict(branch.state_dict())
    torch.testing.assert_close(served.eval().stages(inputs())[0], branch.stages(inputs())[0])


class Lengths(nn.Module):
    """A branch from outside the package: how long the text is."""

    inputs = ("attention_mask",)
    width = 1

    def __init__(self, facts, config):
        super().__init__()
        assert facts.vocabulary
        assert config.branch_width

    def stages(self, inputs):
        return [inputs["attention_mask"].sum(dim=1, keepdim=True).float()]


def test_one_from_outside(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "elsewhere", sys.modules[__name__])
    config = Config(model=ModelConfig(branches=("elsewhere:Lengths", "mlp")))
    branch = make(config.model.branches[0], FACTS, config.model)
    assert branch.stages(inputs())[0].tolist() == [[6], [4], [1], [5]]
    with pytest.raises(UsageError, match="cannot be imported: module .* has no attribute 'Width'"):
        make("elsewhere:Width", FACTS, ModelConfig())


def test_one_fits_each_input():
    assert branch_names(ModelConfig(), FACTS) == ("mlp", "cnn", "tabular", "graph")
    assert branch_names(ModelConfig(), Facts(vocabulary=9)) == ("mlp",)
    assert branch_names(ModelConfig(branches=()), FACTS) == ()
    assert set(BRANCHES) == {name.removeprefix("image ") for name in ONLY}


def test_what_does_not_fit_is_refused_before_any_work():
    with pytest.raises(UsageError, match="'tabular' does not fit: it reads what `numeric` or `categorical` names"):
        Config(model=ModelConfig(branches=("tabular",)))
    with pytest.raises(UsageError, match="'gru' does not fit: it reads what `text` names"):
        Config(model=ModelConfig(branches=("gru",)), data=DataConfig(image="image"))
    with pytest.raises(UsageError, match=r"`branches` has 'rnn'; expected mlp, cnn"):
        ModelConfig(branches=("rnn",))
