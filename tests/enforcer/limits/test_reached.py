"""What is told of a task's limits: from the kernel's counts to sentences, and when."""

import pytest

from enforcer.limits import ward
from enforcer.limits.fence import Fence
from enforcer.limits.group import Counts
from enforcer.limits.reached import reached
from enforcer.limits.wanted import Limits, limits_of
from rules.sandbox import Box
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
        Counts(held_back=12.34),
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
def test_what_is_told(before, now, told):
    assert [(each.reason, each.detail) for each in reached(before, now, LIMITS)] == told


def test_waiting_is_no_refusal():
    assert [each.outcome for each in reached(NOTHING, Counts(1, 1, 1, 2.0), LIMITS)] == [
        Outcome.BLOCKED,
        Outcome.BLOCKED,
        Outcome.PASSED,
    ]


def test_without_a_limit_of_processors_nobody_waited_for_it():
    assert reached(NOTHING, Counts(held_back=99.0), Limits()) == []


def test_each_time_is_told_once_and_waiting_only_when_it_is_over(monkeypatch):
    counts = iter([Counts(1, 1, 0, 5.0), Counts(1, 1, 3, 6.0), Counts(1, 1, 3, 7.0)])
    monkeypatch.setattr(Fence, "counts", lambda _: next(counts))
    heard = []
    watched = ward.Ward(Fence(LIMITS, (), (), {}), lambda *what: heard.append(what[0]))
    watched.look()
    watched.look()
    watched.look(over=True)
    assert heard == [Reason.MEMORY_LIMIT, Reason.PROCESS_LIMIT, Reason.CPU_LIMIT]
    assert watched.told == (
        "memory: 1 process was killed, it may have 64 MiB",
        "processes: it could not start another 3 times, it may have 40 at most",
        "cpu: its threads were held back for 7.0 s, it may use 1.5 processors",
    )


def test_what_no_rule_says_is_bounded_by_the_host():
    assert limits_of(Box(), 8 << 30) == Limits(memory=6 << 30, processes=4096, disk=4 << 30)
    said = limits_of(Box(memory=1 << 30, timeout=5.0, hostname="x"), 8 << 30)
    assert (said.memory, said.timeout, said.said) == (1 << 30, 5.0, {"memory", "timeout"})
