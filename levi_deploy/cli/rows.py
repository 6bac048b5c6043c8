"""The rows that a bundle is measured with: a file's, or the golden ones that it carries."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from levi_serving import Runner

__all__ = ["UsableRows", "usable_rows"]


@dataclass(frozen=True, kw_only=True)
class UsableRows:
    """Rows to measure with.

    Attributes:
        rows: mappings from the model's column to its cell, one or more.
        skipped: of a file with rows that cannot be used: their number (``rows``), the number of all (``of``),
            and why the first of them cannot (``first``); else empty.
    """

    rows: list[dict[str, Any]]
    skipped: dict[str, object] = field(default_factory=dict)


def usable_rows(runner: Runner, data: Path | None, *, text: str | None) -> UsableRows:
    """Read and validate the rows to measure a bundle with.

    Args:
        runner: the bundle.
        data: a table or a folder of images; the bundle's golden rows when None.
        text: the table's column with the text; the model's own name for it when None.

    Raises:
        UsageError: there is no such file, or no row of it can be used.
        TableError: the table cannot be read, or lacks a column.
    """
    from levi_deploy.cli.options import renamed
    from levi_serving.bundle import GOLDEN
    from levi_serving.errors import UsageError
    from levi_serving.parity import Golden
    from levi_serving.tables import located, read_columns

    settings = runner.preprocessor.settings
    if data is None:
        golden: Any = Golden.load(runner.bundle.folder / GOLDEN, settings).rows
        return UsableRows(rows=[dict(row) for row in golden])
    columns = renamed(settings, text=text)
    values = read_columns(data, list(columns.values())).values
    cells = {
        own: located(values[name], data) if own in settings.files else values[name] for own, name in columns.items()
    }
    rows = [dict(zip(cells, row, strict=True)) for row in zip(*cells.values(), strict=True)]
    bad: dict[int, str] = {}
    runner.prepare(rows, bad=bad)
    if len(bad) == len(rows):
        raise UsageError(f"{data} has no row that can be used. " + (f"The first: {bad[0]}" if bad else "It is empty."))
    if not bad:
        return UsableRows(rows=rows)
    return UsableRows(
        rows=[row for n, row in enumerate(rows) if n not in bad],
        skipped={"rows": len(bad), "of": len(rows), "first": next(iter(bad.values()))},
    )
