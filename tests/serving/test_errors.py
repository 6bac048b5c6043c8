"""Every error crosses from one process to another as it is."""

from __future__ import annotations

import pickle

import pytest

from levi_serving import errors


@pytest.mark.parametrize(
    "error",
    [
        errors.UsageError("`taps` is 0; expected a number from 1."),
        errors.RowError(3, "no text"),
        errors.MissingExtraError("matplotlib", "plot", "Drawing"),
        errors.RowsFailedError("Two rows failed.", failed=2, done=5),
    ],
)
def test_it_pickles(error):
    again = pickle.loads(pickle.dumps(error))  # noqa: S301  # our own
    assert type(again) is type(error)
    assert (str(again), again.__dict__, again.exit_code) == (str(error), error.__dict__, error.exit_code)
