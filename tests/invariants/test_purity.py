"""Invariant 10: deciding is pure, and imports point one way: enforcer -> proxy -> rules."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
EFFECTS = {
    "asyncio", "concurrent", "ctypes", "http", "mitmproxy", "multiprocessing", "pyroute2", "selectors", "shutil",
    "signal", "subprocess", "tempfile", "threading", "urllib.request", "dns", "cryptography",
}  # fmt: skip


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield node.module
        elif isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in {
            "__import__",
            "import_module",
        }:
            yield "importlib"


def _under(module, packages):
    return any(module == package or module.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize(("floor", "forbidden"), [("rules", {"proxy", "enforcer", *EFFECTS}), ("proxy", {"enforcer"})])
def test_imports_point_one_way(floor, forbidden):
    found = {
        f"{path.relative_to(PROJECT)}: {name}"
        for path in (PROJECT / floor).rglob("*.py")
        for name in _imports(path)
        if _under(name, forbidden)
    }
    assert found == set()


def test_loading_rules_imports_no_module_with_effects():
    """Checks the modules that are loaded at run time."""
    program = "import sys, rules.loading.load, rules.matching.policy, rules.explain.explanation, rules.loading.cases; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    plain = subprocess.run(
        [sys.executable, "-I", "-c", "import sys, yaml; print(*sys.modules)"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(done.stdout.split()) - set(plain.stdout.split())
    assert {name for name in loaded if _under(name, {"proxy", "enforcer", "socket", *EFFECTS})} == set()


def test_only_one_module_of_rules_reads_files():
    """`rules/files.py` opens the files that loading names, and the public suffix list."""
    openers = {"open", "fdopen", "read_text", "read_bytes", "write_text", "write_bytes"}
    found = set()
    for path in (PROJECT / "rules").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in openers:
                found.add(path.name)
    assert found == {"files.py"}
