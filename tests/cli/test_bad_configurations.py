"""Bad configurations of ``levi train``: one or two sentences with what was found, before any work is done."""

from __future__ import annotations

import csv
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from families import write
from typer.testing import CliRunner

from levi_deploy.cli import app, explain

pytestmark = pytest.mark.slow

HEADER = ["text", "label", "score", "topics", "price", "split"]


def rows():
    splits = ["train"] * 8 + ["id_val"] * 4
    return [
        {"text": f"lamp {n}", "label": "xy"[n % 2], "score": f"{n}.5", "topics": "a|b", "price": str(n), "split": split}
        for n, split in enumerate(splits)
    ]


def table(folder, edits):
    """The rows with some cells changed: column, a row or all rows, value. A value of another type needs Parquet."""
    changed = rows()
    for column, place, value in edits:
        for row in changed if place == "all" else [changed[place]]:
            row[column] = value
    if all(isinstance(value, str) for row in changed for value in row.values()):
        with (folder / "t.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, HEADER)
            writer.writeheader()
            writer.writerows(changed)
        return folder / "t.csv"
    typed = {name: [row[name] for row in changed] for name in HEADER}
    if any(isinstance(value, float) for value in typed["score"]):
        typed["score"] = [float(value) for value in typed["score"]]
    pq.write_table(pa.table(typed), folder / "t.parquet")
    return folder / "t.parquet"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A backbone of convolutions alone, that reads images."""
    return write("mobilenet_v2", tmp_path_factory.mktemp("families") / "mobilenet")


@pytest.mark.parametrize(
    ("options", "edits", "code", "says"),
    [
        ("--taps 2,9", [], 2, "Tap 9 is out of range: .* has 4 layers, so taps go from 0 .* to 4"),
        ("--taps 7", [], 2, "^Error: --taps is a number of 7 depths, but .* has 4 layers"),
        ("--taps 3,1", [], 2, r"^Error: --taps are \[3, 1\]; expected different depths"),
        ("--taps none --branch none", [], 2, r"no taps and no branch.*\. Give --taps or --branch\.$"),
        ("--branch tabular", [], 2, "'tabular' does not fit: it reads what --numeric or --categorical names"),
        ("--branch graph", [], 2, "'graph' does not fit: it reads what --nodes names"),
        ("--branch no.such:Branch", [], 2, "'no.such:Branch' cannot be imported: No module named 'no'"),
        ("--image topics", [], 2, "reads texts, but no such column was named. Give --text"),
        ("--text topics", [("topics", "all", b"\x89PNG")], 1, r"row 1: column 'topics' holds b'.x89PNG' \(bytes\)"),
        ("--backbone {images}", [], 2, "--text names the column 'text', but the backbone 'mobilenet' reads images"),
        ("", [("label", 9, "z")], 1, "'label' holds 'z', which no training row has; known are x, y"),
        ("", [("label", "all", "x")], 2, "has only the value 'x'; classification needs at least two classes"),
        ("--target topics --task multilabel", [("topics", "all", "")], 2, "'topics' .* has no label at all"),
        ("--target score", [("score", 3, "nan")], 1, "'score' holds 'nan' among numbers"),
        ("--target score", [("score", 10, "NaN")], 1, "'score' holds 'NaN' among numbers"),
        ("--target score", [("score", 3, "inf")], 1, "'score' holds 'inf' among numbers"),
        ("--target score", [("score", 3, float("nan"))], 1, "first row 4: column 'score' holds nan"),
        ("--target score --task regression", [("score", 3, "many")], 1, "'score' holds 'many'; regression needs"),
        ("--target score", [("score", 3, "")], 1, "first row 4: column 'score' is empty"),
        ("--set training.head_weights=[1,2,3]", [], 2, r"head_weights has 3 .* there are 2 heads, .* \[1, 3\]"),
        ("--set training.head_weights=[1,two]", [], 2, r"training.head_weights is '\[1,two\]'; expected a list"),
        ("--set training.head_weights=[0,0]", [], 2, r"training.head_weights are \[0.0, 0.0\]; expected"),
        (
            "--target score --set training.class_weights=balanced",
            [],
            2,
            "class_weights is 'balanced', but 'score' holds",
        ),
        ("--lora 2 --fine-tune 1", [], 2, "^Error: --fine-tune is 1 and --lora is 2: the one trains the"),
        ("--lora 2 --taps none", [], 2, "^Error: --lora is 2; expected a rank from 1, with taps"),
        ("--fine-tune 1 --taps none", [], 2, "--fine-tune is given, but .* Give --taps, or leave --fine-tune out"),
        ("--backbone {images} --image text --taps 1 --lora 2", [], 2, "'mobilenet' has no linear .* Leave --lora out"),
        (
            "--set data.validation_split=held_out",
            [],
            2,
            r"'split' .* has no rows with 'held_out'; it has train \(8\), id_val.* Choose with data.validation_split\.",
        ),
        ("--numeric price", [("price", 3, "dear")], 1, "training rows' column 'price' holds 'dear'; a numeric column"),
        ("--numeric price", [("price", 10, "dear")], 1, "column 'price' holds 'dear'; expected a finite number"),
        ("--numeric price", [("price", "all", "")], 1, "column 'price' has no number in any training row"),
        ("--set training.abstain_share=1", [], 2, "training.abstain_share is 1.0; expected from 0 to below 1"),
        ("--max-length 900", [], 2, "^Error: --max-length is 900, but .* takes at most 64 tokens"),
    ],
)
def test_refused(options, edits, code, says, backbone, images, tmp_path):
    data, run, cache = table(tmp_path, edits), tmp_path / "run", tmp_path / "cache"
    given = options.format(images=images).split()
    own = [] if "--backbone" in given else ["--backbone", str(backbone)]
    taps = [] if "--taps" in given else ["--taps", "1,3"]
    arguments = [data, "-o", run, "--cache", cache, "--split-column", "split", "--max-length", 48, *own, *taps, *given]
    done = CliRunner().invoke(app, ["train", *map(str, arguments)])
    assert done.exception is not None
    message, found = explain(done.exception)
    assert re.search(says, message), message
    assert found == code
    sentences = re.findall(r"[^\s.]\.(?=\s|$)", message)
    assert 1 <= len(sentences) <= 2, message
    assert "\n" not in message
    assert not run.exists(), "nothing was begun"
    assert not cache.exists(), "no tap was computed"
