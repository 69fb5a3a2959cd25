"""read_file reads the file that it checked, also if the path is replaced meanwhile."""

import os

import pytest

from rules import files
from rules.files import read_file


def swapped(monkeypatch, path, by):
    """Have something else take the name of a file once it has been opened."""
    opened = os.open

    def then(name, *more, **words):
        descriptor = opened(name, *more, **words)
        if os.fspath(name) == os.fspath(path):
            path.unlink()
            by()
        return descriptor

    monkeypatch.setattr(files.os, "open", then)


def test_non_regular_file_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "rules.yaml"
    path.write_text("ours")
    swapped(monkeypatch, path, lambda: path.write_text("theirs"))
    assert read_file(path) == b"ours"


def test_fifo_is_refused_without_waiting(tmp_path, monkeypatch):
    path = tmp_path / "rules.yaml"
    path.write_text("ours")
    swapped(monkeypatch, path, lambda: os.mkfifo(path))
    assert read_file(path) == b"ours"
    with pytest.raises(ValueError, match="not a file"):
        read_file(path)


@pytest.mark.parametrize(
    ("mode", "says"), [(0o600, ""), (0o644, ""), (0o664, "others can write it"), (0o646, "others can write it")]
)
def test_file_writable_by_others_is_not_trusted(tmp_path, mode, says):
    path = tmp_path / "presets.lock"
    path.write_text("x")
    path.chmod(mode)
    if not says:
        assert read_file(path, trusted=True) == b"x"
        return
    assert read_file(path) == b"x"
    with pytest.raises(ValueError, match=says):
        read_file(path, trusted=True)
