import contextlib

import pytest

from enforcer.approvals import client

from .process import Gate, kill


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A state directory of its own, and whatever registry serves it ends with the test."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv(client.VARIABLE, str(tmp_path / "host/socket"))
    yield tmp_path
    kill()


@pytest.fixture
def gate(here):
    with contextlib.closing(Gate("t1", here / "journal")) as made:
        yield made
