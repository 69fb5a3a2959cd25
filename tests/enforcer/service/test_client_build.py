"""The client in C: put in the place of what pip installed, found there, and done without."""

import os
import subprocess
import sys

import clients
import pytest

from enforcer import doctor
from enforcer.compiled import build
from enforcer.compiled.build import Client
from tests import harness


@pytest.fixture
def place(tmp_path):
    """Where pip has put a program of Python's."""
    made = tmp_path / "bin" / "exeat"
    made.parent.mkdir()
    made.write_text(clients.STUB)
    made.chmod(0o755)
    return made


def said(place):
    return subprocess.run([place, "log"], stdout=subprocess.PIPE, text=True).stdout.partition("Sig")[0]


def test_it_is_found_where_pip_installed_it():
    assert build.installed() == os.path.realpath(os.path.join(os.path.dirname(sys.executable), "exeat"))


def test_it_takes_the_place_of_what_it_executes_and_so_does_the_next(place):
    with clients.native() as program:
        made = os.fsdecode(program.words[0])
        assert build.client(made) == Client.COMPILED
        assert build.client(build.moved(made)) == Client.INTERPRETED
        assert said(made) == "log|"
        assert build.build(made) == ""  # again, over itself
        assert said(made) == "log|"
        # What pip puts there anew is what is executed from then on.
        os.unlink(made)
        place.rename(made)
        with open(made, "a") as file:
            file.write("# a later version")
        assert build.build(made) == ""
        with open(build.moved(made)) as file:
            assert file.read().endswith("# a later version")


def test_without_a_compiler_everything_stays_as_it_is(place, monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    assert "there is no C compiler: install gcc" in build.build(str(place))
    assert build.client(str(place)) == Client.INTERPRETED
    assert said(place) == "log|"


def test_what_pip_did_not_install_is_left_alone(tmp_path, place):
    place.write_bytes(b"\x7fELF of somebody else's")
    for path in (str(place), str(tmp_path / "none" / "exeat"), ""):
        assert build.build(path) == "what pip installed as `exeat` is not there: install Exeat again"
    assert place.read_bytes() == b"\x7fELF of somebody else's"
    assert not (tmp_path / "libexec").exists()


def test_a_place_that_cannot_be_written_is_said(place):
    (place.parent.parent / "libexec").write_text("")
    assert build.build(str(place)) == f"{place.parent.parent}/libexec: File exists"


SEEN = {
    "a script": (clients.STUB.encode(), False, "by an interpreter, which takes longer"),
    "of another source": (b"\x7fELF", False, "compiled, but of another source"),
    "of this source": (b"\x7fELF" + build.digest().encode(), True, "compiled"),
    "not there": (None, False, "pip has not installed it"),
}


@pytest.mark.parametrize("what", SEEN)
def test_the_doctor_says_which_it_is(place, monkeypatch, what):
    data, works, seen = SEEN[what]
    if data is None:
        place.unlink()
    else:
        place.write_bytes(data)
    monkeypatch.setattr(build, "installed", lambda: str(place))
    found = doctor._asking()
    assert (found.name, found.works, found.seen, found.needed) == ("asking a service", works, seen, False)
    assert f"`{sys.executable} -m enforcer.compiled.build`" in found.remedy


def test_it_is_built_from_a_command_that_says_what_it_could_not_do():
    words = [sys.executable, "-m", "enforcer.compiled.build"]
    done = subprocess.run(words, env={"CC": "none"}, cwd=harness.PROJECT, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr.startswith(
        "`exeat run` asks a service through an interpreter, which takes longer: there is no C"
    )
