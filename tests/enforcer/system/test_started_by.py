"""Who starts a task: of root's who has logged in, also where a service does what somebody else has asked it for."""

import subprocess
import sys

import pytest

from enforcer.system import started_by
from enforcer.workspace.accept import describe_user
from tests.support import harness

LOGS_IN = "open('/proc/self/loginuid', 'w').write('4242'); print(flush=True); input()"


@pytest.fixture
def client():
    """A process of root's, whose user has logged in as another: su(1), pam_loginuid(8)."""
    harness.needs_root()
    with subprocess.Popen([sys.executable, "-c", LOGS_IN], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"\n"
        yield process.pid
        process.kill()


def test_task_of_a_service_is_started_by_its_caller(client, monkeypatch):
    monkeypatch.delenv("SUDO_UID", raising=False)
    monkeypatch.setattr(started_by, "_process", "self")
    assert started_by.starter_uid() != 4242
    started_by.use_login_of(client)
    assert started_by.starter_uid() == 4242


def test_change_events_have_the_login_of_the_caller(client, monkeypatch):
    monkeypatch.setattr(started_by, "_process", "self")
    assert "4242" not in describe_user()
    started_by.use_login_of(client)
    assert describe_user() == "root (uid 0), logged in as uid 4242"
