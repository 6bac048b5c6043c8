"""The whole path on real reviews, command by command: writes docs/amazon_reviews.md.

    python benchmarks/ood/amazon_reviews.py [--work FOLDER]

Reads ``amazon_reviews/reviews.parquet`` from the folder in LEVI_DATA (default ../shared/data). Trains on ``train``
(media reviews), chooses on ``id_val``, reports ``id_test`` and ``ood_test`` (goods and film sentences) by domain.
LEVI beside its parts and its baselines is in docs/branches.md.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from commands import machine, path

from levi_deploy.demo.steps import find_backbone

PAGE = Path(__file__).parents[2] / "docs" / "amazon_reviews.md"
COMMANDS = [
    "levi train reviews.parquet --text text --target label --split-column split --backbone minilm --cache cache -o run",
    "levi evaluate run reviews.parquet --split id_test --split ood_test --by domain",
    "levi export run -o bundle",
    "levi verify bundle",
    "levi evaluate bundle reviews.parquet --split id_test --split ood_test --by domain",
    "levi predict bundle reviews.parquet -o predictions.csv",
    "levi bench bundle --batch-size 1,8 --length 32,128 --duration 20 --against torch --run run",
    "levi bench bundle --scenario offline --duration 60",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="a folder for the run and its taps, kept; a temporary one otherwise")
    options = parser.parse_args()
    data = Path(os.environ.get("LEVI_DATA", "../shared/data")) / "amazon_reviews" / "reviews.parquet"
    if not data.is_file():
        sys.exit(f"There is no {data}. Set LEVI_DATA to the folder that holds amazon_reviews/.")
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        for name, target in (("reviews.parquet", data), ("minilm", Path(find_backbone()))):
            (work / name).unlink(missing_ok=True)
            (work / name).symlink_to(target.resolve())
        PAGE.write_text(page(machine(), path(COMMANDS, work)), encoding="utf-8")


def page(about: str, blocks: str) -> str:
    return f"""# Real reviews: media to goods, the whole path

Written by `python benchmarks/ood/amazon_reviews.py`; nothing here was typed in.

{about}

Data: FDU-MTL reviews (Liu et al. 2017, from Blitzer et al. 2007 and Pang & Lee), sentiment, two classes. Training,
ID validation and ID test are books, dvd, magazines, music and video. The OOD test has six kinds of goods and, as `MR`,
one-sentence film reviews. No terms are stated for the data, so it is not passed on; it is read from the folder in
`LEVI_DATA`. Backbone: all-MiniLM-L6-v2 (Apache-2.0), frozen. Everything was chosen on `id_val`; no OOD row chose
anything. [branches.md](branches.md) has LEVI beside its parts and its baselines on these rows.

`reviews.parquet` is any table with a text, a label and a split column; `minilm` is the folder of the backbone, and a
hub id does as well.

{blocks}
"""


if __name__ == "__main__":
    main()
