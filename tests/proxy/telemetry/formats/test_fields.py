"""Users in exported events: the starter of a task and the host user of a process, never ids of a sandbox."""

import json

import pytest

from proxy.telemetry.events import Kind
from proxy.telemetry.formats.cef import cef
from proxy.telemetry.formats.ecs import ecs
from proxy.telemetry.formats.ocsf import ocsf
from proxy.telemetry.formats.otlp import attributes
from tests.proxy.telemetry.formats.sample_records import record

STARTED = {
    "started_by": {"uid": 1007, "name": "ada"},
    "workspace": "/home/ada/work",
    "process": None,
    "approval": None,
    "by": None,
}
# A user's task, which is 0 inside the sandbox; and a task of root, which runs under ids without an account.
PROCESSES = [(1007, 0), (0x70000000 + 1000, 1000)]


def test_task_start_names_its_starter():
    sample = record(Kind.TASK_STARTED, **STARTED)
    assert ocsf(sample)["actor"]["user"] == {"uid": "1007", "name": "ada"}
    assert ecs(sample)["user"] == {"id": "1007", "name": "ada"}
    assert ecs(sample)["related"]["user"] == ["ada"]
    assert "suid=1007 suser=ada" in cef(sample)
    named = attributes(sample)
    assert (named["user.id"], named["user.name"], named["exeat.workspace"]) == ("1007", "ada", "/home/ada/work")


def test_approval_answer_has_no_uid_of_the_starter():
    sample = record(Kind.TASK_STARTED, **{**STARTED, "approval": {"by": ["bo"]}})
    assert ocsf(sample)["actor"]["user"] == {"name": "bo"}


@pytest.mark.parametrize(("uid", "inside"), PROCESSES)
def test_process_has_the_host_uid_and_the_sandbox_uid_apart(uid, inside):
    process = {"pid": 7, "exe": "/bin/sh", "uid": uid, "sandbox_uid": inside}
    sample = record(process=process, started_by=None, workspace=None)
    assert ocsf(sample)["actor"]["process"]["user"] == {"uid": str(uid)}
    assert ecs(sample)["process"]["user"] == {"id": str(uid)}
    assert ecs(sample)["exeat"]["sandbox_uid"] == inside
    assert f"suid={uid}" in cef(sample)
    named = attributes(sample)
    assert (named["exeat.process.uid"], named["exeat.process.sandbox_uid"]) == (uid, inside)
    assert "user.id" not in named
    assert json.dumps(ecs(sample)).count(f'"{inside}"') == 0
