"""The cache of encoded bytes: fast when it is safe, made again whenever anything about it is off."""

import os
import stat
import subprocess
import sys

import pytest

from enforcer.network import install
from enforcer.network.install import cached
from tests.support import harness


@pytest.fixture
def made(tmp_path, encoded):
    """A directory with a good cache file in it."""
    assert cached(tmp_path) == encoded
    (path,) = tmp_path.iterdir()
    return path


@pytest.fixture
def encodings(monkeypatch, encoded):
    """Count how often the bytes are made anew."""
    calls = []

    def encode(plan):
        calls.append(plan)
        return encoded

    monkeypatch.setattr("enforcer.network.encode.encode", encode)
    return calls


def test_cached_batches_equal_the_encoded_ones(made, encoded, encodings):
    assert cached(made.parent) == encoded
    assert encodings == []


def test_cache_file_is_private(made):
    status = made.stat()
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert status.st_uid == os.geteuid()


def test_only_one_cache_file_is_kept(made):
    assert list(made.parent.iterdir()) == [made]


@pytest.mark.parametrize("at", [0, 31, 32, 33, 100, -1])
def test_changed_byte_is_noticed(made, encoded, encodings, at):
    content = bytearray(made.read_bytes())
    content[at] ^= 1
    made.write_bytes(content)
    assert cached(made.parent) == encoded
    assert len(encodings) == 1
    assert cached(made.parent) == encoded
    assert len(encodings) == 1


@pytest.mark.parametrize("length", [0, 1, 31, 32, 36, 1000])
def test_truncated_file_is_noticed(made, encoded, encodings, length):
    made.write_bytes(made.read_bytes()[:length])
    assert cached(made.parent) == encoded
    assert len(encodings) == 1


def test_file_with_too_few_batches_is_not_used(made, encoded, encodings):
    made.write_bytes(install._pack(encoded[:-1]))
    assert cached(made.parent) == encoded
    assert len(encodings) == 1


@pytest.mark.parametrize("mode", [0o601, 0o640, 0o660, 0o666, 0o604])
def test_file_writable_by_others_is_not_used(made, encodings, mode):
    made.chmod(mode)
    cached(made.parent)
    assert len(encodings) == 1
    assert stat.S_IMODE(made.stat().st_mode) == 0o600


def test_file_of_another_owner_is_not_used(made, encodings):
    harness.give_away(made)
    cached(made.parent)
    assert len(encodings) == 1
    assert made.stat().st_uid == os.geteuid()


def test_symlink_is_not_followed(made, tmp_path_factory, encodings):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "file"
    made.rename(elsewhere)
    made.symlink_to(elsewhere)
    cached(made.parent)
    assert len(encodings) == 1
    assert not made.is_symlink()


def test_fifo_does_not_block(made, encodings):
    made.unlink()
    os.mkfifo(made, 0o600)
    cached(made.parent)
    assert len(encodings) == 1


def test_oversized_file_is_not_read(made, encodings):
    made.write_bytes(bytes((1 << 20) + 1))
    cached(made.parent)
    assert len(encodings) == 1


def test_unwritable_cache_directory_is_no_error(tmp_path, encoded):
    assert cached(tmp_path / "missing") == encoded
    file = tmp_path / "file"
    file.write_text("")
    assert cached(file) == encoded


@pytest.mark.parametrize(
    ("what", "value"), [("_pyroute2_version", lambda: "pyroute2-0.9.8.dist-info"), ("sys.byteorder", "other")]
)
def test_changed_encoder_uses_another_file(made, monkeypatch, encodings, what, value):
    monkeypatch.setattr(f"enforcer.network.install.{what}", value)
    cached(made.parent)
    assert len(encodings) == 1
    assert len(list(made.parent.iterdir())) == 2


def test_changed_plan_uses_another_file(made, encodings):
    cached(made.parent, 15002)
    assert len(encodings) == 1
    assert len(list(made.parent.iterdir())) == 2


def test_start_from_the_cache_imports_no_pyroute2(made):
    program = (
        "import sys; from pathlib import Path\n"
        "from enforcer.network.install import cached; cached(Path(sys.argv[1]))\n"
        "import enforcer.cli.run, enforcer.run.task, enforcer.run.sandbox_spec, enforcer.limits.limit_monitor, enforcer.run.supervise\n"
        "left_out = {'asyncio', 'cryptography', 'importlib.metadata', 'mitmproxy', 'pyroute2', 'yaml'}\n"
        "left_out |= {'enforcer.network.plan', 'enforcer.network.ruleset'}\n"
        "print(*sorted(left_out & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, made.parent], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.split() == []
