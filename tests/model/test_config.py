"""Configurations: what is refused, in one sentence, before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from levi_deploy.config import Config, ModelConfig, TrainingConfig
from levi_serving.errors import UsageError


@pytest.mark.parametrize(
    ("taps", "depth", "expected"),
    [
        (3, 6, (2, 4, 6)),
        (1, 6, (6,)),
        (5, 12, (2, 5, 7, 10, 12)),
        ("all", 2, (0, 1, 2)),
        ((0, 4), 4, (0, 4)),
        ((), 4, ()),
    ],
)
def test_taps(taps, depth, expected):
    assert ModelConfig(taps=taps).depths(depth) == expected


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ModelConfig(taps=(2, 9)).depths(6), "Tap 9 is out of range"),
        (lambda: ModelConfig(taps=7).depths(6), "has 6 layers"),
        (lambda: ModelConfig(taps=(3, 2)), "rising order"),
        (lambda: ModelConfig(taps=(-1, 2)), "rising order"),
        (lambda: ModelConfig(taps=(), branches=()), "nothing reads the input"),
        (lambda: ModelConfig(branch_dropout=1.0), "`branch_dropout` is 1.0"),
        (lambda: ModelConfig(queries=0), "`queries` is 0"),
        (lambda: ModelConfig(side_width=90), "`side_width` is 90; expected a multiple of 4"),
        (lambda: ModelConfig(side_dropout=1.0), "`side_dropout` is 1.0"),
        (lambda: TrainingConfig(ema_decay=1.0), "`ema_decay` is 1.0"),
        (lambda: TrainingConfig(learning_rate=-1.0), "`learning_rate` is -1.0"),
        (lambda: TrainingConfig(head_weights=(0.0, 0.0)), "not all 0"),
        (
            lambda: Config.read(None, model={"pooling": "max"}),
            "`pooling` is 'max'; expected 'ladder' or 'tokens' or 'attention' or 'mean'",
        ),
        (lambda: Config.read(None, model={"taps": "some"}), "`taps` is 'some'"),
        (lambda: Config.read(None, training={"epochs": 2.5}), "`epochs` is 2.5; expected a whole number"),
        (
            lambda: Config.read(None, training={"epocs": 2}),
            r"\[training\] has no setting 'epocs'; expected epochs, batch_size",
        ),
    ],
)
def test_refused(make, says):
    with pytest.raises(UsageError, match=says):
        make()


def test_flags_go_before_the_file_and_the_file_before_defaults(tmp_path):
    path = tmp_path / "levi.toml"
    path.write_text('[model]\ntaps = [1, 2]\nhead_hidden = 0\n[training]\nlearning_rate = 1\n[data]\ntarget = "y"\n')
    config = Config.read(path, model={"head_hidden": 7, "pooling": None})
    assert (config.model.taps, config.model.head_hidden, config.model.pooling) == ((1, 2), 7, "ladder")
    assert (config.training.learning_rate, config.data.target) == (1.0, "y")
    assert Config.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[modle]\n", r"'modle' is no section of a configuration; expected \[model\]"),
        ("model = 3", "'model' is no section"),
        ("taps = [", "no readable TOML"),
    ],
)
def test_bad_file(tmp_path, text, says):
    path = tmp_path / "levi.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=says):
        Config.read(path)


def test_the_example_at_the_root_is_every_setting_with_its_default():
    """Written by ``levi train --print-config > levi.toml``."""
    path = Path(__file__).parents[2] / "levi.toml"
    assert path.read_text(encoding="utf-8") == Config().to_toml()
    assert Config.read(path) == Config()


@pytest.mark.parametrize(
    "settings",
    [
        {"model": {"taps": "all", "branches": ["cnn", "mlp"], "lora": 2, "image_size": 32}},
        {"model": {"taps": [], "head_hidden": 0, "branches": ["mlp"]}, "training": {"calibrate": False}},
        {"data": {"text": 'a "b"\\ é', "text_pair": "c\td", "nodes": ["user", "item"], "edges": "e.csv"}},
    ],
)
def test_toml_and_back(tmp_path, settings):
    config = Config.read(None, **settings)
    (tmp_path / "levi.toml").write_text(config.to_toml(), encoding="utf-8")
    assert Config.read(tmp_path / "levi.toml") == config


def test_every_setting_is_described():
    text = Config().to_toml()
    for section in Config().to_dict().values():
        for name in section:
            above = text[: text.index(f"\n{name} =") if f"\n{name} =" in text else text.index(f"\n# {name} =")]
            assert above.rpartition("\n\n")[2].startswith("# "), name
