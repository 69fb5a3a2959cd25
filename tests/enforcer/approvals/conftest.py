import contextlib

import pytest

from enforcer.approvals import client
from tests.enforcer.approvals.approvals_lab import Approvers, open_lab
from tests.enforcer.approvals.registry_process import WorkerEnd, kill


@pytest.fixture(
    scope="session",
    params=[pytest.param(who, marks=pytest.mark.xdist_group(f"held-{who}")) for who in ("root", "user")],
)
def approvals_lab(request):
    """A lab, a registry and its people, for root and for an ordinary user: made once each."""
    with open_lab(request.param == "user") as made:
        yield made


def answers(tokens):
    """What is said to each question, by a word of it."""
    return {
        "/ask/approved": [{"vote": "approve", "why": "fine"}],
        "/ask/rejected": [{"vote": "reject", "why": "not on a Friday"}],
        "/ask/forged": [{"vote": "approve", "token": tokens["mallory"]}, {"vote": "reject"}],
        "/ask/two": [{"vote": "approve", "token": tokens[name]} for name in ("ada", "ada", "bo")],
        "refs/heads/other": [{"vote": "reject", "why": "one at a time"}],
        "refs/heads/main": [{"vote": "approve", "why": "reviewed"}],
        "refs/heads/release": [{"vote": "reject", "why": "frozen until Monday"}],
    }


@pytest.fixture(scope="session")
def attempts(approvals_lab):
    """Every attempt of `inside`, made once: what the task saw, and what those saw who answered."""
    approvals_lab.lab.origin.forget()
    with Approvers(approvals_lab, answers(approvals_lab.tokens)) as people:
        seen, approvals_lab.told = approvals_lab.done(approvals_lab.start("held", "everything"))
    return seen, people.said, approvals_lab.lab.origin.requests()


@pytest.fixture
def state_home(tmp_path, monkeypatch):
    """A state directory of its own; its registry is killed after the test."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv(client.VARIABLE, str(tmp_path / "host/socket"))
    yield tmp_path
    kill()


@pytest.fixture
def worker_end(state_home):
    with contextlib.closing(WorkerEnd("t1", state_home / "journal")) as made:
        yield made
