import shutil
import tempfile
from pathlib import Path

import pytest

from tests.enforcer.workspace.changes_lab import OWNER, ChangesLab
from tests.support import harness


@pytest.fixture(params=["own", "somebody's"])
def lab(request, monkeypatch):
    """A workspace of whoever runs the tests; as root also one of somebody else's."""
    base = Path(tempfile.mkdtemp(prefix="exeat-test-"))
    base.chmod(0o755)
    if request.param != "own":
        harness.needs_root()  # to act as somebody else
    yield ChangesLab(base, monkeypatch, None if request.param == "own" else OWNER)
    shutil.rmtree(base)
