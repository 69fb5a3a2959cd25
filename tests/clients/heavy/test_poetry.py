"""Poetry, under the `pip` preset: it installs from an index, and asks its own kind of index for a release's metadata."""

import json
import os

from tests.clients import registries
from tests.invariants.lab_runner import PYTHON
from tests.lab import Lab

from . import HOME

INDEX = "https://www.open.example/files/poetry/simple"
LOCK = f"""version: 1
locked:
  pip: {{index: [{{url: "{INDEX}"}}], files: [{{url: "https://www.open.example/files"}}]}}
"""
RULES = "version: 1\nname: poetry\ninclude: [{preset: pip}]\n"
# What poetry does for a package of its default index, whose address stands in its code; here that of the lab's.
METADATA = """
from poetry.core.constraints.version import Version
from poetry.repositories.pypi_repository import PyPiRepository
index = PyPiRepository("https://www.open.example/files/poetry/", disable_cache=True)
package = index.package("lefty", Version.parse("1.0"))
print(package.name, package.version, [file["file"] for file in package.files])
"""
PROJECT = f"""[project]
name = "ours"
version = "0.1"
requires-python = ">=3.9"
dependencies = ["lefty"]
[tool.poetry]
package-mode = false
[[tool.poetry.source]]
name = "lab"
url = "{INDEX}"
priority = "primary"
"""


def test_poetry(world):
    root = world.files / "poetry"
    registries.simple(root)
    [wheel] = (root / "simple" / "lefty").glob("*.whl")
    url = f"{INDEX}/lefty/{wheel.name}"
    page = root / "pypi" / "lefty" / "1.0" / "json"
    page.parent.mkdir(parents=True)
    file = {
        "filename": wheel.name,
        "url": url,
        "packagetype": "bdist_wheel",
        "digests": {"sha256": "0" * 64},
        "size": 1,
    }
    info = {"name": "lefty", "version": "1.0", "summary": "pads", "requires_dist": [], "requires_python": None}
    page.write_text(json.dumps({"info": {**info, "yanked": False}, "urls": [file]}))
    config = world.lab.home(Lab.ORDINARY) / ".config" / "exeat"
    config.mkdir(parents=True, exist_ok=True)
    (config / "presets.lock").write_text(LOCK)
    for path in (config.parent, config, config / "presets.lock"):
        os.chown(path, Lab.ORDINARY, Lab.ORDINARY)
    (site,) = HOME.glob("lib/python3*/site-packages")
    poetry = [PYTHON, "-m", "poetry", "--no-interaction"]
    try:
        tried = world.run(
            [PYTHON, "-c", METADATA],
            [*poetry, "install", "--no-root"],
            [*poetry, "run", "python", "-c", "import lefty; print(lefty.SAYS)"],
            read=[HOME],
            env={"PYTHONPATH": site, "POETRY_VIRTUALENVS_IN_PROJECT": "true"},
            files={"pyproject.toml": PROJECT.encode()},
            rules=world.place.rules(RULES, "poetry.yaml"),
        )
    finally:
        (config / "presets.lock").unlink()
    metadata, installed, used = tried.said
    assert metadata.out == f"lefty 1.0 ['{wheel.name}']\n", metadata.err
    assert installed.ok, installed.out + installed.err
    assert used.out.strip() == registries.SAYS, used.err
    rules = [event["rules"] for event in tried.journal.of(kind="request.decided", verdict="allow")]
    assert any("pip:metadata" in each for each in rules), rules
