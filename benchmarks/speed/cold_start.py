"""From nothing to the first answer, and the size of the light install: writes docs/cold_start.md.

    python benchmarks/speed/cold_start.py BUNDLE --sentence-transformers-python PATH [--rounds 15] [--no-sizes]

PATH is the Python of an environment made by

    python -m venv st && st/bin/pip install 'sentence-transformers[onnx]' torch

Each round starts fresh processes in turns: this package on BUNDLE (made with MiniLM as backbone), and
sentence-transformers' onnx backend on the same MiniLM, exported once beforehand by its own means and saved. Both run
from before the first import to after the first answer to one text.
Ends with exit code 4 where the bar is missed or a budget is broken.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from statistics import median

from levi_deploy.demo.steps import find_backbone
from levi_serving.bench.stats import ratio
from levi_serving.environment import environment

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "cold_start.md"
BAR = 3.0  # times faster than sentence-transformers
BUDGETS = {"import levi_serving": 0.4, "levi --help": 0.3}  # seconds of a whole process, median
SIZE_BUDGET = 250.0  # MB of the light install
TEXT = "Works well, and it was good value."

OURS = """
import time; started = time.perf_counter()
from levi_serving import Runner
imported = time.perf_counter()
runner = Runner({model!r}, device="cpu")
loaded = time.perf_counter()
runner.predict([{text!r}])
answered = time.perf_counter()
print(imported - started, loaded - imported, answered - loaded)
"""

THEIRS = """
import time; started = time.perf_counter()
from sentence_transformers import SentenceTransformer
imported = time.perf_counter()
model = SentenceTransformer({model!r}, backend="onnx", local_files_only=True,
                            model_kwargs={{"provider": "CPUExecutionProvider"}})
loaded = time.perf_counter()
model.encode([{text!r}])
answered = time.perf_counter()
print(imported - started, loaded - imported, answered - loaded)
"""

# The parts of loading, one after another; a Runner checks the files while it loads them.
PARTS = """
import time; marks = [time.perf_counter()]
from levi_serving.bundle import Bundle
from levi_serving.rows.preprocess import Encoded, Preprocessor
from levi_serving.engine.session import Session, providers
def mark(): marks.append(time.perf_counter())
mark()
bundle = Bundle.read({model!r}); mark()
bundle.check(); mark()
preprocessor = Preprocessor(bundle.folder, bundle.manifest.preprocessing); mark()
providers(); mark()
session = Session(bundle.folder / bundle.graph().file, device="cpu"); mark()
for rows in (1, 2):
    session.run(Encoded.blank(preprocessor.settings, rows=rows).batch(range(rows)))
mark()
print(*(b - a for a, b in zip(marks, marks[1:])))
"""
STEPS = (
    "import", "manifest", "digests of every file", "tokenizer", "import of onnxruntime", "session: graph and weights",
    "warm-up",
)  # fmt: skip

EXPORT = """
from sentence_transformers import SentenceTransformer
SentenceTransformer({source!r}, backend="onnx", local_files_only=True,
                    model_kwargs={{"provider": "CPUExecutionProvider"}}).save_pretrained({target!r})
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--sentence-transformers-python", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--no-sizes", action="store_true", help="do not install anything to see how large it is")
    parser.add_argument("-o", "--output", type=Path, default=PAGE)
    options = parser.parse_args()
    other = options.sentence_transformers_python
    bundle = str(options.bundle.resolve())
    with tempfile.TemporaryDirectory() as temporary:
        model = str(Path(temporary) / "minilm")
        child(other, EXPORT.format(source=find_backbone(), target=model))
        ours, theirs, parts = [], [], []
        processes: dict[str, list[float]] = {name: [] for name in BUDGETS}
        for _ in range(options.rounds + 1):
            processes["import levi_serving"].append(timed([sys.executable, "-c", "import levi_serving"]))
            processes["levi --help"].append(timed([str(Path(sys.executable).with_name("levi")), "--help"]))
            ours.append(child(Path(sys.executable), OURS.format(model=bundle, text=TEXT)))
            theirs.append(child(other, THEIRS.format(model=model, text=TEXT)))
            parts.append(child(Path(sys.executable), PARTS.format(model=bundle)))
    ours, theirs, parts = ours[1:], theirs[1:], parts[1:]  # the first fills the disk cache
    faster = ratio([sum(times) for times in ours], [sum(times) for times in theirs])
    sizes = {} if options.no_sizes else installed()
    kept = [(f"`{name}`, s", spread(times[1:]), BUDGETS[name], median(times[1:])) for name, times in processes.items()]
    if sizes:
        light = sizes["levi-deploy[cpu]"]
        kept.append(("the light install, MB", f"{light:.0f}", SIZE_BUDGET, light))
    text = page(ours, theirs, parts, faster, kept, sizes, versions(other))
    options.output.write_text(text, encoding="utf-8")
    print(text)
    if faster["median"] < BAR or any(found > budget for *_, budget, found in kept):
        sys.exit(4)


def timed(command: Sequence[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def child(python: Path, code: str) -> list[float]:
    """Run code in a fresh process; the numbers that it prints last."""
    settings = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    keep = {} if python != Path(sys.executable) else {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | keep | settings
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, env=environ, cwd=tempfile.gettempdir())
    if done.returncode:
        sys.exit(f"{python} failed:\n{done.stderr}")
    lines = done.stdout.split("\n")
    return [float(word) for word in lines[-2].split()] if len(lines) > 1 else []


def versions(python: Path) -> dict[str, str]:
    names = ["sentence-transformers", "optimum-onnx", "transformers", "torch", "onnxruntime"]
    code = f"import json; from importlib.metadata import version as v; print(json.dumps({{n: v(n) for n in {names}}}))"
    found: dict[str, str] = json.loads(subprocess.check_output([python, "-c", code], text=True))
    return found


def installed() -> dict[str, float]:
    """MB that an environment holds, beside Python itself, for each set of packages."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", temporary, str(ROOT)]
        subprocess.run(build, check=True, capture_output=True)
        wheel = next(folder.glob("*.whl"))
        torch = "torch==" + metadata.version("torch").partition("+")[0]
        wanted = {
            "levi-deploy[cpu]": [f"{wheel}[cpu]"],
            "torch and transformers alone": [torch, "transformers"],
            "sentence-transformers[onnx] and torch": ["sentence-transformers[onnx]", torch],
        }
        sizes = {}
        for number, (name, packages) in enumerate(wanted.items()):
            target = folder / str(number)
            pip = [sys.executable, "-m", "pip", "install", "-q", "--target", str(target), "--no-compile", *packages]
            subprocess.run(pip, check=True, capture_output=True)
            sizes[name] = sum(path.stat().st_size for path in target.rglob("*") if path.is_file()) / 1e6
        return sizes


def page(
    ours: Sequence[Sequence[float]],
    theirs: Sequence[Sequence[float]],
    parts: Sequence[Sequence[float]],
    faster: dict[str, float],
    kept: Sequence[tuple[str, str, float, float]],
    sizes: dict[str, float],
    packages: dict[str, str],
) -> str:
    about = environment()
    lines = [
        "# Cold start",
        "",
        "`python benchmarks/speed/cold_start.py BUNDLE --sentence-transformers-python PATH` wrote this page.",
        "",
        f"{about['cpu']}, {about['usable_cores']} usable cores, {about['memory_gib']} GiB; {about['system']}, Python "
        f"{about['python']}; load {about['load_average']} at the end; nothing pinned.  ",
        f"Ours: {listed(about['versions'])}.  ",
        f"Theirs: {listed(packages)}, its onnx backend, exported beforehand.",
        "",
        f"From before the first import to the first answer to one text, in fresh processes in turns, {len(ours)} "
        "rounds after one that fills the disk cache; seconds, median [fastest, slowest].",
        "",
        "| | import | load | first answer | all |",
        "|---|---|---|---|---|",
    ]
    for name, found in (("levi_serving", ours), ("sentence-transformers, onnx backend", theirs)):
        columns = [*zip(*found, strict=True), [sum(times) for times in found]]
        lines.append(f"| {name} | " + " | ".join(map(spread, columns)) + " |")
    met = "met" if faster["median"] >= BAR else "missed"
    lines += [
        "",
        f"**{faster['median']:.1f} × faster** [{faster['low']:.1f}, {faster['high']:.1f}], median of pairs and its "
        f"95 % interval; the bar of {BAR:g} × is {met}.",
        "",
        "What loading is made of, one part after another. A `Runner` computes the digests beside the rest, on another "
        "core where there is one, and answers nothing before they are right.",
        "",
        "| part | seconds |",
        "|---|---|",
        *(f"| {step} | {spread(times)} |" for step, times in zip(STEPS, zip(*parts, strict=True), strict=True)),
    ]
    lines += ["", "Budgets of what every start pays for.", "", "| | found | at most | |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {found} | {budget:g} | {'kept' if value <= budget else '**broken**'} |"
        for name, found, budget, value in kept
    ]
    if sizes:
        lines += [
            "",
            "What has to be installed beside Python, files as unpacked.",
            "",
            "| packages | MB |",
            "|---|---|",
        ]
        lines += [f"| {name} | {size:.0f} |" for name, size in sizes.items()]
    return "\n".join([*lines, ""])


def listed(versions: object) -> str:
    return ", ".join(f"{name} {version}" for name, version in dict(versions).items())  # type: ignore[call-overload]


def spread(times: Sequence[float]) -> str:
    return f"{median(times):.3f} [{min(times):.3f}, {max(times):.3f}]"


if __name__ == "__main__":
    main()
