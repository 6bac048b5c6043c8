"""Errors as the command words them: the option's name, the extra to install, the path and the reason; exit codes."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys

import pytest

from levi_deploy.cli import explain, extras
from levi_serving.errors import RunError, UsageError

pytestmark = pytest.mark.slow

EXTRAS = [
    ("torch", "train"),
    ("transformers", "train"),
    ("safetensors", "train"),
    ("onnx", "export"),
    ("onnx_ir", "export"),
    ("onnxscript", "export"),
    ("optimum", "export"),
    ("pyarrow", "table"),
    ("PIL", "image"),
    ("peft", "lora"),
    ("matplotlib", "plot"),
    ("openvino", "openvino"),
]


@pytest.mark.parametrize(("module", "extra"), EXTRAS)
def test_a_missing_package_names_its_extra(levi, bundle, monkeypatch, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr("levi_deploy.models.kind", lambda _: importlib.import_module(f"{module}.anything"))
    code, out, err = levi("inspect", bundle)
    assert (code, out) == (1, "")
    assert err == (
        f"Error: This command needs the package {module!r}, which is not installed. "
        f"Install it with: pip install 'levi-deploy[{extra}]'\n"
    )


def test_a_package_of_no_extra_is_a_defect(levi, bundle, monkeypatch):
    monkeypatch.setattr("levi_deploy.models.kind", lambda _: importlib.import_module("no_such_package"))
    code, _, err = levi("inspect", bundle)
    assert (code, "defect of levi-deploy" in err) == (1, True)


def test_extras_are_those_of_the_package(monkeypatch):
    """Whether an installer has flattened extras made of others, or left them."""
    assert set(extras.extras().values()) == {*(extra for _, extra in EXTRAS), "cpu", "gpu"}
    assert {"numpy", "tokenizers", "typer"} == set(extras.required())
    requirements = [
        "numpy>=1.26", "torch>=2.9; extra == 'train'", 'levi-deploy[train] ; extra == "lora"',
        'peft>=0.17; extra == "lora"', "onnxruntime-gpu[cuda,cudnn]>=1.31; extra == 'gpu'", "ruff; extra == 'dev'",
        "torch; extra == 'all'", "peft; extra == 'all'",
    ]  # fmt: skip
    monkeypatch.setattr("importlib.metadata.requires", lambda _: requirements)
    assert extras.extras() == {"torch": "train", "peft": "lora", "onnxruntime-gpu": "gpu"}
    assert extras.required() == ["numpy"]


def test_doctor_names_what_is_missing_and_how_to_install_it(levi, monkeypatch):
    code, out, _ = levi("doctor")
    assert code == 0
    assert "CPUExecutionProvider" in out
    assert "allocator     " in out
    assert "onnxruntime-gpu " not in out, "one of onnxruntime's builds alone"
    for package in ("pillow", "peft", "matplotlib", "openvino", "torch", "onnxscript", "pyarrow", "typer"):
        assert f"\n{package} " in out
    monkeypatch.setattr("importlib.metadata.requires", lambda _: ["numpy", "no-such-package>=2; extra == 'train'"])
    _, out, _ = levi("doctor")
    assert "missing, for levi train; levi evaluate on a run" in out
    assert "pip install 'levi-deploy[train]'" in out


@pytest.mark.parametrize(
    ("message", "worded"),
    [
        ("`fine_tune` is 2. Give `taps`.", "Error: --fine-tune is 2. Give --taps."),
        ("`branches` has 'x'.", "Error: --branch has 'x'."),
        ("`patience` is 0.", "Error: training.patience is 0."),
        ("`train_split` is 'x'.", "Error: data.train_split is 'x'."),
        ("`output` exists. Set `overwrite`.", "Error: --output exists. Set --overwrite."),
        ("Lower `qps`, or raise `bound_s`.", "Error: Lower --qps, or raise --slo-ms."),
        ("`nobody` knows `this thing`.", "Error: `nobody` knows `this thing`."),
    ],
)
def test_arguments_become_options(message, worded):
    assert explain(UsageError(message)) == (worded, 2)
    assert explain(RunError(message)) == (worded, 1)
    assert str(UsageError(message)) == message, "as another host reads it"


@pytest.mark.parametrize(
    ("command", "output"),
    [
        ("bench {bundle} --quick -o {file}", "report.json"),
        ("bench {bundle} --quick --plot {file}", "plot.html"),
        ("profile {bundle} -o {file}", "profile.html"),
        ("predict {bundle} {table} -o {file}", "out.csv"),
        ("predict {bundle} {table} -o {tmp}/out.csv --errors {file}", "bad.jsonl"),
        ("predict {bundle} {table} -o - --errors {file}", "bad.jsonl"),
    ],
)
@pytest.mark.parametrize("taken", [False, True])
def test_a_file_that_cannot_be_written_is_refused_before_any_work(
    levi, bundle, table, tmp_path, monkeypatch, command, output, taken
):
    monkeypatch.setattr("levi_serving.Runner.prepare", lambda *_, **__: pytest.fail("worked"))
    file = tmp_path / "folder" / output
    if taken:
        file.mkdir(parents=True)
    code, out, err = levi(*command.format(bundle=bundle, table=table, file=file, tmp=tmp_path).split())
    assert (code, out) == (2, "")
    why = f"{file} is a folder" if taken else f"There is no folder {file.parent} to write {output} in."
    assert err.startswith(f"Error: {why}")
    assert len(list(tmp_path.rglob("*"))) == 2 * taken


def test_what_was_measured_is_shown_before_it_is_written(levi, bundle, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device", str(tmp_path / "report.json"))

    monkeypatch.setattr("pathlib.Path.write_text", full)
    code, out, err = levi(
        "bench", bundle, "--length", "8", "--duration", "0.2", "--quick", "-o", tmp_path / "report.json"
    )
    assert (code, err) == (1, f"Error: {tmp_path / 'report.json'}: No space left on device.\n")
    assert "batch 1 x 8 tokens" in out


@pytest.mark.parametrize(
    ("error", "worded"),
    [
        (PermissionError(13, "Permission denied", "/etc/x"), "Error: /etc/x: Permission denied."),
        (OSError(28, "No space left on device"), "Error: No space left on device."),
        (OSError("the mount is gone"), "Error: the mount is gone."),
    ],
)
def test_the_system_s_errors_are_no_defects(error, worded):
    assert explain(error) == (worded, 1)


def test_internal_errors_say_so_and_show_a_traceback_on_request(levi, bundle, monkeypatch):
    def broken(_):
        raise RuntimeError("oops")

    monkeypatch.setattr("levi_serving.Bundle.open", broken)
    code, _, err = levi("inspect", bundle)
    assert (code, "defect of levi-deploy" in err, "Traceback" in err) == (1, True, False)
    monkeypatch.setenv("LEVI_DEBUG", "1")
    with pytest.raises(RuntimeError, match="oops"):
        levi("inspect", bundle)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_have_the_shell_s_exit_codes(levi, bundle, monkeypatch, number, code):
    monkeypatch.setattr("levi_serving.Bundle.open", lambda _: os.kill(os.getpid(), number))
    assert levi("inspect", bundle) == (code, "", "")


def test_inspecting_a_run_needs_no_torch(run):
    script = f"""
import sys
from levi_deploy.cli import app
app(["inspect", {str(run.folder)!r}], standalone_mode=False)
print({{"torch", "transformers", "onnx", "onnxruntime", "safetensors"}} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("LEVI training run")
    assert done.stdout.endswith("\nset()\n")
