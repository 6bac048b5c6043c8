"""The whole path on real images, command by command: writes docs/pacs.md.

    python benchmarks/ood/pacs.py [--work FOLDER]

Reads ``pacs/images.parquet`` and ``backbones/mobilenet_v2`` from the folder in LEVI_DATA (default ../shared/data).
Trains on photos, reports photos, art paintings and cartoons, and predicts the same rows from Parquet bytes, a folder
of image files, and a CSV of their paths. LEVI beside its parts and its baselines is in docs/branches.md.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import tempfile
from pathlib import Path

from commands import machine, path
from pyarrow import parquet

PAGE = Path(__file__).parents[2] / "docs" / "pacs.md"
ROWS = 200  # of the OOD rows, as files
COMMANDS = [
    "levi train images.parquet --image image --target label_name --split-column split --backbone mobilenet_v2 "
    "--image-size 112 --branch cnn --cache cache -o run",
    "levi evaluate run images.parquet --split id_test --split ood_test --by domain",
    "levi export run -o bundle",
    "levi verify bundle",
    "levi predict bundle images.parquet -o predictions.parquet",
    "levi predict bundle folder -o from_folder.csv",
    "levi predict bundle paths.csv --image path -o from_paths.csv",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="a folder for the run and its taps, kept; a temporary one otherwise")
    options = parser.parse_args()
    data = Path(os.environ.get("LEVI_DATA", "../shared/data"))
    images, backbone = data / "pacs" / "images.parquet", data / "backbones" / "mobilenet_v2"
    for wanted in (images, backbone):
        if not wanted.exists():
            sys.exit(f"There is no {wanted}. Set LEVI_DATA to the folder that holds pacs/ and backbones/.")
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        for name, target in (("images.parquet", images), ("mobilenet_v2", backbone)):
            (work / name).unlink(missing_ok=True)
            (work / name).symlink_to(target.resolve())
        places = write_files(images, work)
        about, blocks = machine(), path(COMMANDS, work)
        PAGE.write_text(page(about, blocks, alike(work, places)), encoding="utf-8")


def write_files(images: Path, work: Path) -> list[int]:
    """Every so many OOD rows as files in ``folder``, named so that they sort, and as paths; their row numbers."""
    table = parquet.read_table(images, columns=["image", "label_name", "split"]).to_pydict()
    ood = [n for n, split in enumerate(table["split"]) if split == "ood_test"]
    places = ood[:: len(ood) // ROWS][:ROWS]
    names = []
    for n in places:
        file = work / "folder" / f"{n:05}.webp"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(table["image"][n])
        names.append(file.relative_to(work).as_posix())
    with (work / "paths.csv").open("w", newline="") as out:
        csv.writer(out).writerows([["path"], *[[name] for name in names]])
    return places


def alike(work: Path, places: list[int]) -> str:
    """How many of the files got the prediction, and the probability, that their bytes got."""

    def read(name: str) -> list[tuple[str, float]]:
        with (work / name).open(newline="") as file:
            return [(row["prediction"], float(row["probability"])) for row in csv.DictReader(file)]

    whole = parquet.read_table(work / "predictions.parquet", columns=["prediction", "probability"]).to_pydict()
    expected = [(whole["prediction"][n], whole["probability"][n]) for n in places]
    said = []
    for name in ("from_folder.csv", "from_paths.csv"):
        found = read(name)
        same = sum(a[0] == b[0] for a, b in zip(found, expected, strict=True))
        far = max(abs(a[1] - b[1]) for a, b in zip(found, expected, strict=True))
        said.append(f"`{name}`: {same} of {len(found)} predictions are those of `predictions.parquet`, and the largest "
                    f"difference of a probability is {far:.1e}.")  # fmt: skip
    return "\n".join(said)


def page(about: str, blocks: str, files: str) -> str:
    return f"""# Real images: photos to art and cartoons, the whole path

Written by `python benchmarks/ood/pacs.py`; nothing here was typed in.

{about}

Data: PACS at 112 pixels (Li et al. 2017), seven classes. Training, ID validation and ID test are photos; the OOD test
has art paintings and cartoons. No terms are stated for the data, so it is not passed on; it is read from the folder in
`LEVI_DATA`. Backbone: MobileNetV2 with ImageNet weights (Apache-2.0), frozen. Everything was chosen on `id_val`; no
OOD row chose anything. [branches.md](branches.md) has LEVI beside its parts and its baselines on these rows.

`images.parquet` has a column with each file's bytes; `folder` holds {ROWS} of the OOD images as files, and `paths.csv`
names them.

{blocks}

{files}
"""


if __name__ == "__main__":
    main()
