"""Invariants 2 and 11: a task that floods the journal reaches its own quota, and other tasks are not affected."""

import shutil

import pytest

from proxy.telemetry.journal.writer import UNLIMITED_BYTES

from .attempt_network import RULES, dns_names
from .lab_runner import Journal, only_as_ordinary_user
from .small_disk import SmallDisk

pytestmark = only_as_ordinary_user
SIZE = 40 << 20  # a third of it is below the limit that applies to all tasks
MOST = 24 << 20

# Sends many lookups at once until they fail; prints the number of lookups and of failures.
FLOODING = """
import re, socket
servers = re.findall(r"nameserver (\\S+)", open("/etc/resolv.conf").read())
door = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
door.connect((servers[0], 53))
door.settimeout(5)
label = b"x" * 63
asked = failed = 0
while failed < 64 and asked < 200_000:
    for number in range(32):
        name = b"".join(bytes([len(each)]) + each for each in (b"%d" % (asked + number), label, label, b"evil", b"example"))
        door.send((asked + number & 0xFFFF).to_bytes(2) + b"\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0" + name + b"\\0\\0\\1\\0\\1")
    for number in range(32):
        failed += door.recv(512)[3] & 15 == 2
    asked += 32
print([asked, failed])
"""
ONCE = """
import socket
try:
    print(len(socket.getaddrinfo("once.evil.example", 443, socket.AF_INET, socket.SOCK_STREAM)))
except socket.gaierror as error:
    print(error.errno)
"""


@pytest.fixture(scope="module")
def flood_run(runner):
    """Results of a flooding task and of a later task, and their journal."""
    runner.lab.origin.name(dns_names())
    disk = SmallDisk(runner, SIZE, "portion")
    rules = runner.rules(RULES)
    journal = ("--journal", disk.path, "--task")
    seen = {"flood": runner.run_python("flooding", rules, FLOODING, options=(*journal, "flooding")).output}
    seen["size"] = sum(path.stat().st_size for path in disk.host_path.glob("*/*.jsonl"))
    seen["once"] = runner.run_python("once", rules, ONCE, options=(*journal, "once")).output
    kept = runner.lab.home(runner.user) / "portion-kept"  # of two tasks
    shutil.copytree(disk.host_path, kept)
    seen["journal"] = Journal(kept)
    return seen


def test_events_of_one_task_stay_within_its_quota(flood_run):
    queried, failed = flood_run["flood"]
    assert failed >= 64
    assert queried < 200_000
    assert UNLIMITED_BYTES <= flood_run["size"] < MOST


def test_quota_is_named_in_a_gate_error(flood_run):
    [error] = flood_run["journal"].of(kind="gate.error", task__name="flooding")
    assert "were recorded of the task today" in error["fault"]["detail"]


def test_end_of_the_limited_task_is_recorded(flood_run):
    assert len(flood_run["journal"].of(kind="task.ended", task__name="flooding")) == 1


def test_events_of_other_tasks_are_recorded(flood_run):
    recorded = flood_run["journal"].of(kind="dns.decided", task__name="once")
    assert flood_run["once"] == 1
    assert [event["reason"] for event in recorded] == ["rule"]
