"""What `make setup` says of the environment that it made. Nothing is made here but a link to an interpreter."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests import harness

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


@pytest.mark.parametrize(("home", "clone", "tells"), PLACES)
def test_an_interpreter_that_only_its_owner_can_reach_is_told_of(base, home, clone, tells):
    if shutil.which("make") is None:
        harness.missing("make")
    python = base / "home" / "python" / "bin" / "python3"
    python.parent.mkdir(parents=True)
    python.write_text("")
    (base / "clone" / ".venv" / "bin").mkdir(parents=True)
    (base / "clone" / ".venv" / "bin" / "python").symlink_to(python)
    (base / "home").chmod(home)
    (base / "clone").chmod(clone)
    words = ["make", "-s", "-f", harness.PROJECT / "Makefile", "-C", base / "clone", "reach"]
    # A make above this test has words for those below it: what it was told itself, and how deep they are.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == ""
    assert bool(done.stderr) is tells
    if tells:
        assert done.stderr.startswith("warning: other users cannot run .venv/bin/exeat: ")
        assert f"{python}, and {base / 'home'} is closed to them" in done.stderr
        assert "`make clean setup`" in done.stderr
