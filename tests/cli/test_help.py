"""Options as the help lists them: panels, choices, defaults, lists, variables, and how quick it is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import typer

from levi_deploy.cli import app, options, train

COMMANDS = typer.main.get_command(app).commands
PANELS = {
    "train": ["Arguments", "Data", "Model", "Training", "Execution", "Output", "Options"],
    "bench": [
        "Arguments", "Data", "Measurement", "Server scenario", "Execution", "Comparison", "Output", "Options",
    ],
    "predict": ["Arguments", "Data", "Execution", "Output", "Options"],
}  # fmt: skip
LISTS = {
    "train": {"--taps", "--branch", "--numeric", "--categorical", "--nodes"},
    "evaluate": {"--split"},
    "compare": {"--methods", "--split"},
    "export": {"--precision"},
    "bench": {"--batch-size", "--length", "--threads", "--precision", "--against"},
    "profile": {"--batch-size", "--length", "--threads", "--precision"},
    "tune": {"--precision"},
}


def in_a_process(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def flags(name):
    return {max(p.opts, key=len): p for p in COMMANDS[name].params if p.param_type_name == "option"}


def test_help_names_every_command_and_exit_code(levi):
    code, out, _ = levi("--help")
    assert code == 0
    listed = out.partition("Commands:\n")[2].partition("\n\n")[0]
    assert re.findall(r"^  (\w+) +[A-Z].*\w\.$", listed, re.MULTILINE) == list(COMMANDS), "each in one line, not cut"
    assert len(COMMANDS) == 12
    assert "130" in out
    assert "143" in out
    assert levi("--version")[1].startswith("levi-deploy ")


@pytest.mark.parametrize("name", PANELS)
@pytest.mark.parametrize("width", [80, 120])
def test_help_is_in_panels_and_as_wide_as_the_terminal(levi, name, width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    code, out, _ = levi(name, "--help")
    assert code == 0
    assert re.findall(r"^(\w[\w ]*):$", out, re.MULTILINE) == PANELS[name]
    assert width - 20 < max(map(len, out.splitlines())) < width


def test_help_is_quick_because_it_imports_little():
    heavy = "{'torch', 'transformers', 'onnx', 'onnxruntime', 'numpy', 'pyarrow', 'tokenizers', 'rich'}"
    assert in_a_process(f"import sys, levi_deploy.cli; print({heavy} & set(sys.modules))") == "set()\n"
    script = f"""
import sys
from levi_deploy.cli import app
for arguments in (["--help"], ["bench", "--help"], ["train", "--help"]):
    app(arguments, standalone_mode=False)
print({heavy} & set(sys.modules))
"""
    assert in_a_process(script).endswith("\nset()\n")


def test_choices_are_those_of_the_library():
    """They are written twice, for help without numpy."""
    from levi_deploy import config
    from levi_deploy.cli import predict
    from levi_serving.bundle import Precision
    from levi_serving.engine.session import Device
    from levi_serving.tables import find_format

    assert set(get_args(options.DeviceName)) == set(get_args(Device))
    assert get_args(options.PrecisionName) == get_args(Precision)
    assert get_args(train.Pooling) == get_args(config.Pooling)
    assert get_args(train.TaskChoice) == get_args(config.TaskChoice)
    assert all(find_format(Path("rows"), name) for name in get_args(predict.FormatName))


def test_the_defaults_of_train_are_those_of_the_configuration():
    from levi_deploy.config import Config

    defaults = {name: value for section in Config().to_dict().values() for name, value in section.items()}
    elsewhere = {"branch": "branches"}
    said = {p.name: p.show_default for p in COMMANDS["train"].params if isinstance(p.show_default, str)}
    assert said.keys() - defaults.keys() == {"branch", "validation", "cache"}
    for name, text in said.items():
        default = defaults.get(elsewhere.get(name, name))
        if default is not None:
            assert text in (
                str(default),
                f"{default}, none",
                str(default).rpartition("/")[2],
                "off" * (default is False),
            )
    unsaid = {p.name for p in COMMANDS["train"].params} & defaults.keys() - said.keys()
    assert not any(defaults[name] for name in unsaid), "no default without being said"


def test_train_has_flags_for_what_many_turn_and_no_more():
    assert len(flags("train").keys() - {"--set", "--print-config"}) <= 29


@pytest.mark.parametrize("name", COMMANDS)
def test_options_have_the_variable_of_their_own_name(name):
    """And their default is said by Typer, not typed into the text."""
    for flag, parameter in flags(name).items():
        assert parameter.name == flag.strip("-").replace("-", "_") or flag == "--set"
        assert "[" not in parameter.help
        assert parameter.help.endswith(".")
        assert parameter.rich_help_panel, "in a panel"
    for parameter in COMMANDS[name].params:
        if parameter.param_type_name == "argument":
            assert parameter.metavar.isupper()


@pytest.mark.parametrize(("name", "flag"), [(name, flag) for name in LISTS for flag in sorted(LISTS[name])])
def test_lists_are_repeated_or_separated_by_commas(name, flag):
    parameter = flags(name)[flag]
    one, two = ("1", "2") if parameter.metavar == "<int,…>" else ("fp32", "int8")
    command = COMMANDS[name]
    needed = {"evaluate": ["m", "d"], "compare": ["c", "d"], "train": []}.get(name, ["b"])
    needed += ["-o", "b"] if name in ("compare", "export") else []

    def read(*arguments):
        return command.make_context(name, [*needed, *arguments]).params[parameter.name]

    both = [1, 2] if parameter.metavar == "<int,…>" else ["fp32", "int8"]
    assert read(flag, f"{one},{two}") == read(flag, one, flag, two) == read(flag, f"{one}, {two}") == both
    assert read(flag, f"{one},{two}", flag, one) == [*both, both[0]]
    assert not read()  # Typer makes None of it; ``--print-config`` would show an empty list
    with pytest.raises(Exception, match="separated by commas"):
        read(flag, f"{one},,{two}")


def test_every_list_is_one():
    found = {name: {f for f, p in flags(name).items() if p.multiple and f != "--set"} for name in COMMANDS}
    assert {name: lists for name, lists in found.items() if lists} == LISTS


def test_options_have_variables(levi, bundle, table, tmp_path, monkeypatch):
    monkeypatch.setenv("LEVI_PREDICT_OUTPUT", str(tmp_path / "out.csv"))
    monkeypatch.setenv("LEVI_PREDICT_PREFIX", "levi_")
    monkeypatch.setenv("LEVI_BENCH_THREADS", "1,2")  # another command's
    monkeypatch.setenv("LEVI_THREADS", "1,2")  # nobody's
    monkeypatch.setenv("LEVI_BENCH_PRECISION", "fp32,int8")
    assert levi("predict", bundle, table)[0] == 0
    assert "levi_prediction" in (tmp_path / "out.csv").read_text().splitlines()[0]
    code, _, err = levi("bench", bundle)
    assert (code, "has no int8 graph" in err) == (1, True)
    monkeypatch.setenv("LEVI_DEVICE", "cuda")  # everybody's
    assert levi("verify", bundle)[0] == 5
    assert levi("bench", bundle)[0] == 5


@pytest.mark.parametrize("silence", [["--quiet"], ["-q"], "LEVI_QUIET"])
def test_progress_is_shown_in_a_terminal_unless_quiet(levi, bundle, table, tmp_path, monkeypatch, silence):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert levi("predict", bundle, table, "-o", tmp_path / "out.csv")[2] != ""
    if silence == "LEVI_QUIET":
        monkeypatch.setenv("LEVI_QUIET", "1")
        silence = []
    code, out, err = levi(*silence, "predict", bundle, table, "-o", tmp_path / "out.csv", "--overwrite")
    assert (code, out.startswith("400 rows predicted"), err) == (0, True, "")


def test_the_package_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "levi_deploy", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("levi-deploy ")


def test_the_shell_completes_commands():
    script = """
import os, sys
from levi_deploy.cli import app
os.environ |= {"_LEVI_COMPLETE": "complete_bash", "COMP_WORDS": "levi pro", "COMP_CWORD": "1"}
app([], prog_name="levi")
"""
    assert in_a_process(script).strip() == "profile"


def test_every_setting_is_set_and_printed(levi, tmp_path):
    """Options, --set and a file make one configuration, which --print-config prints and --config reads."""
    from levi_deploy.config import Config

    (tmp_path / "levi.toml").write_text('[training]\npatience = 2\nseed = 2\n[data]\ntarget = "stars"\n')
    options = ["--config", tmp_path / "levi.toml", "--seed", "7", "--taps", "2,4", "--branch", "none"]
    settings = ["training.patience=5", "training.augment=none", "training.head_weights=[1, 2]", 'data.text="t, u"']
    code, out, err = levi("train", "--print-config", *options, *(part for one in settings for part in ("--set", one)))
    assert (code, err) == (0, "")
    (tmp_path / "printed.toml").write_text(out)
    read = Config.read(tmp_path / "printed.toml")
    assert read.training == Config.read(
        None, training={"patience": 5, "augment": "none", "head_weights": [1.0, 2.0], "seed": 7}
    ).training  # fmt: skip
    assert (read.model.taps, read.model.branches) == ((2, 4), ())
    assert (read.data.target, read.data.text) == ("stars", "t, u")


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("patience=5", "--set is 'patience=5'; expected SECTION.NAME=VALUE, as training.patience=5"),
        ("training.patience", "expected SECTION.NAME=VALUE"),
        ("trainig.patience=5", r"'trainig' is no section of a configuration; expected \[model\]"),
        ("training.patiense=5", r"\[training\] has no setting 'patiense'; expected epochs"),
        ("training.patience=many", "training.patience is 'many'; expected a whole number"),
        ("training.epochs=0", "--epochs is 0; expected more than 0"),
    ],
)
def test_settings_that_are_none(levi, setting, says):
    code, out, err = levi("train", "--print-config", "--set", setting)
    assert (code, out) == (2, "")
    assert re.search(says, err)


@pytest.mark.parametrize(("arguments", "lacks"), [([], "DATA"), (["rows.csv"], "--output RUN")])
def test_training_needs_data_and_a_folder(levi, arguments, lacks):
    code, out, err = levi("train", *arguments)
    assert (code, out, lacks in err) == (2, "", True)
