"""The command, as a shell sees it: what it prints, where, and its exit codes."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

LEVI = [str(Path(sys.executable).with_name("levi"))]


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
    assert "tap 3: (B, T, 32) → ladder pooling with 4 queries → (B, 608)" in out
    assert "head 2: [tap 3 ; mlp stage 3] → 128 hidden units → (B, 2)" in out
    code, out, _ = levi("inspect", run, "--json")
    assert (code, json.loads(out)["kind"], json.loads(out)["taps"]) == (0, "run", [1, 3])
    code, out, _ = levi("evaluate", bundle, table, "--pairs", "topics")
    assert (code, out.splitlines()[0]) == (0, f"bundle on {table.name}")
    assert "How far answers move between versions of one row" in out

    code, out, err = levi("predict", bundle, table, "-o", output, "--heads", "--all-probabilities")
    assert (code, err) == (0, "")
    assert out.startswith("400 rows predicted, 0 failed")
    with output.open(newline="") as file:
        row = next(csv.DictReader(file))
    assert list(row) == [
        "text", "label", "score", "topics", "split", "price", "shop", "user", "item", "prediction", "probability",
        "probability_negative", "probability_positive", "disagreement", "abstain", "novelty", "head_1",
        "head_2",
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
        (["train", "{table}", "-o", "{tmp}/r", "--epochs", "0"], 2, "--epochs is 0; expected more than 0"),
        (["train", "{table}", "-o", "{tmp}/r", "--branch", "cnn3"], 2, "--branch has 'cnn3'; expected mlp, cnn"),
        (["train", "{table}", "-o", "{tmp}/r", "--target", "lable"], 1, "Did you mean 'label'?"),
        (["bench", "{bundle}", "--length", "9999", "--quick"], 2, "--length has 9999"),
        (["bench", "{bundle}", "--batch-size", "0"], 2, "'--batch-size': '0'; expected whole numbers from 1"),
        (["bench", "{bundle}", "--against", "torch"], 2, "Give --run."),
        (["bench", "{bundle}", "--against", "tensorrt"], 2, "--against is 'tensorrt'; expected torch, torch-compile"),
        (["bench", "{bundle}", "--threads", "1,0"], 2, "'--threads': '1,0'; expected"),
        (["bench", "{bundle}", "--precision", "int8"], 1, "has no int8 graph for the device 'cpu'; it has fp32"),
        (["bench", "{bundle}", "--quick", "--mlperf"], 2, "Leave out --quick and --duration"),
        (
            ["bench", "{bundle}", "--qps", "5"],
            2,
            "--qps and --find-peak are settings of the server scenario, but --scenario is 'single'",
        ),
        (["bench", "{bundle}", "--scenario", "server"], 2, "Give --qps, or --find-peak to search for the highest"),
        (["bench", "{bundle}", "--plot", "{tmp}/plot.svg"], 2, "ends in .png or .html"),
        (["bench", "{bundle}", "--baseline", "{table}"], 2, "is not a report of levi bench"),
        (["bench", "{bundle}", "--fail-slower", "5"], 2, "--fail-slower needs an older report. Give --baseline"),
        (["evaluate", "{bundle}", "{table}", "--split", "ood"], 2, "--split has 'ood', but no row of"),
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
    assert (code, "'int5'; expected some of fp32, fp16, bf16, int8, int4" in err) == (2, True)
    code, _, err = levi("export", run.folder, "-o", tmp_path / "bundle", "--precision", "fp32,bf16")
    assert (code, "no bf16 kernels for" in err) == (5, True)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_answer_has_exit_code_3(levi, bundle_copy):
    from dataclasses import replace

    from levi_serving import Bundle

    manifest = Bundle.open(bundle_copy).manifest
    Bundle.write(bundle_copy, replace(manifest, task=replace(manifest.task, labels=("positive", "negative"))))
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
    options = ["--quick", "--threads", "1,2", "--precision", "fp32", "--data", tmp_path / "rows.csv", "--json"]
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
    code, out, _ = levi("bench", bundle, *options, "--scenario", "offline", "--baseline", old)
    assert code == 0
    assert {one["verdict"] for one in json.loads(out)["comparison"]} <= {
        "faster", "slower", "no difference beyond the noise", "too few requests to say",
    }  # fmt: skip
    code, out, err = levi("bench", bundle, "--quick", "--baseline", old)
    assert (code, "its nearest has another" in err) == (2, True)
    assert "batch 1 x real lengths" in out  # what was measured is not lost
    report["workloads"][0]["results"]["onnxruntime-fp32"]["windows_ms"] = [1e-6] * 20
    old.write_text(json.dumps(report))
    code, out, err = levi(
        "bench", bundle, *options[:-1], "--scenario", "offline", "--baseline", old, "--fail-slower", "50"
    )
    assert (code, "by more than 50 %" in err) == (4, True)
    assert "1 thread, onnxruntime-fp32: slower, " in out


def test_a_request_is_profiled(levi, bundle, tmp_path, monkeypatch):
    from levi_serving.bench import breakdown

    peak = breakdown.Peak(products=1e9, stream=1e9, threads=1, by="a test")
    monkeypatch.setattr(breakdown, "measure_peak", lambda threads: peak)
    page = tmp_path / "profile.html"
    options = ["--duration", "0.1", "--batch-size", "1,2", "--batch-size", "3", "--length", "8"]
    code, out, _ = levi("profile", bundle, *options, "-o", page, "--json")
    document = json.loads(out)
    assert (code, [one["batch_size"] for one in document["profiles"]]) == (0, [1, 2, 3])
    assert page.read_text().count('class="flame"') == 3
    code, out, _ = levi("profile", bundle, *options[:2])
    assert code == 0
    assert "backbone" in out
    assert "flame graph" not in out


def test_a_layout_is_tuned_and_kept_in_the_cache(levi, bundle, tmp_path, monkeypatch):
    from levi_serving import Runner
    from levi_serving.bench import tune

    monkeypatch.setenv("LEVI_CACHE", str(tmp_path))
    measured = tune.tune
    monkeypatch.setattr(tune, "tune", lambda *a, **settings: measured(*a, **(settings | {"rounds": 3})))
    code, out, _ = levi("tune", bundle, "--scenario", "offline", "--json")
    (found,) = json.loads(out)["tuned"]
    assert code == 0
    assert Path(found["file"]).is_relative_to(tmp_path)
    assert Runner(bundle, scenario="offline").workers == found["workers"]
    code, out, _ = levi("tune", bundle)
    assert (code, "single: " in out, f"kept in {tmp_path}" in out) == (0, True, True)


def test_a_server_is_measured(levi, bundle):
    options = ["--scenario", "server", "--qps", "400", "--slo-ms", "20000", "--slo-percentile", "95", "--quick"]
    code, out, _ = levi("bench", bundle, *options)
    assert code == 0
    assert "400 requests/s x real lengths" in out
    assert "p95 bound 20000 ms" in out


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
    assert (again.returncode, "unfinished job. Set --resume" in again.stderr) == (2, True)
