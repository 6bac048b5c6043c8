"""Every benchmark script still imports, and every one with options prints its help."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = sorted(str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*.py"))


@pytest.fixture
def load(monkeypatch):
    """Imports a script as Python does that runs it: its own folder is first on the path."""
    before = set(sys.modules)

    def load(script):
        path = FOLDER / script
        monkeypatch.syspath_prepend(path.parent)
        spec = importlib.util.spec_from_file_location(f"benchmark_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)  # where its dataclasses look for it
        spec.loader.exec_module(module)
        return module

    yield load
    for name in set(sys.modules) - before:
        if FOLDER in Path(getattr(sys.modules[name], "__file__", None) or "").parents:
            del sys.modules[name]  # a sibling, under a name as short as "graph"


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_imports_and_prints_its_help(load, script, monkeypatch, capsys):
    module = load(script)
    if not hasattr(module, "argparse"):
        return  # imported by other scripts
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as stopped:
        module.main()
    assert not stopped.value.code
    assert module.__doc__.splitlines()[0] in capsys.readouterr().out
