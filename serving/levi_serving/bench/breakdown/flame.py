"""Breakdowns as one HTML page that needs nothing else: a flame view of each, and a table. Measures nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from levi_serving.bench.breakdown.tree import Breakdown, Part
from levi_serving.page import element, page, table

__all__ = ["flame_page"]

_KINDS = ("prepare", "backbone", "branch", "head", "average", "finish")  # each has a colour; the rest is grey

_STYLE = """
:root { --prepare: #c9b8ea; --backbone: #a9c9f2; --branch: #a5dbc4; --head: #f6c48d; --average: #f0b3bd;
  --finish: #c9b8ea; --rest: #dfe3e9; --request: #eceff3; }
@media (prefers-color-scheme: dark) { :root { --prepare: #5b4787; --backbone: #2c5a94; --branch: #22684d;
  --head: #8a5a1c; --average: #87404e; --finish: #5b4787; --rest: #3a4350; --request: #2a313c; } }
.flame { position: relative; margin: 16px 0; border: 1px solid var(--line); border-radius: 6px; overflow: hidden; }
.flame button { position: absolute; height: 25px; margin: 0; padding: 0 6px; border: 0; border-radius: 0;
  border-right: 1px solid var(--paper); color: var(--ink); font: 13px/24px system-ui, sans-serif; text-align: left;
  white-space: nowrap; overflow: hidden; text-overflow: ellipsis; cursor: pointer; }
.flame button.narrow { padding: 0; color: transparent; }
.flame button:hover, .flame button:focus-visible { outline: 2px solid var(--ink); outline-offset: -2px; z-index: 1; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; color: var(--soft); font-size: 13px; }
.legend i { display: inline-block; width: 12px; height: 12px; margin-right: 6px; border-radius: 3px;
  vertical-align: -1px; }
"""

# A click on a box makes it as wide as the view; the boxes around it stay above it.
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


def flame_page(breakdowns: Sequence[Breakdown], about: Mapping[str, object], name: str) -> str:
    """The whole page.

    Args:
        breakdowns: one for each workload and graph.
        about: the machine and software of the measurement, as ``environment`` gives them.
        name: the bundle's.
    """
    versions = about.get("versions")
    software = (
        ", ".join(f"{package} {version}" for package, version in versions.items()) if isinstance(versions, dict) else ""
    )
    machine = f"{about['cpu']}, {about['usable_cores']} usable cores, {about['system']}, Python {about['python']}"
    body = [element("p", machine), element("p", software), *(line for one in breakdowns for line in _section(one))]
    return page(f"{name}: where the time goes", body, style=_STYLE, script=_SCRIPT)


def _section(breakdown: Breakdown) -> Iterator[str]:
    whole = breakdown.request
    yield element("h2", f"{breakdown.name}: {whole.ms:.2f} ms a request")
    yield element(
        "p",
        "Width is time. Within a part, operations are ordered by time, not as they run. Hover for milliseconds and "
        "shares; click a box to widen it, the top one to go back.",
    )
    boxes = list(_boxes(whole, 0.0, 0, "request"))
    height = 26 * (1 + max(depth for _, depth in boxes))
    yield f'<div class="flame" style="height:{height}px">{"".join(box for box, _ in boxes)}</div>'
    kinds = {"prepare": "prepare and finish", **{kind: kind for kind in (*_KINDS[1:-1], "rest")}}
    legend = (f'<span><i style="background:var(--{kind})"></i>{label}</span>' for kind, label in kinds.items())
    yield f'<div class="legend">{"".join(legend)}</div>'
    yield f"<ul>{''.join(element('li', fact) for fact in breakdown.facts())}</ul>"
    rows = _rows(whole, 0, whole.ms)
    yield f"<details><summary>All parts as a table</summary>{table(['part', 'ms', '%'], rows)}</details>"


def _boxes(part: Part, start: float, depth: int, kind: str, whole: float = 0.0) -> Iterator[tuple[str, int]]:
    """A part's box and those below it, with their depth; places and widths are shares of the whole."""
    whole = whole or part.ms
    width = part.ms / whole
    label = part.name.rpartition("/")[2] if part.node else part.name
    box = element(
        "button",
        label,
        type="button",
        title=f"{part.name}: {part.ms:.3f} ms, {100 * width:.2f} % of the request",
        data_from=f"{start:.6f}",
        data_width=f"{width:.6f}",
        style=f"top:{26 * depth}px;left:{100 * start:.4f}%;width:{100 * width:.4f}%;background:var(--{kind})",
    )
    yield box, depth
    for inner in part.parts:
        if inner.ms <= 0:  # a time that is a difference of others may be negative
            continue
        first = inner.name.partition(" ")[0]
        inherited = (
            kind if kind in _KINDS else first if first in _KINDS else "request" if inner.name == "run" else "rest"
        )
        yield from _boxes(inner, start, depth + 1, inherited, whole)
        start += inner.ms / whole


def _rows(part: Part, depth: int, whole: float) -> Iterator[tuple[str, str, str]]:
    yield "\N{EM SPACE}" * depth + part.name, f"{part.ms:.3f}", f"{100 * part.ms / whole:.2f}"
    for inner in part.parts:
        yield from _rows(inner, depth + 1, whole)
