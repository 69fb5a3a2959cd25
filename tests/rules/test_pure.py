"""rules/ does no I/O except reading rule files, imports no other floor, and loads lazily (invariant 10)."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rules

FOLDER = Path(rules.__file__).parent
SELDOM = (
    "idna",
    "publicsuffixlist",
    "difflib",
    "rules.loading.cases",
    "rules.explain.explanation",
    "rules.matching.reference",
    "rules.explain.reasons",
    "argparse",
)
NEVER = (
    "asyncio",
    "socket",
    "ssl",
    "mitmproxy",
    "pyroute2",
    "dns",
    "proxy",
    "enforcer",
    "subprocess",
    "threading",
    "urllib",
    "http",
)


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.py")), ids=lambda path: str(path.relative_to(FOLDER)))
def test_modules_import_nothing_with_side_effects(path):
    assert [name for name in imported(path) if name.partition(".")[0] in NEVER] == []


def test_loading_rules_imports_only_what_it_uses(tmp_path):
    file = tmp_path / "web.yaml"
    file.write_text("version: 1\nrules:\n  - {id: a, to: x.example, action: allow}\n")
    script = f"import sys; from rules.loading.load import load; load([{str(file)!r}]); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=FOLDER.parent)
    there = set(done.stdout.split())
    assert there >= {"rules.loading.load", "rules.matching.policy", "yaml"}
    assert [name for name in (*SELDOM, *NEVER) if name in there] == []


def test_only_one_module_opens_files():
    opening = {
        path.stem for path in FOLDER.rglob("*.py") if re.search(r"\b(?:open|read_text|read_bytes)\(", path.read_text())
    }
    assert opening == {"files"}
