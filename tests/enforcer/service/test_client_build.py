"""The client in C: put in the place of what pip installed, found there, and done without."""

import os
import shutil
import subprocess
import sys
from importlib import metadata

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


def test_it_takes_the_place_of_what_pip_installed_and_so_does_the_next():
    with clients.native() as program:
        made = os.fsdecode(program.words[0])
        stub = f"{os.path.dirname(made)}/python"
        assert build.client(made) == Client.COMPILED
        assert said(made) == "log|"
        assert build.build(made, [stub, "a word"]) == ""  # again, over itself
        assert said(made) == "a word|log|"
        shutil.copy(stub, made)  # what pip does
        assert build.build(made, [stub]) == ""
        assert said(made) == "log|"
        assert sorted(os.listdir(os.path.dirname(made))) == ["exeat", "python"]  # nothing that pip doesn't know of


def test_what_it_executes_is_this_exeat_and_nothing_of_the_directory_it_is_in(place, tmp_path):
    assert build.build(str(place)) == ""
    for name in ("enforcer.py", "signal.py", "argparse.py"):
        (tmp_path / name).write_text("raise SystemExit('imported')")
    os.symlink(place, tmp_path / "a link")
    # By its path, by a relative one, by a link, by PATH
    words = [[str(place)], ["bin/exeat"], ["./a link"], ["sh", "-c", "PATH=bin:$PATH; exec exeat --version"]]
    for each in words:
        argv = each if each[0] == "sh" else [*each, "--version"]
        done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.stdout, done.stderr) == (f"exeat {metadata.version('exeat')}\n", "")


def test_a_copy_refuses_to_run_the_code_of_the_original(place, tmp_path):
    assert build.build(str(place)) == ""
    copy = tmp_path / "copied" / "exeat"
    copy.parent.mkdir()
    shutil.copy(place, copy)
    done = subprocess.run([copy, "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (125, "")
    assert (
        done.stderr == f"exeat: {copy} is a copy of {place} and would run the code there; run `make clean setup` here\n"
    )


def test_a_copied_script_refuses_to_run_the_code_of_the_original(tmp_path):
    """Without a C compiler: the interpreter in its first line is the original's."""
    script = tmp_path / ".venv" / "bin" / "exeat"
    script.parent.mkdir(parents=True)
    (tmp_path / ".venv" / "pyvenv.cfg").touch()
    shutil.copy(harness.PROJECT / "enforcer" / "exeat", script)
    environment = {**os.environ, "PYTHONPATH": str(harness.PROJECT)}
    words = [sys.executable, script, "--version"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{tmp_path}/.venv is a copy of {sys.prefix} and would run the code there" in done.stderr


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


def test_an_interpreter_that_nobody_knows_is_said(place, monkeypatch):
    monkeypatch.setattr(sys, "executable", "")
    assert build.build(str(place)) == "which Python this is, is unknown"
    assert build.client(str(place)) == Client.INTERPRETED


SEEN = {
    "a script": (clients.STUB.encode(), False, "by an interpreter, which takes longer"),
    "of another source": (b"\x7fELF exeat.c " + b"0" * 64, False, "compiled, but of another source"),
    "of this source": (b"\x7fELF exeat.c " + build.digest().encode(), True, "compiled"),
    "another program": (b"\x7fELF", False, "pip has not installed it"),
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
