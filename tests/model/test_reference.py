"""The torch model as a peer: compiled, it answers the same; without a compiler, it says what to install."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from levi_serving.errors import LeviError

pytestmark = pytest.mark.slow


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler: apt-get install g++")
def test_compiled_it_answers_the_same(run, texts):
    eager, compiled = run.reference(), run.reference()
    compiled.compile()
    for rows in (texts[:2], texts[2:9]):  # one compilation serves both
        expected, found = (one.run(one.prepare(rows)) for one in (eager, compiled))
        np.testing.assert_allclose(found.logits, expected.logits, atol=1e-5)
        np.testing.assert_allclose(found.head_logits, expected.head_logits, atol=1e-5)


def test_without_a_compiler_it_says_what_to_install(run, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(LeviError, match="no 'no-such-compiler'. Install one, as with 'apt-get install g\\+\\+'"):
        run.reference().compile()
