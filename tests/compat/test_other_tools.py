"""A bundle in optimum-onnx and ``transformers.pipeline``: opened there, it answers as the runner does.

optimum-onnx wants an older transformers, so it has an environment of its own, which ``make test-compat`` sets up.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from families import write
from PIL import Image

from levi_deploy.config import Config
from levi_deploy.training import train
from levi_export import export
from levi_serving import Runner
from levi_serving.bundle import Bundle

PROGRAM = Path(__file__).parent / "answer.py"
PYTHON = Path(os.environ.get("LEVI_COMPAT_PYTHON", Path(__file__).parents[2] / ".venv-compat" / "bin" / "python"))
pytestmark = pytest.mark.skipif(not PYTHON.is_file(), reason=f"{PYTHON} is not there: 'make test-compat' sets it up")

MODELS = {  # by name: family, model, data
    "bert": ("bert", {}, {}),
    "bert, pairs": ("bert", {"pooling": "mean"}, {"text_pair": "topics"}),
    "t5, multilabel": ("t5", {"branches": ()}, {"target": "topics", "task": "multilabel"}),
    "llama, padded on the left": ("llama", {"pooling": "last", "branches": ("gru",)}, {}),
    "vit": ("vit", {"image_size": 96}, {"image": "image"}),  # made for 32
    "mobilenet_v2": ("mobilenet_v2", {"image_size": 48}, {"image": "image"}),  # resized by the shorter side, cropped
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder a class, of images of many sizes."""
    root, draw = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for n in range(80):
        pixels = draw.integers(0, 256, (*draw.integers(20, 90, 2), 3)) // (1 + n % 2)
        path = root / ("bright", "dark")[n % 2] / f"{n}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    return root


@pytest.fixture(scope="module", params=MODELS)
def made(request, table, photos, tmp_path_factory):
    """A bundle, its rows for the runner, and for the other tool."""
    family, model, data = MODELS[request.param]
    folder = tmp_path_factory.mktemp("compat")
    image = "image" in data
    side = "left" if "left" in request.param else "right"
    backbone = write(family, folder / "backbone", tokenizer=not image, padding_side=side)
    config = Config.read(
        None,
        model={"backbone": str(backbone), "taps": 2, "queries": 2, "branch_width": 8, "max_length": 32, **model},
        training={"epochs": 6 if image else 1, "learning_rate": 0.005 if image else 0.01, "batch_size": 16},
        data=data,
    )
    source = photos if image else table
    bundle = export(train(source, folder / "run", config, cache=folder / "cache").folder, folder / "bundle").folder
    if image:
        rows = sorted(map(str, photos.rglob("*.png")))[:9]
        return bundle, rows, rows
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))[:9]
    rows[3]["text"] = "a kettle, very good " * 30  # longer than the model reads
    rows[4]["text"] = "lamp"
    return bundle, rows, [[row["text"], row["topics"]] if "text_pair" in data else row["text"] for row in rows]


def answers(bundle, rows):
    kind = "image" if (bundle / "preprocessor_config.json").exists() else "text"
    done = subprocess.run(
        [PYTHON, PROGRAM, bundle, kind],
        input=json.dumps(rows),
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], "HOME": str(bundle.parent), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def far(bundle, rows, asked):
    """The largest difference of a probability between the runner and the other tool, alone and in batches."""
    runner = Runner(bundle)
    expected = runner.predict(rows).probabilities
    found = answers(bundle, asked)
    return {way: np.abs([[row[x] for x in runner.task.labels] for row in found[way]] - expected).max() for way in found}


def test_it_answers_as_the_runner(made):
    bundle, rows, asked = made
    assert {"config.json"} < {*Bundle.open(bundle).manifest.files} & {
        "config.json",
        "tokenizer_config.json",
        "preprocessor_config.json",
    }, "the digests cover them"
    differences = far(bundle, rows, asked)
    assert set(differences) == {"alone", "together"}
    assert max(differences.values()) < 1e-5


def test_a_wrong_file_would_be_seen(made, tmp_path):
    """The check is worth something: other labels, another normalisation or padding side give other answers."""
    bundle, rows, asked = made
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    name = "preprocessor_config.json" if (copy / "preprocessor_config.json").exists() else "config.json"
    document = json.loads((copy / name).read_text())
    if name == "config.json":
        document["id2label"] = dict(zip(document["id2label"], reversed(document["id2label"].values()), strict=True))
    else:
        document["image_mean"] = [0.1, 0.1, 0.1]
    (copy / name).write_text(json.dumps(document))
    expected = Runner(bundle).predict(rows).probabilities
    found = answers(copy, asked)["alone"]
    assert np.abs([[row[x] for x in Runner(bundle).task.labels] for row in found] - expected).max() > 1e-4, (
        "ten times what is allowed"
    )
