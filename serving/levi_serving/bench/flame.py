"""Profiles as one HTML page that needs nothing else: a flame view of each, and a table. Knows no measuring."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape

from levi_serving.bench.breakdown import Breakdown, Part

__all__ = ["page"]

_KINDS = ("prepare", "backbone", "branch", "head", "average", "finish")  # each has a colour; the rest is grey

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --paper: #ffffff; --soft: #5c6675; --line: #d5dae2;
  --prepare: #c9b8ea; --backbone: #a9c9f2; --branch: #a5dbc4; --head: #f6c48d; --average: #f0b3bd;
  --finish: #c9b8ea; --rest: #dfe3e9; --query: #eceff3; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --paper: #14181f; --soft: #9aa5b5; --line: #343c49;
  --prepare: #5b4787; --backbone: #2c5a94; --branch: #22684d; --head: #8a5a1c; --average: #87404e;
  --finish: #5b4787; --rest: #3a4350; --query: #2a313c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1500px; padding: 24px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 22px; margin: 0 0 4px; } h2 { font-size: 18px; margin: 40px 0 4px; }
p { margin: 4px 0; color: var(--soft); max-width: 110ch; } p.machine { margin-bottom: 0; }
ul { margin: 12px 0; padding-left: 20px; max-width: 110ch; }
.flame { position: relative; margin: 16px 0; border: 1px solid var(--line); border-radius: 6px; overflow: hidden; }
.flame button { position: absolute; height: 25px; margin: 0; padding: 0 6px; border: 0; border-radius: 0;
  border-right: 1px solid var(--paper); color: var(--ink); font: 13px/24px system-ui, sans-serif; text-align: left;
  white-space: nowrap; overflow: hidden; text-overflow: ellipsis; cursor: pointer; }
.flame button.narrow { padding: 0; color: transparent; }
.flame button:hover, .flame button:focus-visible { outline: 2px solid var(--ink); outline-offset: -2px; z-index: 1; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; color: var(--soft); font-size: 13px; }
.legend i { display: inline-block; width: 12px; height: 12px; margin-right: 6px; border-radius: 3px;
  vertical-align: -1px; }
details { margin: 12px 0; } summary { cursor: pointer; }
table { border-collapse: collapse; margin-top: 8px; font-variant-numeric: tabular-nums; }
td, th { padding: 2px 18px 2px 0; text-align: left; border-bottom: 1px solid var(--line); font-weight: normal; }
td + td, th + th { text-align: right; } th { color: var(--soft); }
"""

# A click on a box makes it as wide as the view; what is around it stays as its frame.
_SCRIPT = """
for (const flame of document.querySelectorAll('.flame')) {
  const boxes = [...flame.children];
  const show = (from, width) => boxes.forEach(box => {
    const left = Math.max(0, (box.dataset.from - from) / width);
    const right = Math.min(1, (+box.dataset.from + +box.dataset.width - from) / width);
    box.hidden = right - left <= 1e-9;
    box.style.left = 100 * left + '%';
    box.style.width = 100 * (right - left) + '%';
    box.classList.toggle('narrow', (right - left) * flame.clientWidth < 34);
  });
  let shown = boxes[0];
  const again = () => show(+shown.dataset.from, +shown.dataset.width);
  flame.addEventListener('click', event => { if (event.target !== flame) { shown = event.target; again(); } });
  window.addEventListener('resize', again);
  again();
}
"""


def page(profiles: Sequence[Breakdown], about: Mapping[str, object], title: str) -> str:
    """The whole page.

    Args:
        profiles: one a workload.
        about: what was measured on, as ``environment`` tells it.
        title: the bundle's name.
    """
    versions = about.get("versions")
    software = (
        ", ".join(f"{name} {version}" for name, version in versions.items()) if isinstance(versions, dict) else ""
    )
    machine = f"{about['cpu']}, {about['usable_cores']} usable cores, {about['system']}, Python {about['python']}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}: where the time goes</title><style>{_STYLE}</style></head><body>\n"
        f"<h1>{escape(title)}: where the time goes</h1>\n<p>{escape(machine)}</p>\n<p>{escape(software)}</p>\n"
        + "\n".join(_section(profile) for profile in profiles)
        + f"\n<script>{_SCRIPT}</script></body></html>\n"
    )


def _section(profile: Breakdown) -> str:
    whole = profile.query
    facts = "".join(f"<li>{escape(fact)}</li>" for fact in profile.facts())
    legend = "".join(f'<span><i style="background:var(--{kind})"></i>{kind}</span>' for kind in (*_KINDS[:-1], "rest"))
    legend = legend.replace(">prepare<", ">prepare and finish<")
    boxes = list(_boxes(whole, 0.0, 0, "query"))
    height = 26 * (1 + max(depth for _, depth in boxes))
    rows = "".join(_rows(whole, 0, whole.ms))
    return (
        f"<h2>{escape(profile.name)}: {whole.ms:.2f} ms a query</h2>\n"
        "<p>Width is time. Inside of a part its operations stand by time, not in order. Hover for milliseconds and "
        "shares; click a box to widen it, the top one to go back.</p>\n"
        f'<div class="flame" style="height:{height}px">{"".join(box for box, _ in boxes)}</div>\n'
        f'<div class="legend">{legend}</div>\n<ul>{facts}</ul>\n'
        "<details><summary>All parts as a table</summary><table><tr><th>part</th><th>ms</th><th>%</th></tr>"
        f"{rows}</table></details>"
    )


def _boxes(part: Part, start: float, depth: int, kind: str, whole: float = 0.0) -> Iterator[tuple[str, int]]:
    """A part's box and those below it, with their depth; places and widths are shares of the whole."""
    whole = whole or part.ms
    width = part.ms / whole
    label = part.name.rpartition("/")[2] if part.node else part.name
    hover = f"{part.name}: {part.ms:.3f} ms, {100 * width:.2f} % of the query"
    yield (
        f'<button type="button" title="{escape(hover)}" data-from="{start:.6f}" data-width="{width:.6f}" '
        f'style="top:{26 * depth}px;left:{100 * start:.4f}%;width:{100 * width:.4f}%;background:var(--{kind})">'
        f"{escape(label)}</button>",
        depth,
    )
    for inner in part.parts:
        if inner.ms <= 0:  # a time that is a difference may come out below nothing
            continue
        first = inner.name.partition(" ")[0]
        inherited = kind if kind in _KINDS else first if first in _KINDS else "query" if inner.name == "run" else "rest"
        yield from _boxes(inner, start, depth + 1, inherited, whole)
        start += inner.ms / whole


def _rows(part: Part, depth: int, whole: float) -> Iterator[str]:
    yield (
        f'<tr><td style="padding-left:{18 * depth}px">{escape(part.name)}</td><td>{part.ms:.3f}</td>'
        f"<td>{100 * part.ms / whole:.2f}</td></tr>"
    )
    for inner in part.parts:
        yield from _rows(inner, depth + 1, whole)
