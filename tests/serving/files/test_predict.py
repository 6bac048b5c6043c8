"""From file to file: every row answered once, in order, or said to be bad; nothing lost when it is cut off."""

from __future__ import annotations

import csv
import io
import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from fakes import Echo
from hypothesis import given, settings
from hypothesis import strategies as st

from levi_serving.errors import RowsFailedError, TableError, UsageError
from levi_serving.files.predict import predict_file
from levi_serving.tables import Records, find_format

TESTS = Path(__file__).parents[2]
FORMATS = ["csv", "tsv", "jsonl", "parquet"]


def write(path: Path, texts, **further) -> Path:
    records = [
        {"text": text, "n": str(n), **{k: v[n - 1] for k, v in further.items()}}
        for n, text in enumerate(texts, start=1)
    ]
    with path.open("wb") as file:
        find_format(path).write(
            file, Records(range(1, len(records) + 1), records, ["text", "n", *further]), {}, header=True
        )
    return path


def rows_of(path: Path):
    return [record for chunk in find_format(path).read(path, rows=1000) for record in chunk.records()]


def errors_of(path: Path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


text = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\x00"), max_size=12)


@pytest.mark.parametrize("reads", FORMATS)
@pytest.mark.parametrize("writes", FORMATS)
@given(
    texts=st.lists(st.one_of(text, st.just("so bad"), st.just("")), min_size=1, max_size=25),
    window=st.integers(1, 7),
)
@settings(max_examples=12, deadline=None)
def test_every_row_is_answered_or_named(tmp_path_factory, reads, writes, texts, window):
    folder = tmp_path_factory.mktemp("files")
    source, output = write(folder / f"in.{reads}", texts), folder / f"out.{writes}"
    summary = predict_file(Echo(), source, output, window_rows=window)
    good = [n for n, text in enumerate(texts, start=1) if text.strip() and "bad" not in text]
    found = rows_of(output)
    assert [(int(row["n"]), row["text"], row["prediction"], int(row["length"])) for row in found] == [
        (n, texts[n - 1], texts[n - 1].upper(), len(texts[n - 1])) for n in good
    ]
    assert (summary.predicted, summary.failed) == (len(good), len(texts) - len(good))
    if summary.failed:
        assert [row["row"] for row in errors_of(summary.errors)] == sorted(set(range(1, len(texts) + 1)) - set(good))
        with pytest.raises(RowsFailedError, match=f"^{summary.failed} of {len(texts)} rows"):
            summary.check()
    else:
        assert summary.errors is None
        summary.check()
    assert sorted(p.name for p in folder.iterdir() if "partial" in p.name) == []


def test_unreadable_and_unusable_rows_stand_in_order(tmp_path):
    source = tmp_path / "in.csv"
    source.write_bytes(b"text,n\na,1\nb\nbad,3\n\xff,4\nc,5\n")
    summary = predict_file(Echo(), source, tmp_path / "out.csv", window_rows=2)
    assert [(row["row"], row["reason"].partition(";")[0]) for row in errors_of(summary.errors)] == [
        (2, "line 3: 1 fields"),
        (3, "the text is bad."),
        (4, "line 5: column 'text' is not UTF-8 at character 0"),
    ]
    assert [row["n"] for row in rows_of(tmp_path / "out.csv")] == ["1", "5"]


def test_windows_and_formats_do_not_change_the_answer(tmp_path):
    source = write(tmp_path / "in.csv", [f"row {n}" for n in range(100)])
    outputs = []
    for window in (1, 7, 100, 1000):
        predict_file(Echo(), source, tmp_path / "out.csv", window_rows=window, overwrite=True)
        outputs.append((tmp_path / "out.csv").read_bytes())
    assert len(set(outputs)) == 1


def test_columns_prefix_and_collisions(tmp_path):
    source = write(tmp_path / "in.csv", ["a", "b"], prediction=["x", "y"])
    with pytest.raises(UsageError, match="already has a column 'prediction'. Set `prefix`"):
        predict_file(Echo(), source, tmp_path / "out.csv")
    predict_file(Echo(), source, tmp_path / "out.csv", prefix="levi_", overwrite=True, heads=True)
    assert list(rows_of(tmp_path / "out.csv")[0]) == [
        "text", "n", "prediction", "levi_prediction", "levi_length", "levi_head_1",
    ]  # fmt: skip
    predict_file(Echo(), source, tmp_path / "two.csv", prefix="levi_", columns={"text": "prediction"})
    assert [row["levi_prediction"] for row in rows_of(tmp_path / "two.csv")] == ["X", "Y"]
    with pytest.raises(TableError, match="no column 'texte'.*Did you mean 'text'"):
        predict_file(Echo(), source, tmp_path / "three.csv", prefix="levi_", columns={"text": "texte"})
    assert not (tmp_path / "three.csv").exists()


def test_strict_stops_and_keeps_what_is_done(tmp_path):
    source = write(tmp_path / "in.csv", ["a", "b", "c", "bad", "e"])
    with pytest.raises(TableError, match="row 4: the text is bad. Stopped there"):
        predict_file(Echo(), source, tmp_path / "out.csv", strict=True, window_rows=2)
    assert not (tmp_path / "out.csv").exists()
    summary = predict_file(Echo(), source, tmp_path / "out.csv", resume=True, window_rows=2)
    assert (summary.resumed, summary.predicted, summary.failed) == (2, 4, 1)


def test_what_is_refused_before_any_work(tmp_path):
    source = write(tmp_path / "in.csv", ["a"])
    (tmp_path / "out.csv").write_text("precious")
    cases = [
        ({}, tmp_path / "out.csv", "exists. Choose another file"),
        ({}, tmp_path / "no" / "out.csv", "There is no folder"),
        ({}, tmp_path / "out.xlsx", "suffix '.xlsx'"),
    ]
    for options, output, says in cases:
        with pytest.raises(UsageError, match=says):
            predict_file(Echo(), source, output, **options)
    with pytest.raises(UsageError, match="There is no file"):
        predict_file(Echo(), tmp_path / "none.csv", tmp_path / "o.csv")
    assert (tmp_path / "out.csv").read_text() == "precious"


def test_an_old_errors_file_is_not_taken_for_this_one(tmp_path):
    source = write(tmp_path / "in.csv", ["a", "bad"])
    predict_file(Echo(), source, tmp_path / "out.csv")
    assert (tmp_path / "out.csv.errors.jsonl").exists()
    write(source, ["a", "b"])
    predict_file(Echo(), source, tmp_path / "out.csv", overwrite=True)
    assert not (tmp_path / "out.csv.errors.jsonl").exists()


def test_jsonl_rows_with_other_keys_become_one_table(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": "a", "x": 1}\n{"text": "b", "y": [1, 2]}\n')
    for suffix in ("csv", "parquet", "jsonl"):
        predict_file(Echo(), source, tmp_path / f"out.{suffix}", window_rows=1)
    assert [list(row.values()) for row in rows_of(tmp_path / "out.csv")] == [
        ["a", "1", "A", "1", ""],
        ["b", "", "B", "1", "[1, 2]"],
    ]
    assert pq.read_table(tmp_path / "out.parquet").to_pylist()[1] == {
        "text": "b", "x": None, "prediction": "B", "length": 1, "y": [1, 2],
    }  # fmt: skip
    assert rows_of(tmp_path / "out.jsonl")[1] == {"text": "b", "y": [1, 2], "prediction": "B", "length": 1}


@pytest.mark.parametrize("suffix", FORMATS)
def test_no_rows_and_one_row(tmp_path, suffix):
    for count in (0, 1):
        source = write(tmp_path / f"in.{suffix}", ["a"] * count)
        summary = predict_file(Echo(), source, tmp_path / f"out.{suffix}", overwrite=True)
        assert (summary.predicted, len(rows_of(tmp_path / f"out.{suffix}"))) == (count, count)


class Broken(Echo):
    """Fails in the third window, in the verb it is told."""

    def __init__(self, verb):
        super().__init__()
        self.left = {"prepare": 3, "run": 3}
        self.verb = verb

    def _count(self, verb):
        self.left[verb] -= 1
        if verb == self.verb and not self.left[verb]:
            raise RuntimeError("broken " + verb)

    def prepare(self, rows, *, bad=None):
        self._count("prepare")
        return super().prepare(rows, bad=bad)

    def run(self, prepared):
        self._count("run")
        return super().run(prepared)


@pytest.mark.parametrize("verb", ["prepare", "run"])
def test_a_failure_reaches_the_caller_and_leaves_no_thread(tmp_path, verb):
    source = write(tmp_path / "in.csv", [f"row {n}" for n in range(50)])
    before = threading.active_count()
    with pytest.raises(RuntimeError, match="broken " + verb):
        predict_file(Broken(verb), source, tmp_path / "out.csv", window_rows=5)
    assert threading.active_count() == before
    with pytest.raises(UsageError, match="unfinished job. Set `resume`"):
        predict_file(Echo(), source, tmp_path / "out.csv", window_rows=5)
    with pytest.raises(UsageError, match="another window_rows: 5, now 6"):
        predict_file(Echo(), source, tmp_path / "out.csv", window_rows=6, resume=True)
    assert predict_file(Echo(), source, tmp_path / "out.csv", window_rows=5, resume=True).resumed == 10
    assert [row["text"] for row in rows_of(tmp_path / "out.csv")] == [f"row {n}" for n in range(50)]


def test_a_changed_input_is_not_resumed(tmp_path):
    source = write(tmp_path / "in.csv", [f"row {n}" for n in range(50)])
    with pytest.raises(RuntimeError):
        predict_file(Broken("run"), source, tmp_path / "out.csv", window_rows=5)
    write(source, [f"line {n}" for n in range(60)])
    with pytest.raises(UsageError, match="another input_size_and_time"):
        predict_file(Echo(), source, tmp_path / "out.csv", window_rows=5, resume=True)


@pytest.mark.parametrize(("reads", "writes"), [("csv", "csv"), ("jsonl", "jsonl"), ("parquet", "parquet")])
def test_kill_then_resume_gives_the_same_bytes(tmp_path, reads, writes):
    texts = [f"row {n}" if n % 11 else "bad" for n in range(400)]
    source = write(tmp_path / f"in.{reads}", texts)
    predict_file(Echo(), source, tmp_path / f"whole.{writes}", window_rows=10)
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); from fakes import Echo; from pathlib import Path\n"
        "from levi_serving.files.predict import predict_file\n"
        "predict_file(Echo(run_s=0.05), Path(sys.argv[2]), Path(sys.argv[3]), window_rows=10)\n"
    )
    output = tmp_path / f"out.{writes}"
    process = subprocess.Popen([sys.executable, "-c", script, str(TESTS), source, output])
    partial = tmp_path / f"out.{writes}.partial"
    deadline = time.monotonic() + 60
    while len(list(partial.glob("*.part"))) < 3:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not output.exists()
    summary = predict_file(Echo(), source, output, window_rows=10, resume=True)
    assert 0 < summary.resumed < 400
    assert output.read_bytes() == (tmp_path / f"whole.{writes}").read_bytes()
    assert (tmp_path / f"out.{writes}.errors.jsonl").read_bytes() == (
        tmp_path / f"whole.{writes}.errors.jsonl"
    ).read_bytes()
    assert not partial.exists()


def test_streams(tmp_path):
    source, sink, bad = io.BytesIO(b'{"text": "a"}\n{"text": "bad"}\n{"text": "b"}\n'), io.BytesIO(), io.BytesIO()
    summary = predict_file(Echo(), source, sink, errors=bad, window_rows=1)
    assert [json.loads(line)["prediction"] for line in sink.getvalue().splitlines()] == ["A", "B"]
    assert json.loads(bad.getvalue())["row"] == 2
    assert (summary.predicted, summary.failed, summary.output, summary.errors) == (2, 1, None, None)
    with pytest.raises(RowsFailedError, match="^1 of 3 rows could not be used"):
        summary.check()
    with pytest.raises(UsageError, match="cannot be read twice"):
        predict_file(Echo(), source, tmp_path / "out.csv", resume=True)


def test_the_failed_rows_of_a_stream_may_go_to_a_file(tmp_path):
    source, bad = io.BytesIO(b'{"text": "a"}\n{"text": "bad"}\n'), tmp_path / "bad.jsonl"
    assert predict_file(Echo(), source, io.BytesIO(), errors=bad).errors == bad
    assert [row["row"] for row in errors_of(bad)] == [2]


def test_where_failed_rows_go_is_settled_before_any_work(tmp_path):
    rows = b'{"text": "a"}\n'
    source = io.BytesIO(rows)
    with pytest.raises(UsageError, match="The output is a stream, so `errors` must name"):
        predict_file(Echo(), source, io.BytesIO())
    with pytest.raises(UsageError, match="The output is a file, so `errors` must be a file too"):
        predict_file(Echo(), source, tmp_path / "out.csv", errors=io.BytesIO())
    assert source.read() == rows
    assert not list(tmp_path.iterdir())


def test_standard_streams_through_a_pipe(tmp_path):
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); from fakes import Echo\n"
        "from levi_serving.files.predict import predict_file\n"
        "predict_file(Echo(), sys.stdin.buffer, sys.stdout.buffer, errors=sys.stderr.buffer, window_rows=1)\n"
    )
    rows = b'{"text": "a"}\n{"text": "bad"}\n{"text": "b"}\n'
    done = subprocess.run([sys.executable, "-c", script, str(TESTS)], input=rows, capture_output=True, check=True)
    assert [json.loads(line)["prediction"] for line in done.stdout.splitlines()] == ["A", "B"]
    assert json.loads(done.stderr)["row"] == 2


def test_a_csv_stream_has_one_header():
    source, sink, options = io.BytesIO(b"text\na\nb\nc\n"), io.BytesIO(), {"errors": io.BytesIO(), "window_rows": 1}
    predict_file(Echo(), source, sink, input_format="csv", output_format="csv", **options)
    assert list(csv.reader(io.StringIO(sink.getvalue().decode()))) == [
        ["text", "prediction", "length"], ["a", "A", "1"], ["b", "B", "1"], ["c", "C", "1"],
    ]  # fmt: skip


def test_preparing_running_and_writing_overlap(tmp_path):
    """Each has a thread, and windows are prepared and run ahead of the one that is written."""
    source = write(tmp_path / "in.csv", [f"row {n}" for n in range(100)])
    trace: list[tuple[str, str]] = []

    class Traced(Echo):
        def prepare(self, rows, *, bad=None):
            trace.append(("prepare", threading.current_thread().name))
            return super().prepare(rows, bad=bad)

        def run(self, prepared):
            trace.append(("run", threading.current_thread().name))
            return super().run(prepared)

        def finish(self, outputs):
            trace.append(("finish", threading.current_thread().name))
            time.sleep(0.05)
            return super().finish(outputs)

    predict_file(Traced(run_s=0.04, prepare_s=0.01), source, tmp_path / "out.csv", window_rows=10)
    threads = {verb: {name for found, name in trace if found == verb} for verb, _ in trace}
    assert threads == {"prepare": {"levi-reading"}, "run": {"levi-running"}, "finish": {"MainThread"}}
    order = [verb for verb, _ in trace]
    third = {verb: [n for n, found in enumerate(order) if found == verb][2] for verb in threads}
    assert third["prepare"] < third["run"] < third["finish"]
    assert third["run"] < [n for n, verb in enumerate(order) if verb == "finish"][1], "it runs while another is written"


def test_memory_does_not_grow_with_the_file(tmp_path):
    """Peak memory of 2 k and of 60 k rows, each in a process of its own."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); from fakes import Echo; from pathlib import Path\n"
        "from levi_serving.environment import peak_memory; from levi_serving.files.predict import predict_file\n"
        "predict_file(Echo(), Path(sys.argv[2]), Path(sys.argv[3]), window_rows=500)\n"
        "print(peak_memory())\n"
    )
    peaks = []
    for count in (2_000, 60_000):
        source = write(tmp_path / f"{count}.csv", ["some words of a review " * 10] * count)
        assert source.stat().st_size > count * 200
        command = [sys.executable, "-c", script, str(TESTS), source, tmp_path / f"{count}.out.csv"]
        peaks.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    assert peaks[1] < 1.1 * peaks[0], peaks
