"""An HTML page that needs nothing else: the shell of every report, and the pieces they share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["element", "page", "table"]

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --paper: #ffffff; --soft: #5c6675; --line: #d5dae2;
  --panel: #f4f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6eaf0; --paper: #14181f; --soft: #9aa5b5; --line: #343c49; --panel: #1d232c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1500px; padding: 24px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 22px; margin: 0 0 4px; } h2 { font-size: 18px; margin: 40px 0 4px; }
p { margin: 4px 0; color: var(--soft); max-width: 110ch; }
ul { margin: 12px 0; padding-left: 20px; max-width: 110ch; }
svg { display: block; width: 100%; height: auto; margin: 16px 0; }
pre, .table { overflow-x: auto; }
pre { padding: 16px; border-radius: 6px; background: var(--panel); font-size: 12px; line-height: 1.45; }
details { margin: 12px 0; } summary { cursor: pointer; }
table { border-collapse: collapse; margin-top: 8px; font-variant-numeric: tabular-nums; }
td, th { padding: 2px 18px 2px 0; text-align: left; white-space: nowrap; border-bottom: 1px solid var(--line);
  font-weight: normal; }
td + td, th + th { text-align: right; } th { color: var(--soft); }
"""


def page(title: str, body: Iterable[str], *, style: str = "", script: str = "") -> str:
    """The whole page.

    Args:
        title: its title and first heading, as text.
        body: what follows, as HTML.
        style: further CSS. The colours ``--ink``, ``--paper``, ``--soft``, ``--line`` and ``--panel`` are defined,
            for a light and a dark screen.
        script: JavaScript that runs when the page is complete.
    """
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            element("title", title),
            f"<style>{_STYLE}{style}</style>\n</head>\n<body>",
            element("h1", title),
            *body,
            *([f"<script>{script}</script>"] if script else []),
            "</body>\n</html>\n",
        ]
    )


def element(name: str, text: str, **attributes: str) -> str:
    """One HTML element around a text; the text and the attributes' values are escaped.

    Args:
        name: ``p``.
        text: inside of it.
        attributes: by name; ``_`` stands for ``-``.
    """
    given = "".join(f' {key.replace("_", "-")}="{escape(value)}"' for key, value in attributes.items())
    return f"<{name}{given}>{escape(text)}</{name}>"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts: the first column to the left, the others to the right. It scrolls where it is too wide.

    Args:
        header: n names.
        rows: n cells each.
    """
    lines = [("th", header), *(("td", row) for row in rows)]
    cells = ("".join(element(kind, cell) for cell in line) for kind, line in lines)
    return f'<div class="table"><table>{"".join(f"<tr>{line}</tr>" for line in cells)}</table></div>'
