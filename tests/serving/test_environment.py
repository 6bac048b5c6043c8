"""What a machine is: cores as the container grants them, and nothing that fails where a system says less."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from levi_serving.engine.gpu import GpuSettings
from levi_serving.engine.tuning import Tuning
from levi_serving.environment import cache_folder, environment, machine, peak_memory, usable_cores


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "200000 100000"}, 2),
        ({"cpu.max": "250000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ({"cpu.max": "1600000 100000"}, 8),
        ({"cpu.max": "broken"}, 8),
    ],
)
def test_usable_cores(tmp_path, monkeypatch, files, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert usable_cores(tmp_path) == cores


@pytest.fixture
def bare(monkeypatch):
    """A system without /proc and /sys, and without what only some builds of Python have."""
    read = Path.read_text

    def read_text(path, *arguments, **options):
        if path.is_relative_to("/proc") or path.is_relative_to("/sys"):
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return read(path, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", read_text)
    for name in ("sysconf", "getloadavg", "sched_getaffinity"):
        monkeypatch.delattr(os, name)
    monkeypatch.setitem(sys.modules, "resource", None)


def test_a_system_that_says_nothing(bare, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    found = environment()
    assert found["cpu"]
    assert (found["usable_cores"], found["architecture"]) == (6, platform.machine())
    assert {name: found[name] for name in ("memory_gib", "instruction_sets", "governor", "load_average")} == {
        "memory_gib": None, "instruction_sets": [], "governor": None, "load_average": None,
    }  # fmt: skip
    assert found["allocator"]
    assert found["versions"]["numpy"]
    assert peak_memory() is None
    assert machine().items() <= found.items()
    json.dumps(found, allow_nan=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores() == 1


@pytest.mark.parametrize(("system", "expected"), [("Linux", 3 * 1024), ("Darwin", 3)])
def test_peak_memory_where_only_getrusage_says_it(bare, monkeypatch, system, expected):
    """Its unit is KiB, but bytes on macOS."""
    from types import SimpleNamespace

    usage = SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda _: SimpleNamespace(ru_maxrss=3))
    monkeypatch.setitem(sys.modules, "resource", usage)
    monkeypatch.setattr(platform, "system", lambda: system)
    assert peak_memory() == expected


def test_nothing_needs_the_missing_at_import():
    script = (
        "import os, sys; sys.modules['resource'] = None\n"
        "for name in ('sysconf', 'getloadavg', 'sched_getaffinity'): delattr(os, name)\n"
        "import levi_serving, levi_serving.bench, levi_deploy.cli.doctor\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_this_system_says_what_it_can():
    found = environment()
    assert found["memory_gib"] > 0
    assert found["load_average"] >= 0
    assert peak_memory() > 10_000_000


@pytest.mark.parametrize(
    ("system", "variables", "expected"),
    [
        ("Linux", {}, "home/.cache/levi-deploy"),
        ("Linux", {"XDG_CACHE_HOME": "xdg"}, "xdg/levi-deploy"),
        ("Linux", {"LOCALAPPDATA": "local"}, "home/.cache/levi-deploy"),
        ("Darwin", {}, "home/Library/Caches/levi-deploy"),
        ("Darwin", {"XDG_CACHE_HOME": "xdg"}, "xdg/levi-deploy"),
        ("Windows", {}, "home/AppData/Local/levi-deploy"),
        ("Windows", {"LOCALAPPDATA": "local", "XDG_CACHE_HOME": "xdg"}, "local/levi-deploy"),
        *((system, {"LEVI_CACHE": "own", "XDG_CACHE_HOME": "xdg"}, "own") for system in ("Linux", "Darwin", "Windows")),
    ],
)
def test_the_cache_is_where_a_system_has_it(tmp_path, monkeypatch, system, variables, expected):
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    for name in ("LEVI_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, folder in variables.items():
        monkeypatch.setenv(name, str(tmp_path / folder))
    assert cache_folder() == tmp_path / expected


def test_all_that_is_cached_is_in_one_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LEVI_CACHE", str(tmp_path))
    assert GpuSettings().engines == tmp_path / "tensorrt"
    assert Tuning.read("0" * 64).file == tmp_path / "tuning" / ("0" * 32 + ".json")
