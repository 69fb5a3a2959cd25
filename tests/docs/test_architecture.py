"""docs/explanation/architecture.md lists every folder of the code, and names no file that isn't there."""

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLOORS = ("rules", "proxy", "enforcer")
FILES = tuple(
    str(path.relative_to(ROOT))
    for floor in (*FLOORS, "tests")
    for path in (ROOT / floor).rglob("*")
    if path.is_file() and path.suffix in {".py", ".c", ".yaml", ".html"}
)
NAMED = re.compile(r"`([a-z_*][\w*]*/[\w/.*]*)`")


def _folders_listed() -> set[str]:
    """The folders in the tree of the page."""
    tree = (ROOT / "docs/explanation/architecture.md").read_text().split("```\n")[3]
    above: list[str] = []
    found = set()
    for line in tree.splitlines():
        indent = (len(line) - len(line.lstrip())) // 2
        for name in re.findall(r"^\s*((?:\w+/ ?)+)", line)[:1]:
            for folder in name.split():
                above[indent:] = [folder.rstrip("/")]
                found.add("/".join(above))
    return found


def _folders_there() -> set[str]:
    return {str(path.parent.relative_to(ROOT)) for floor in FLOORS for path in (ROOT / floor).rglob("*.py")}


def test_folder_tree_of_architecture_lists_the_folders_of_the_code():
    # Those of one purpose with the folder they are in: the C of a sandbox's processes, the stages of a request.
    inner = {"enforcer/sandbox/compiled", "proxy/inspection/stages"}
    assert _folders_listed() == _folders_there() - inner


@pytest.mark.parametrize(
    "page", ["docs/explanation/architecture.md", "docs/explanation/dependencies.md", "CONTRIBUTING.md"]
)
def test_files_that_a_page_names_exist(page: str):
    named = [name.rstrip("/") for name in NAMED.findall((ROOT / page).read_text())]
    assert named
    missing = [
        name
        for name in named
        if not any(
            fnmatch(file, before + name + behind)
            for file in FILES
            for before in ("", "*/")
            for behind in ("", ".py", "/*")
        )
    ]
    assert not missing
