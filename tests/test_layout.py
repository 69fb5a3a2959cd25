"""Holds the layout of the tests: their folders mirror the production code, and their names are short."""

import ast
from pathlib import Path

TESTS = Path(__file__).parent
PROJECT = TESTS.parent
LONGEST = 70  # characters of a test's name
# Scenarios over the whole enforcer: what a hostile task tries, and a run inside a container.
SCENARIOS = {"enforcer/escapes", "enforcer/oci"}


def _test_files():
    return sorted(path for path in TESTS.rglob("test_*.py") if "__pycache__" not in path.parts)


def test_folders_of_tests_are_folders_of_the_code():
    folders = {
        str(path.parent.relative_to(TESTS))
        for path in _test_files()
        if path.relative_to(TESTS).parts[0] in {"rules", "proxy", "enforcer"}
    }
    assert {folder for folder in folders if not (PROJECT / folder).is_dir()} == SCENARIOS


def test_names_of_tests_are_short():
    names = {
        f"{path.relative_to(TESTS)}: {node.name}"
        for path in _test_files()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
        if len(node.name) > LONGEST
    }
    assert names == set()
