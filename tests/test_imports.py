"""Every import of Exeat's own code that a test writes finds what it names.

Some are in programs that tests write as text, in the benchmarks, the fuzzers and the tests of large clients: `make test`
runs none of those, so a module that moved would be missed there until somebody runs them.
"""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PROJECT = TESTS.parent
IMPORT = re.compile(r"^\s*from ((?:rules|proxy|enforcer)[\w.]*) import \(?([\w ,]+)", re.MULTILINE)
INVENTED = {TESTS / "trace/test_trace.py"}  # it writes trees of its own


def named(text):
    """Return each module of an import with each name that is taken from it."""
    return [
        (module, name.split()[0]) for module, names in IMPORT.findall(text) for name in names.split(",") if name.strip()
    ]


def is_there(module, name):
    path = PROJECT / module.replace(".", "/")
    if (path / name / "__init__.py").is_file() or (path / f"{name}.py").is_file():
        return True
    package = path / "__init__.py"
    source = package if package.is_file() else path.with_suffix(".py")
    return source.is_file() and re.search(rf"\b{name}\b", source.read_text()) is not None


@pytest.mark.parametrize(
    "file", sorted({*TESTS.rglob("*.py")} - INVENTED), ids=lambda path: str(path.relative_to(TESTS))
)
def test_imports_of_tests_exist(file):
    missing = [f"from {module} import {name}" for module, name in named(file.read_text()) if not is_there(module, name)]
    assert missing == []


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("from rules.values.names import HostName", True),
        ("from proxy.gate import connection, listener as door", True),
        ("from enforcer.worker import secrets", False),
        ("from enforcer.workers import worker", False),
        ("    from rules.values.names import Hostname", False),
    ],
)
def test_missing_import_is_found(line, found):
    assert all(is_there(*each) for each in named(line)) is found
    assert named(line)
