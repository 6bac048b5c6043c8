"""``levi compare`` from the shell."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

pytestmark = pytest.mark.slow


def test_the_command(levi, table, config, cache, tmp_path):
    asked = replace(config, training=replace(config.training, epochs=1))
    (tmp_path / "levi.toml").write_text(asked.to_toml())
    code, out, err = levi(
        "compare", tmp_path / "levi.toml", table, "-o", tmp_path / "report", "--methods", "linear-probe,levi",
        "--seeds", "1", "--cache", cache, "--budget", "1", "--no-cost",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert re.search(r"^accuracy +ood_test$", out, re.MULTILINE)
    assert re.search(r"^levi +0\.\d{4}$", out, re.MULTILINE)
    assert out.endswith(f"The report is {tmp_path / 'report' / 'index.html'}.\n")
