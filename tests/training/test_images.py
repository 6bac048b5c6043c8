"""Images end to end: trained on a folder, exported, and answered alike from files, paths and bytes."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from families import write
from PIL import Image

from levi_deploy.cli import app
from levi_deploy.config import Config
from levi_deploy.evaluation import evaluate
from levi_deploy.models import load
from levi_deploy.training import train
from levi_deploy.training.augment import flip_crop
from levi_export import export
from levi_serving import Runner, verify
from levi_serving.errors import UsageError

pytestmark = pytest.mark.slow

COLOURS = {"blue": (30, 40, 200), "red": (210, 40, 30), "green": (20, 180, 50)}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder a class, of noisy images of one colour and many sizes and formats."""
    root, draw = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for n in range(150):
        name = list(COLOURS)[n % 3]
        size = (*draw.integers(20, 60, 2), 3)
        pixels = np.clip(np.asarray(COLOURS[name]) + draw.normal(0, 25, size), 0, 255).astype(np.uint8)
        path = root / name / f"{n}.{('png', 'jpg', 'webp')[n // 3 % 3]}"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    return root


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    backbone = write("vit", folder / "backbone")
    config = Config.read(
        None,
        model={"backbone": str(backbone), "taps": [1, 3], "queries": 2, "branch_width": 16, "image_size": 32},
        training={"epochs": 6, "batch_size": 16, "learning_rate": 0.005},
        data={"image": "image"},
    )
    return train(photos, folder / "run", config, cache=folder / "cache"), folder


@pytest.fixture(scope="module")
def bundle(trained):
    run, folder = trained
    return export(run.folder, folder / "bundle")


def test_it_learns_and_the_bundle_answers_as_the_run(trained, bundle, photos):
    run, _ = trained
    assert run.task.labels == ("blue", "green", "red")
    assert run.record["validation"]["accuracy"] > 0.8
    whole, served = (
        evaluate(load(folder).predictor, photos, target="label")["splits"]["all rows"]["all"]
        for folder in (run.folder, bundle.folder)
    )
    assert served.pop("heads") == pytest.approx(whole.pop("heads"))
    assert served == pytest.approx(whole, abs=1e-4)


def test_the_certificate_goes_from_file_bytes_to_logits(bundle, tmp_path):
    certificate = verify(bundle.folder)["graphs"]["model.onnx"]
    assert {shape["batch"] for shape in certificate["shapes"]} == {1, 2, 7, 32}
    assert certificate["worst_scaled_error"] < 1e-4
    inputs = {tensor.name: tensor.shape for tensor in bundle.manifest.inputs}
    assert inputs == {"pixel_values": ("batch", 3, 32, 32)}
    assert not (bundle.folder / "tokenizer.json").exists()


def levi(*arguments):
    from typer.testing import CliRunner

    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


def test_a_folder_paths_and_bytes_have_the_same_answers(bundle, photos, tmp_path):
    files = sorted(path for path in photos.rglob("*.*") if path.is_file())
    names = [path.relative_to(photos).as_posix() for path in files]
    with (photos / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["photo"], *[[name] for name in names]])
    pq.write_table(pa.table({"image": [path.read_bytes() for path in files]}), tmp_path / "rows.parquet")
    runner = Runner(bundle.folder)
    expected = runner.predict(files).labels.tolist()
    assert runner.predict([path.read_bytes() for path in files]).labels.tolist() == expected
    assert runner.predict([{"image": str(path)} for path in files]).labels.tolist() == expected
    for n, (source, options) in enumerate(
        [(photos, []), (photos / "rows.csv", ["--image", "photo"]), (tmp_path / "rows.parquet", [])]
    ):
        output = tmp_path / f"{n}.jsonl"
        done = levi("predict", bundle.folder, source, "-o", output, *options)
        assert (done.exit_code, done.exception) == (0, None)
        rows = [json.loads(line) for line in output.read_text().split("\n") if line]
        assert [row["prediction"] for row in rows] == expected
    (photos / "rows.csv").unlink()


def test_broken_images_are_rows_that_failed(bundle, tmp_path):
    file = io.BytesIO()
    Image.new("RGB", (20, 20), COLOURS["red"]).save(file, "PNG")
    cells = [file.getvalue(), file.getvalue()[:60], b"", b"text", None, file.getvalue()]
    pq.write_table(pa.table({"id": list(range(6)), "image": cells}), tmp_path / "rows.parquet")
    from levi_serving import predict_file

    summary = predict_file(Runner(bundle.folder), tmp_path / "rows.parquet", tmp_path / "out.jsonl")
    assert (summary.predicted, summary.failed) == (2, 4)
    errors = [json.loads(line) for line in summary.errors.read_text().split("\n") if line]
    assert [row["row"] for row in errors] == [2, 3, 4, 5]
    says = ["cannot be read", "is empty", "no image, or of a format", "is missing"]
    assert all(reason in row["reason"] for reason, row in zip(says, errors, strict=True))


def test_the_branch_alone_sees_what_is_augmented():
    import torch

    torch.manual_seed(0)
    pixels = torch.arange(2 * 3 * 16 * 16, dtype=torch.float32).reshape(2, 3, 16, 16)
    shown = flip_crop(pixels.repeat(20, 1, 1, 1))
    assert shown.shape == (40, 3, 16, 16)
    assert len({row.flatten()[:9].sum().item() for row in shown}) > 10
    assert set(shown[::2].flatten().tolist()) <= set(pixels[0].flatten().tolist()), "only its own pixels"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"text": "label"}, "`text` names the column 'label', but the backbone .* reads images"),
        ({}, "reads images and has no tokenizer. Give `image`, the column with images"),
        ({"text": "text", "image": "label"}, "Leave `text` out"),
    ],
)
def test_a_text_for_an_image_model_is_refused(trained, photos, tmp_path, data, says):
    run, folder = trained
    config = Config.read(None, model={"backbone": run.config.model.backbone}, data={"target": "image", **data})
    (tmp_path / "rows.csv").write_text("text,label,image\n" + "a,b,c\nd,e,f\n" * 10)
    with pytest.raises(UsageError, match=says):
        train(tmp_path / "rows.csv", tmp_path / "run", config, cache=folder / "cache")
    assert not (tmp_path / "run").exists(), "nothing was begun"
