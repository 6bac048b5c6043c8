"""Every error a user can meet, as one tree.

LeviError                 1   something went wrong at run time
├── UsageError            2   an option or a configuration is wrong
├── TableError            1   a file cannot be read or written as a table
├── RowError              1   one row cannot be used
├── BundleError           1   a bundle is damaged, truncated, foreign or newer
├── RunError              1   a training run is damaged, unfinished or does not fit its backbone
├── MissingExtraError     1   an optional dependency is not installed
├── ParityError           3   the graph does not answer as the model does
├── BenchmarkError        4   a measurement is invalid or unstable
├── ProviderError         5   the requested execution provider is not there
└── RowsFailedError       6   the work is finished, but some rows could not be used

The number is the exit code of the ``levi`` command. Each message says what was found and where,
what was expected, and what to do next.

A message names an argument as the function that takes it does, in backticks: "`taps` is 0; expected …". A host
whose users write something else (an option, the field of a request) puts its own names there: ``LeviError.named``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

__all__ = [
    "BenchmarkError",
    "BundleError",
    "DivergenceError",
    "LeviError",
    "MissingExtraError",
    "ParityError",
    "ProviderError",
    "RowError",
    "RowsFailedError",
    "RunError",
    "TableError",
    "UsageError",
]


class LeviError(Exception):
    """The root: anything levi-deploy refuses or fails to do."""

    exit_code = 1

    def __reduce__(self) -> tuple[Any, ...]:
        """It pickles, so that it crosses from one process to another, whatever its constructor takes."""
        return _again, (type(self), self.args), self.__dict__

    def named(self, names: Mapping[str, str]) -> str:
        """The message with a host's own names for the arguments in it.

        Args:
            names: by argument; one that is missing stays as it is, in backticks.

        Example:
            >>> UsageError("`taps` is 0; expected a number from 1.").named({"taps": "--taps"})
            '--taps is 0; expected a number from 1.'
        """
        return re.sub(r"`(\w+)`", lambda found: names.get(found[1], found[0]), str(self))


def _again(kind: type[LeviError], args: tuple[Any, ...]) -> LeviError:
    error = kind.__new__(kind)
    error.args = args
    return error


class UsageError(LeviError):
    """An option or a configuration is wrong; found before any work is done."""

    exit_code = 2


class TableError(LeviError):
    """A file cannot be read or written as a table: damaged, truncated, or without a needed column."""


class RowError(LeviError):
    """One row cannot be used.

    Attributes:
        row: the row's 0-based position among the rows handed over.
        reason: what is wrong with it and what was expected, without the position.
    """

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(f"rows[{row}]: {reason}")
        self.row = row
        self.reason = reason


class BundleError(LeviError):
    """A bundle is damaged, truncated, foreign, or written by a newer version."""


class DivergenceError(LeviError):
    """Training's loss is no longer a number."""


class RunError(LeviError):
    """A training run is damaged or unfinished, or its backbone has changed since."""


class MissingExtraError(LeviError):
    """An optional dependency is missing; the message holds the line that installs it."""

    def __init__(self, module: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {module!r}, which is not installed. "
            f"Install it with: pip install 'levi-deploy[{extra}]'"
        )
        self.module = module
        self.extra = extra


class ParityError(LeviError):
    """The graph's answers differ from the reference's by more than the tolerance."""

    exit_code = 3


class BenchmarkError(LeviError):
    """A measurement broke a rule of validity or did not become stable."""

    exit_code = 4


class ProviderError(LeviError):
    """The requested execution provider is not available or not in use."""

    exit_code = 5


class RowsFailedError(LeviError):
    """The work is finished and written, but some rows could not be used.

    Attributes:
        failed: how many rows failed.
        done: how many rows were predicted.
    """

    exit_code = 6

    def __init__(self, message: str, *, failed: int, done: int) -> None:
        super().__init__(message)
        self.failed = failed
        self.done = done
