"""Invariants 2 and 11: a task that has the journal filled has itself kept in by that, and nobody else."""

import shutil

import pytest

from proxy.telemetry.journal.writer import LITTLE

from .attempt_network import RULES, names
from .lab_runner import Journal, by_the_gate
from .small_disk import Disk

pytestmark = by_the_gate
SIZE = 40 << 20  # of which a third is less than what is nobody's business
MOST = 24 << 20

# Asks for names until no answer is about a name any more, many at once; says how often it asked, and how that ended.
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
def flooded(place):
    """What a task saw that asked until it was told no more, what one saw that came after it, and the disk's journal."""
    place.lab.origin.name(names())
    disk = Disk(place, SIZE, "portion")
    rules = place.rules(RULES)
    journal = ("--journal", disk.path, "--task")
    seen = {"flood": place.python("flooding", rules, FLOODING, options=(*journal, "flooding")).said}
    seen["size"] = sum(path.stat().st_size for path in disk.seen.glob("*/*.jsonl"))
    seen["once"] = place.python("once", rules, ONCE, options=(*journal, "once")).said
    kept = place.lab.home(place.user) / "portion-kept"  # of two tasks
    shutil.copytree(disk.seen, kept)
    seen["journal"] = Journal(kept)
    return seen


def test_events_of_one_task_stay_within_its_quota(flooded):
    asked, failed = flooded["flood"]
    assert failed >= 64
    assert asked < 200_000
    assert LITTLE <= flooded["size"] < MOST


def test_quota_is_named_in_a_gate_error(flooded):
    [error] = flooded["journal"].of(kind="gate.error", task__name="flooding")
    assert "were told of the task today" in error["fault"]["detail"]


def test_end_of_the_limited_task_is_recorded(flooded):
    assert len(flooded["journal"].of(kind="task.ended", task__name="flooding")) == 1


def test_events_of_other_tasks_are_recorded(flooded):
    told = flooded["journal"].of(kind="dns.decided", task__name="once")
    assert flooded["once"] == 1
    assert [event["reason"] for event in told] == ["rule"]
