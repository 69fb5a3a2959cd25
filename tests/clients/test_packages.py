"""pip and apt against small registries of our own: what is allowed is installed, what is denied says so."""

import shutil

import pytest

from tests.invariants.lab_runner import PYTHON
from tests.support import harness

from . import registries

URL = "https://www.open.example/files"
PIP = [PYTHON, "-m", "pip", "--no-input", "install", "--no-cache-dir", "--disable-pip-version-check", "--target", "got"]


@pytest.fixture(scope="module", autouse=True)
def served(world):
    """Two packages for pip: of one the index may be read, and its file may not."""
    registries.simple(world.files)
    registries.simple(world.files, "righty", "https://www.denied.example/")


def test_pip(world):
    denied = "https://www.denied.example/simple"
    tried = world.run(
        [*PIP, "--index-url", f"{URL}/simple", "lefty"],
        ["sh", "-c", "cd got && python3 -S -c 'import lefty; print(lefty.SAYS)'"],
        [*PIP, "--index-url", f"{URL}/simple", "righty"],
        [*PIP, "-vv", "--index-url", denied, "lefty"],
    )
    installed, used, file, index = tried.said
    assert installed.ok, installed.err
    assert used.out.strip() == registries.SAYS
    assert "ERROR: HTTP error 403 while getting https://www.denied.example/righty-1.0" in file.err
    assert "403 Client Error: Blocked by Exeat: no_rule for url" in file.err
    assert "ERROR: No matching distribution found for lefty" in index.err
    assert (
        "Could not fetch URL https://www.denied.example/simple/lefty/: 403 Client Error: Blocked by Exeat: no_rule"
        in index.out
    )
    assert not index.ok


APT = """
mkdir -p state/lists/partial cache/archives/partial
echo "deb [trusted=yes] $1 ./" >sources
get() {
  apt-get -o Dir::State="$PWD/state" -o Dir::State::status=/dev/null -o Dir::Cache="$PWD/cache" -o APT::Sandbox::User= \\
    -o Dir::Etc::SourceList="$PWD/sources" -o Dir::Etc::SourceParts=/dev/null -o Acquire::Languages=none "$@"
}
get update && get download lefty && dpkg-deb --fsys-tarfile lefty_1.0_all.deb | tar -xO ./usr/share/lefty
"""


@pytest.fixture(scope="module")
def repository(world, tmp_path_factory):
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            harness.missing(tool)
    registries.apt(world.files, tmp_path_factory.mktemp("apt"))


def test_apt(world, repository):
    places = (f"{URL}/apt", "http://www.open.example/files/apt", "https://www.denied.example/apt")
    tried = world.run(*(["sh", "-c", APT, "sh", place] for place in places))
    https, http, denied = tried.said
    for said in (https, http):
        assert said.ok, said.err
        assert said.out.endswith(registries.SAYS)
    assert "403  Blocked by Exeat: no_rule" in denied.err
    assert not denied.ok
