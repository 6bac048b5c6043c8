"""The command, as a shell sees it: what it prints, where, and its exit codes."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from levi_deploy.cli import main

LEVI = [str(Path(sys.executable).with_name("levi"))]


@pytest.fixture
def levi(monkeypatch, capfd):
    """Run the command in this process: (exit code, stdout, stderr)."""
    import torch

    threads = torch.get_num_threads()

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["levi", *map(str, arguments)])
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        capfd.readouterr()
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        out, err = capfd.readouterr()
        return code, out, err

    yield run
    torch.set_num_threads(threads)  # bench gives torch every core; another number of threads has other bits


def shell(*arguments, **options):
    return subprocess.run([*LEVI, *map(str, arguments)], capture_output=True, text=True, timeout=120, **options)


def test_the_whole_path(levi, table, backbone, cache, tmp_path):
    """train, evaluate, export, verify, inspect, predict, bench: each from what the one before it wrote."""
    run, bundle, output = tmp_path / "run", tmp_path / "bundle", tmp_path / "out.csv"
    options = ["--backbone", backbone, "--taps", "1,3", "--max-length", 48, "--epochs", 2, "--cache", cache]
    code, out, err = levi("train", table, "--split-column", "split", "-o", run, *options)
    assert (code, err) == (0, "")
    assert "taps [1, 3]" in out
    assert f"Next: levi export {run} -o BUNDLE" in out

    code, out, _ = levi("evaluate", run, table, "--split", "ood_test", "--by", "label", "--json")
    assert (code, list(json.loads(out)["splits"]["ood_test"])) == (0, ["all", "negative", "positive"])

    code, out, _ = levi("export", run, "-o", bundle)
    assert code == 0
    assert "model.onnx: fp32 for any device" in out
    assert "every prediction of 64 rows equal" in out
    code, out, _ = levi("verify", bundle)
    assert (code, out.startswith("Every file is the one exported.")) == (0, True)
    code, out, _ = levi("inspect", bundle)
    assert code == 0
    assert "tap 3: (B, T, 32) → attention pooling with 4 queries → (B, 160)" in out
    assert "head 2: [tap 3 ; mlp stage 3] → 128 hidden units → (B, 2)" in out
    code, out, _ = levi("inspect", run, "--json")
    assert (code, json.loads(out)["kind"], json.loads(out)["taps"]) == (0, "run", [1, 3])

    code, out, err = levi("predict", bundle, table, "-o", output, "--heads", "--all-probabilities")
    assert (code, err) == (0, "")
    assert out.startswith("400 rows predicted, 0 failed")
    with output.open(newline="") as file:
        row = next(csv.DictReader(file))
    assert list(row) == [
        "text", "label", "score", "topics", "split", "price", "shop", "user", "item", "prediction", "probability",
        "probability_negative", "probability_positive", "disagreement", "abstain", "head_1", "head_2",
    ]  # fmt: skip
    assert float(row["probability_negative"]) + float(row["probability_positive"]) == pytest.approx(1, abs=1e-5)

    code, out, _ = levi(
        "bench",
        bundle,
        "--length",
        "8,16",
        "--duration",
        "0.2",
        "--quick",
        "--against",
        "torch",
        "--run",
        run,
        "--json",
    )
    report = json.loads(out)
    assert (code, report["verdict"], len(report["workloads"])) == (0, "QUICK", 2)
    assert report["workloads"][0]["results"]["torch"]["ratio"]["median"] > 0


def test_help_names_every_command(levi):
    code, out, _ = levi("--help")
    assert code == 0
    for name in ("train", "evaluate", "export", "verify", "inspect", "predict", "bench", "doctor", "demo"):
        assert name in out
    assert levi("--version")[1].startswith("levi-deploy ")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["predict", "{bundle}", "nowhere.csv", "-o", "{tmp}/o.csv"], 2, "There is no file nowhere.csv."),
        (["predict", "nowhere", "{table}", "-o", "{tmp}/o.csv"], 2, "nowhere"),
        (["predict", "{tmp}", "{table}", "-o", "{tmp}/o.csv"], 1, "is not a LEVI bundle"),
        (["predict", "{bundle}", "{table}", "-o", "{tmp}/o.csv", "--text", "txt"], 1, "no column 'txt'"),
        (["predict", "{bundle}", "{table}", "-o", "{tmp}/o.csv", "--device", "cuda"], 5, "needs CUDAExecutionProvider"),
        (["predict", "{bundle}", "{table}", "-o", "{tmp}/o.csv", "--device", "tpu"], 2, "tpu"),
        (["predict", "{bundle}", "{table}", "-o", "{tmp}/o.xls"], 2, "suffix '.xls'"),
        (["predict", "{run}", "{table}", "-o", "{tmp}/o.csv"], 1, "it is a training run: 'levi export' makes"),
        (["export", "{bundle}", "-o", "{tmp}/b"], 1, "it is a bundle, not a run"),
        (["export", "{run}", "-o", "{bundle}"], 2, "exists and is not empty"),
        (["train", "{table}", "-o", "{tmp}/r", "--taps", "2,x"], 2, "--taps is '2,x'"),
        (["train", "{table}", "-o", "{tmp}/r", "--epochs", "0"], 2, "epochs is 0; expected more than 0"),
        (["train", "{table}", "-o", "{tmp}/r", "--branch", "cnn3"], 2, "no branch 'cnn3'"),
        (["train", "{table}", "-o", "{tmp}/r", "--target", "lable"], 1, "Did you mean 'label'?"),
        (["bench", "{bundle}", "--length", "9999", "--quick"], 2, "--length 9999"),
        (["bench", "{bundle}", "--batch-size", "0"], 2, "--batch-size is '0'; expected whole numbers from 1"),
        (["bench", "{bundle}", "--against", "torch"], 2, "Give --run RUN"),
        (["bench", "{bundle}", "--against", "tensorrt"], 2, "--against is 'tensorrt'; expected torch, torch-compile"),
        (["bench", "{bundle}", "--threads", "1,0"], 2, "--threads is '1,0'"),
        (["bench", "{bundle}", "--precision", "int8"], 1, "has no int8 graph for the device 'cpu'; it has fp32"),
        (["bench", "{bundle}", "--quick", "--mlperf"], 2, "leave out --quick and --duration"),
        (["bench", "{bundle}", "--qps", "5"], 2, "are of --scenario server"),
        (["bench", "{bundle}", "--scenario", "server"], 2, "give --qps RATE, or --find-peak"),
        (["bench", "{bundle}", "--plot", "{tmp}/plot.svg"], 2, "ends in .png or .html"),
        (["bench", "{bundle}", "--compare", "{table}"], 2, "no report of levi bench"),
        (["bench", "{bundle}", "--fail-slower", "5"], 2, "--fail-slower needs --compare"),
        (["evaluate", "{bundle}", "{table}", "--split", "ood"], 2, "has split = 'ood'"),
        (["predict"], 2, "Missing argument"),
        (["nonsense"], 2, "nonsense"),
    ],
)
def test_wrong_input_has_one_sentence_and_its_code(levi, bundle, run, table, tmp_path, arguments, code, says):
    values = {"bundle": bundle, "run": run.folder, "table": table, "tmp": tmp_path}
    found, out, err = levi(*(argument.format(**values) for argument in arguments))
    assert (found, out) == (code, "")
    assert says in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_failed_rows_have_exit_code_6(levi, bundle, tmp_path):
    (tmp_path / "in.csv").write_text("text,n\ngood lamp,1\n,2\nbad,3,4\npoor desk,5\n")
    code, out, err = levi("predict", bundle, tmp_path / "in.csv", "-o", tmp_path / "out.jsonl")
    assert code == 6
    assert out.startswith("2 rows predicted, 2 failed")
    assert "2 of 4 rows could not be used; they are in" in err
    reasons = [json.loads(line) for line in (tmp_path / "out.jsonl.errors.jsonl").read_text().splitlines()]
    assert [row["row"] for row in reasons] == [2, 3]
    code, _, err = levi("predict", bundle, tmp_path / "in.csv", "-o", tmp_path / "two.csv", "--strict")
    assert (code, "row 2: column 'text' is empty" in err) == (1, True)


def test_precisions_that_cannot_be_had_are_refused_before_anything_is_done(levi, run, tmp_path):
    code, _, err = levi("export", run.folder, "-o", tmp_path / "bundle", "--precision", "int5")
    assert (code, "The precisions are int5; expected some of fp32" in err) == (2, True)
    code, _, err = levi("export", run.folder, "-o", tmp_path / "bundle", "--precision", "fp32", "--precision", "bf16")
    assert (code, "no bf16 kernels for" in err) == (5, True)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_answer_has_exit_code_3(levi, bundle_copy):
    from dataclasses import replace

    from levi_serving import Bundle

    manifest = Bundle.open(bundle_copy).manifest
    Bundle.write(bundle_copy, replace(manifest, labels=("positive", "negative")))
    code, out, err = levi("verify", bundle_copy)
    assert (code, out) == (3, "")
    assert "predictions have another name" in err


def test_an_unstable_measurement_has_exit_code_4(levi, bundle, monkeypatch):
    monkeypatch.setattr("levi_serving.bench.scenarios.stable", lambda values: False)
    code, out, err = levi("bench", bundle, "--length", "8", "--duration", "0.2")
    assert code == 4
    assert "INVALID" in out
    assert "differ by more than 10 %" in err


def test_a_sweep_is_written_drawn_and_compared(levi, bundle, tmp_path):
    """Threads x precision over real lengths, some rows of no use; the report is what the next one is compared with."""
    (tmp_path / "rows.csv").write_text('text\ngood lamp\n""\nthis is a very poor desk on my kettle\n')
    old, page = tmp_path / "old.json", tmp_path / "plot.html"
    options = ["--quick", "--threads", "1,2", "--precision", "fp32", "--input", tmp_path / "rows.csv", "--json"]
    code, out, _ = levi("bench", bundle, *options, "--scenario", "offline", "-o", old, "--plot", page)
    report = json.loads(out)
    assert code == 0
    assert json.loads(old.read_text()) == report
    assert [workload["threads"] for workload in report["workloads"]] == [1, 2]
    assert report["skipped_rows"]["rows"] == 1
    assert "is empty" in report["skipped_rows"]["first"]
    assert report["cold_start_s"]["onnxruntime-fp32"] > 0
    result = report["workloads"][0]["results"]["onnxruntime-fp32"]
    assert 0 < result["padding_share"] < 1
    assert (result["about"]["threads"], result["about"]["workers"], result["about"]["precision"]) == (1, 1, "fp32")
    assert "onnxruntime-fp32, 1 thread" in page.read_text()
    code, out, _ = levi("bench", bundle, *options, "--scenario", "offline", "--compare", old)
    assert code == 0
    assert {one["verdict"] for one in json.loads(out)["comparison"]} <= {
        "faster", "slower", "no difference that this noise allows", "too few queries to say",
    }  # fmt: skip
    code, out, err = levi("bench", bundle, "--quick", "--compare", old)
    assert (code, "its nearest has another" in err) == (2, True)
    assert "batch 1 x real lengths" in out  # what was measured is not lost
    report["workloads"][0]["results"]["onnxruntime-fp32"]["windows_ms"] = [1e-6] * 20
    old.write_text(json.dumps(report))
    code, out, err = levi(
        "bench", bundle, *options[:-1], "--scenario", "offline", "--compare", old, "--fail-slower", "50"
    )
    assert (code, "by more than 50 %" in err) == (4, True)
    assert "1 thread, onnxruntime-fp32: slower, " in out


def test_a_server_is_measured(levi, bundle):
    options = ["--scenario", "server", "--qps", "400", "--slo-ms", "20000", "--slo-percentile", "95", "--quick"]
    code, out, _ = levi("bench", bundle, *options)
    assert code == 0
    assert "400 queries/s x real lengths" in out
    assert "p95 bound 20000 ms" in out


def test_options_have_variables(levi, bundle, table, tmp_path, monkeypatch):
    monkeypatch.setenv("LEVI_OUTPUT", str(tmp_path / "out.csv"))
    monkeypatch.setenv("LEVI_PREFIX", "levi_")
    assert levi("predict", bundle, table)[0] == 0
    assert "levi_prediction" in (tmp_path / "out.csv").read_text().splitlines()[0]
    monkeypatch.setenv("LEVI_DEVICE", "cuda")
    assert levi("verify", bundle)[0] == 5


def test_doctor_names_what_is_missing_and_how_to_install_it(levi, monkeypatch):
    code, out, _ = levi("doctor")
    assert code == 0
    assert "CPUExecutionProvider" in out
    assert "allocator     " in out
    from levi_deploy.cli import doctor

    monkeypatch.setitem(doctor._PACKAGES, "no-such-package", ("train", "dreaming"))
    _, out, _ = levi("doctor")
    assert "missing, for dreaming: pip install 'levi-deploy[train]'" in out


def test_a_missing_package_names_its_extra(levi, bundle, table, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "levi_deploy.training", None)
    monkeypatch.setitem(sys.modules, "torch", None)
    code, _, err = levi("train", table, "-o", tmp_path / "run")
    assert code == 1
    assert "levi-deploy" in err


def test_internal_errors_say_so_and_show_a_traceback_when_asked(levi, bundle, monkeypatch):
    def broken(_):
        raise RuntimeError("oops")

    monkeypatch.setattr("levi_serving.Bundle.open", broken)
    code, _, err = levi("inspect", bundle)
    assert (code, "defect of levi-deploy" in err, "Traceback" in err) == (1, True, False)
    monkeypatch.setenv("LEVI_DEBUG", "1")
    with pytest.raises(RuntimeError, match="oops"):
        levi("inspect", bundle)


def test_pipes_in_a_shell(bundle):
    answer = shell(
        "predict", bundle, "-", "-o", "-", input='{"text": "a good lamp"}\n{"text": ""}\n{"text": "a desk"}\n'
    )
    assert answer.returncode == 6
    assert [json.loads(line)["text"] for line in answer.stdout.splitlines()] == ["a good lamp", "a desk"]
    first, *_, last = answer.stderr.splitlines()
    assert json.loads(first)["row"] == 2
    assert "1 of 3 rows" in last
    csv_answer = shell(
        "predict", bundle, "-", "-o", "-", "--input-format", "csv", "--output-format", "csv", input="text\ngood lamp\n"
    )
    assert next(csv.DictReader(io.StringIO(csv_answer.stdout)))["text"] == "good lamp"


def test_a_reader_that_leaves_ends_the_command_quietly(bundle, table):
    rows = "".join(json.dumps({"text": "a good lamp"}) + "\n" for _ in range(20_000))
    process = subprocess.Popen(
        [*LEVI, "predict", bundle, "-", "-o", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdin.write(rows[: len(rows) // 2].encode())
    process.stdin.flush()
    process.stdout.readline()
    process.stdout.close()
    for act in (lambda: process.stdin.write(rows[len(rows) // 2 :].encode()), process.stdin.close):
        with contextlib.suppress(BrokenPipeError):
            act()
    complaint = process.stderr.read().decode()
    process.stderr.close()
    process.wait(timeout=60)
    assert "Internal error" not in complaint
    assert "Traceback" not in complaint


def test_ctrl_c_has_exit_code_130_and_can_be_resumed(bundle, tmp_path):
    with (tmp_path / "in.csv").open("w") as file:
        file.write("text\n" + "a good lamp and a poor desk on my kettle\n" * 200_000)
    command = [*LEVI, "predict", bundle, tmp_path / "in.csv", "-o", tmp_path / "out.csv", "--window-rows", "500"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "out.csv.partial").glob("*.part"))) < 2:
        assert time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert not (tmp_path / "out.csv").exists()
    again = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (again.returncode, "interrupted run. Add --resume" in again.stderr) == (2, True)


def test_help_is_quick_because_it_imports_little():
    script = (
        "import sys; import levi_deploy.cli\n"
        "heavy = {'torch', 'transformers', 'onnx', 'onnxruntime', 'numpy', 'pyarrow', 'tokenizers', 'rich'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    assert os.environ.get("LEVI_DEBUG") is None
