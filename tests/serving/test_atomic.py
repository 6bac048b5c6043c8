"""A file is whole or not there, whatever stops its writing."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from levi_serving import atomic


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.json"


@pytest.mark.parametrize(("content", "expected"), [("naïve\n", "naïve\n".encode()), (b"\x00\xff", b"\x00\xff")])
def test_what_is_written_is_there_and_nothing_else(path, content, expected):
    for _ in range(2):  # new, and in place of what was there
        atomic.write(path, content)
        assert path.read_bytes() == expected
        assert list(path.parent.iterdir()) == [path]


def half(path, error):
    with atomic.replacing(path) as file:
        file.write(b"half")
        raise error


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt])
def test_a_block_that_raises_leaves_no_file(path, error):
    with pytest.raises(error):
        half(path, error)
    assert list(path.parent.iterdir()) == []


def test_a_block_that_raises_replaces_nothing(path):
    path.write_bytes(b"before")
    with pytest.raises(RuntimeError):
        half(path, RuntimeError)
    assert path.read_bytes() == b"before"
    assert list(path.parent.iterdir()) == [path]


def test_a_disk_that_does_not_keep_it_replaces_nothing(path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    path.write_bytes(b"before")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        atomic.write(path, b"after")
    assert path.read_bytes() == b"before"
    assert list(path.parent.iterdir()) == [path]


def test_until_the_block_ends_the_old_file_is_there(path):
    path.write_bytes(b"before")
    with atomic.replacing(path) as file:
        file.write(b"after")
        file.flush()
        assert path.read_bytes() == b"before"
    assert path.read_bytes() == b"after"


def test_a_kill_replaces_nothing_and_the_next_write_does(path):
    script = (
        "import os, signal, sys; from pathlib import Path; from levi_serving.atomic import replacing\n"
        "with replacing(Path(sys.argv[1])) as file:\n"
        "    file.write(b'half'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path.write_bytes(b"before")
    assert subprocess.run([sys.executable, "-c", script, path]).returncode == -9
    assert path.read_bytes() == b"before"
    atomic.write(path, b"after")
    assert path.read_bytes() == b"after"
    assert list(path.parent.iterdir()) == [path]
