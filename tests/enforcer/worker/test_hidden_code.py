"""A run by root whose code lies where only root comes, or only its owner: nothing of it is looked for when it is too late."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import harness

RULES = "version: 1\nname: nothing\nrules: []\n"
OURS = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """Our code, in a directory of its own."""
    above = tmp_path_factory.mktemp("above")
    for name in ("enforcer", "proxy", "rules"):
        shutil.copytree(OURS / name, above / "code" / name)  # with what it was compiled to
    return above / "code"


@pytest.mark.parametrize(("owner", "mode"), [(0, 0o700), (harness.UID, 0o750)], ids=["root's", "another's"])
def test_run_by_root_finds_all_code(copy, tmp_path, owner, mode):
    harness.needs_root()
    os.chown(copy.parent, owner, owner)
    copy.parent.chmod(mode)
    (tmp_path / "work").mkdir()
    rules = tmp_path / "rules.yaml"
    rules.write_text(RULES)
    more = {
        "PYTHONPATH": str(copy),
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "EXEAT_CONTROL": str(tmp_path / "nobody"),
    }
    words = [sys.executable, copy / "enforcer/exeat", "run", "--quiet", "--rules", rules, "--", "sh", "-c", "exit 3"]
    done = subprocess.run(
        words,
        env={**os.environ, **more},
        cwd=tmp_path / "work",
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (3, "")
