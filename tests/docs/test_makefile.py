"""What `make setup` says of the environment that it made. Nothing is made here but a link to an interpreter."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.support import harness

# the modes of the directory that the interpreter lies in and of the one that the clone does; which one it tells of
PLACES = [
    (0o755, 0o755, False),
    (0o700, 0o755, True),
    (0o750, 0o755, True),
    (0o700, 0o700, False),
    (0o755, 0o700, False),
]


@pytest.fixture
def base():
    """A directory that everybody can enter, unlike pytest's own."""
    made = Path(tempfile.mkdtemp(prefix="exeat-make-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


def make(directory, *words, **environment):
    if shutil.which("make") is None:
        harness.missing("make")
    # A make above this test has words for those below it: what it was told itself, and how deep they are.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    words = [shutil.which("make"), "-s", "-f", harness.PROJECT / "Makefile", "-C", directory, *words]
    return subprocess.run(words, capture_output=True, text=True, env=inherited | environment)


# What is on PATH as `python3.12` and `python3`, what the target prints, and what it says where it fails.
PYTHONS = [
    ({}, "", "exeat needs Python 3.12 or newer and found none: install one"),
    ({"python3": "3.11"}, "", "exeat needs Python 3.12 or newer and found none: install one"),
    ({"python3.12": "3.12 ensurepip"}, "", "python3.12 lacks a library: No module named 'ensurepip'. Install what it lacks"),
    ({"python3.12": "3.12 _ctypes", "python3": "3.11"}, "", "python3.12 lacks a library: No module named '_ctypes'."),
    ({"python3.12": "3.12 ensurepip", "python3": "3.13"}, "python3", ""),
]  # fmt: skip
FAKE = """#!/bin/sh
case "$2" in
*version_info*) [ "{version}" != 3.11 ] ;;
*executable*) echo "$0" ;;
*) [ -z "{lacks}" ] || {{ echo "No module named '{lacks}'" >&2; exit 1; }} ;;
esac
"""


@pytest.mark.parametrize(("there", "found", "says"), PYTHONS, ids=[str(row[0]) for row in PYTHONS])
def test_setup_names_a_missing_library_of_python(base, there, found, says):
    for name, is_like in there.items():
        version, _, lacks = is_like.partition(" ")
        (base / name).write_text(FAKE.format(version=version, lacks=lacks))
        (base / name).chmod(0o755)
    for tool in ("sh", "bash", "ls", "sort", "getent", "id", "cut", "tail", "cat", "rm"):
        (base / tool).symlink_to(shutil.which(tool))
    getent = base / "getent"  # no home with a pyenv in it
    getent.unlink()
    getent.symlink_to("/bin/false")
    done = make(base, "python", PATH=str(base), HOME=str(base), PYENV_ROOT=str(base), SHELL="/bin/bash")
    assert done.stdout.strip() == (str(base / found) if found else "")
    assert says in done.stderr
    assert bool(done.returncode) is bool(says)


def test_copied_checkout_is_set_up_again(base):
    """Its environment would run the code of the checkout that it was copied from."""
    stamp = base / ".venv" / ".made-from-the-lock"
    stamp.parent.mkdir()
    for path in ("requirements.lock", "pyproject.toml"):
        (base / path).touch()
    for made_for, is_kept in ((base, True), ("/elsewhere/checkout", False)):
        stamp.write_text(f"{made_for}\n")
        done = make(base, "-n", "setup")
        assert ("making .venv" not in done.stdout) is is_kept, done.stdout + done.stderr


@pytest.mark.parametrize(("home", "clone", "tells"), PLACES)
def test_interpreter_closed_to_others_gives_a_warning(base, home, clone, tells):
    python = base / "home" / "python" / "bin" / "python3"
    python.parent.mkdir(parents=True)
    python.write_text("")
    (base / "clone" / ".venv" / "bin").mkdir(parents=True)
    (base / "clone" / ".venv" / "bin" / "python").symlink_to(python)
    (base / "home").chmod(home)
    (base / "clone").chmod(clone)
    done = make(base / "clone", "reach")
    assert done.returncode == 0
    assert done.stdout == ""
    assert bool(done.stderr) is tells
    if tells:
        assert done.stderr.startswith("warning: other users cannot run .venv/bin/exeat: ")
        assert f"{python}, and {base / 'home'} is closed to them" in done.stderr
        assert "`make clean setup`" in done.stderr
