"""What is told of a task's limits: from the kernel's counts to sentences, and when."""

import signal
from types import SimpleNamespace

import pytest

from enforcer.limits import limit_monitor
from enforcer.limits.cgroup_tree import Counts
from enforcer.limits.disk_quota import QuotaExceeded
from enforcer.limits.limit_monitor import limit_detail, limits_reached
from enforcer.limits.resource_limits import Limits, Means, ResourceLimits, limits_of
from rules.sandbox import SandboxSettings
from rules.verdicts import Outcome, Reason

LIMITS = Limits(memory=64 << 20, cpu=1.5, processes=40)
NOTHING = Counts()

# Counts before and now, and what is told: reason and words.
CASES = {
    "nothing": (NOTHING, NOTHING, []),
    "nothing new": (Counts(3, 1, 2, 1.0), Counts(3, 1, 2, 1.9), []),
    "its own memory": (
        NOTHING,
        Counts(killed=1, full=9),
        [(Reason.MEMORY_LIMIT, "memory: 1 process was killed, it may have 64 MiB")],
    ),
    "the host's memory": (
        NOTHING,
        Counts(killed=2),
        [(Reason.MEMORY_LIMIT, "memory: 2 processes were killed, the host had none left for it")],
    ),
    "memory given back in time": (NOTHING, Counts(full=9), []),
    "processes": (
        Counts(refused=1),
        Counts(refused=8),
        [(Reason.PROCESS_LIMIT, "processes: it could not start another 7 times, it may have 40 at most")],
    ),
    "one process": (
        NOTHING,
        Counts(refused=1),
        [(Reason.PROCESS_LIMIT, "processes: it could not start another once, it may have 40 at most")],
    ),
    "processors": (
        NOTHING,
        Counts(throttled=12.34),
        [(Reason.CPU_LIMIT, "cpu: its threads were held back for 12.3 s, it may use 1.5 processors")],
    ),
    "all at once": (
        NOTHING,
        Counts(1, 1, 1, 2.0),
        [
            (Reason.MEMORY_LIMIT, "memory: 1 process was killed, it may have 64 MiB"),
            (Reason.PROCESS_LIMIT, "processes: it could not start another once, it may have 40 at most"),
            (Reason.CPU_LIMIT, "cpu: its threads were held back for 2.0 s, it may use 1.5 processors"),
        ],
    ),
}


@pytest.mark.parametrize(("before", "now", "told"), CASES.values(), ids=CASES)
def test_events_of_limits_are_recorded(before, now, told):
    assert [(each.reason, each.detail) for each in limits_reached(before, now, LIMITS)] == told


def test_throttling_is_no_denial():
    assert [each.outcome for each in limits_reached(NOTHING, Counts(1, 1, 1, 2.0), LIMITS)] == [
        Outcome.BLOCKED,
        Outcome.BLOCKED,
        Outcome.PASSED,
    ]


def test_no_throttling_without_a_cpu_limit():
    assert limits_reached(NOTHING, Counts(throttled=99.0), Limits()) == []


def test_each_event_is_recorded_once_and_throttling_at_the_end(monkeypatch):
    counts = iter([Counts(1, 1, 0, 5.0), Counts(1, 1, 3, 6.0), Counts(1, 1, 3, 7.0)])
    monkeypatch.setattr(ResourceLimits, "counts", lambda _: next(counts))
    heard = []
    watched = limit_monitor.LimitMonitor(ResourceLimits(LIMITS, (), (), {}), lambda *what: heard.append(what[0]))
    watched.report_counts()
    watched.report_counts()
    watched.report_counts(is_final=True)
    assert heard == [Reason.MEMORY_LIMIT, Reason.PROCESS_LIMIT, Reason.CPU_LIMIT]
    assert watched.reached == (
        "memory: 1 process was killed, it may have 64 MiB",
        "processes: it could not start another 3 times, it may have 40 at most",
        "cpu: its threads were held back for 7.0 s, it may use 1.5 processors",
    )


# What its init found, and what is told.
AT = {
    "no bytes": (
        "disk",
        "bytes",
        "disk_limit",
        "disk: no more could be written to home, /tmp and the like, it may be 8 MiB",
    ),
    "no files": (
        "disk",
        "files",
        "disk_limit",
        "disk: no more files could be made in home, /tmp and the like, there may be 2112",
    ),
    "files": ("files", ["node", 64], "file_limit", "files: `node` had 64 open, as many as it may at a time"),
    "a name that moves the cursor": (
        "files",
        ["\x1b[2J\n`rm`", 64],
        "file_limit",
        "files: `\\x1b[2J\\x0a`rm`` had 64 open, as many as it may at a time",
    ),
    "no such answer": ("files", {"": ""}, "file_limit", "files: `` had 0 open, as many as it may at a time"),
    "processes": ("processes", 41, "process_limit", "processes: it had as many as it may, 40"),
}


@pytest.mark.parametrize(("limit", "found", "reason", "said"), AT.values(), ids=AT)
def test_processes_found_in_the_sandbox_are_recorded(limit, found, reason, said):
    assert limit_detail(limit, found, LIMITS._replace(disk=8 << 20)) == (Reason(reason), said, Outcome.BLOCKED)


def warded(monkeypatch, layer=None, timeout=None):
    """A limit monitor without any count of the kernel's, what it told, and a clock that stands still."""
    monkeypatch.setattr(ResourceLimits, "counts", lambda _: NOTHING)
    now, heard = [1000.0], []
    monkeypatch.setattr(limit_monitor, "time", SimpleNamespace(monotonic=lambda: now[0]))
    limits = LIMITS._replace(disk=8 << 20, timeout=timeout)
    return (
        limit_monitor.LimitMonitor(ResourceLimits(limits, (), (), {}), lambda *what: heard.append(what), layer),
        heard,
        now,
    )


def test_reached_limit_is_recorded_once(monkeypatch):
    watched, heard, _ = warded(monkeypatch)
    full, files = {"disk": "bytes"}, {"files": ["node", 64]}
    for found in ({}, full, full, full | files, files, full, {"disk": "files"}, {"what": 1}, {}):
        watched.report_probe(found)
    watched.report_counts(is_final=True)
    assert [reason for reason, _, _ in heard] == [Reason.DISK_LIMIT, Reason.FILE_LIMIT, Reason.DISK_LIMIT]
    assert watched.reached == (
        "disk: no more could be written to home, /tmp and the like, it may be 8 MiB; 2 times",
        "files: `node` had 64 open, as many as it may at a time",
    )


class Bounds:
    """A layer of which it is said beforehand what it finds, a turn each."""

    def __init__(self, *turns, presses=False, last=None):
        self.turns, self.pressing, self.at_last, self.nameless = list(turns), presses, last, 0

    def wait(self):
        return 0.5

    def turn(self):
        return self.turns.pop(0)

    def uses_space_fast(self):
        return self.pressing

    def final_scan(self):
        return self.at_last


def test_task_over_its_quota_is_terminated_then_killed(monkeypatch):
    layer = Bounds(None, QuotaExceeded("disk: it is over"))
    watched, heard, now = warded(monkeypatch, layer)
    said = []
    assert (watched.turn(said.append), watched.cut_short, said) == (False, False, [])
    assert (watched.turn(said.append), watched.cut_short) == (False, True)
    assert [each.name for each in said] == ["SIGTERM", "SIGCONT"]
    assert not watched.turn(said.append)
    assert watched.wait() == 0.5
    now[0] += limit_monitor.GRACE
    assert watched.turn(said.append)
    watched.report_counts(is_final=True)
    assert heard == [(Reason.DISK_LIMIT, "disk: it is over", Outcome.BLOCKED)]
    assert watched.reached == ("disk: it is over",)


@pytest.mark.parametrize("timeout", [None, 1.0])
def test_task_that_keeps_writing_is_killed_at_once(monkeypatch, timeout):
    layer = Bounds(*([QuotaExceeded("disk: it is over")] if timeout is None else []), presses=True)
    watched, heard, now = warded(monkeypatch, layer, timeout)
    now[0] += timeout or 0
    assert not watched.turn(lambda _: None)
    assert watched.turn(lambda _: None)
    assert [reason for reason, _, _ in heard] == [Reason.TIME_LIMIT if timeout else Reason.DISK_LIMIT]


def test_quota_exceeded_at_the_end_is_recorded_as_not_blocked(monkeypatch):
    watched, heard, _ = warded(monkeypatch, Bounds(last=QuotaExceeded("disk: it is over")))
    watched.report_counts(is_final=True)
    assert heard == [(Reason.DISK_LIMIT, "disk: it is over", Outcome.PASSED)]
    assert (watched.reached, watched.cut_short) == (("disk: it is over",), False)


def test_unlinked_files_count_for_the_quota(monkeypatch):
    layer = Bounds()
    watched, _, _ = warded(monkeypatch, layer)
    for found, wanted in (({"nameless": 5}, 5), ({"nameless": "5"}, 0), ({"nameless": 7}, 7), ({}, 0)):
        watched.report_probe(found)
        assert layer.nameless == wanted


def test_host_limits_apply_without_a_rule():
    assert limits_of(SandboxSettings(), 8 << 30) == Limits(memory=6 << 30, processes=4096, disk=4 << 30)
    said = limits_of(SandboxSettings(memory=1 << 30, timeout=5.0, hostname="x"), 8 << 30)
    assert (said.memory, said.timeout, said.said) == (1 << 30, 5.0, {"memory", "timeout"})


@pytest.mark.parametrize(
    ("status", "name"),
    [
        (signal.SIGABRT, "SIGABRT"),  # V8, glibc, Go's runtime, the JVM
        (signal.SIGTRAP, "SIGTRAP"),  # V8's IMMEDIATE_CRASH
        (signal.SIGSEGV | 0x80, "SIGSEGV"),  # with a core
        (134 << 8, "SIGABRT"),  # what a shell makes of it
        (0, None),
        (1 << 8, None),
        (signal.SIGKILL, None),  # the kernel counts its own
        (signal.SIGTERM, None),
    ],
)
@pytest.mark.parametrize("means", [Means.RLIMIT, Means.CGROUP2])
def test_memory_rlimit_is_recorded_when_the_task_fails(status, name, means):
    told = []
    over = limit_monitor.LimitMonitor(
        ResourceLimits(LIMITS, (), (), {"memory": means}), lambda *what: told.append(what)
    )
    over.report_counts(is_final=True, status=status)
    said = f"memory: the task ended by {name}, as programs do that are refused memory; each process may have 64 MiB"
    expected = name is not None and means is Means.RLIMIT
    assert told == ([(Reason.MEMORY_LIMIT, said, Outcome.BLOCKED)] if expected else [])
    assert over.reached == ((said,) if expected else ())
