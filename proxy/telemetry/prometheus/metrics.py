"""Metrics of one process, counts of pending approvals, and the tally of one task: plain numbers until a scrape.

Counting is cheap, as every connection does it. Labels come from closed sets (invariant 7): never a host name, a task or
a path. A value outside its set counts as `other`. The first rendering imports `exposition` and prometheus_client.
"""

import os
import re
import resource
import time
from bisect import bisect_left
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple, Protocol

from msgspec import Meta, Struct

from proxy.telemetry.events import STOPPED, Answer, Component, Count, Kind, Real
from proxy.telemetry.summary import MOST_PLACES, MOST_SHOWN, Places, Summary
from rules.verdicts import Outcome, Reason

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable
    from datetime import date

    from rules.verdicts import Mode, Verdict


STALE: Final = "stale"  # the waiting client has left
ANSWERS: Final = frozenset({*(each.value for each in Answer if each is not Answer.PASS), STALE})
BOUNDS: Final = (0.05, 0.25, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0)  # seconds: the scale of a person


class PendingCounts(Struct, frozen=True):
    """`ApprovalWaits` of one process as a message."""

    answers: Mapping[str, Count]
    counts: Annotated[list[Count], Meta(min_length=len(BOUNDS) + 1, max_length=len(BOUNDS) + 1)]
    seconds: Real
    pending: Count
    age: Real


class ApprovalWaits:
    """Counts pending approvals; `merge` adds those of other processes."""

    __slots__ = ("_others", "_others_age", "_since", "answers", "counts", "seconds")

    def __init__(self) -> None:
        self._since: dict[Hashable, float] = {}
        self._others = 0
        self._others_age = 0.0
        self.answers: dict[str, int] = {}  # number of ended waits, by answer
        self.counts = [0] * (len(BOUNDS) + 1)  # histogram of the waits; the last: above all bounds
        self.seconds = 0.0  # sum of all waits

    @property
    def pending(self) -> int:
        """Number of attempts that wait now."""
        return len(self._since) + self._others

    @property
    def age(self) -> float:
        """Seconds that the oldest attempt has waited; 0 if none waits."""
        own = time.monotonic() - min(self._since.values()) if self._since else 0.0
        return max(own, self._others_age)

    def start(self, key: "Hashable") -> None:
        """Start the wait of an attempt with a unique `key`."""
        self._since[key] = time.monotonic()

    def finish(self, key: "Hashable", answer: Answer | None) -> None:
        """End the wait of an attempt with its answer; None: the client left. Unknown keys are ignored."""
        began = self._since.pop(key, None)
        if began is None:
            return
        seconds = time.monotonic() - began
        self.count_answer(answer)
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.seconds += seconds

    def finish_or_count(self, key: "Hashable", answer: Answer) -> None:
        """Count the answer of an attempt that may never have waited."""
        if key in self._since:
            self.finish(key, answer)
        else:
            self.count_answer(answer)

    def count_answer(self, answer: Answer | None) -> None:
        """Count the answer of an attempt that never waited: no approver, or too many requests."""
        word = STALE if answer is None else answer.value
        self.answers[word] = self.answers.get(word, 0) + 1

    def merge(self, other: "ApprovalWaits", *, ended: bool = False) -> None:
        """Add the numbers of another process; `ended`: without its current state."""
        for word, count in other.answers.items():
            self.answers[word] = self.answers.get(word, 0) + count
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        self.seconds += other.seconds
        if not ended:
            self._others += other.pending
            self._others_age = max(self._others_age, other.age)

    def to_message(self) -> "PendingCounts":
        """Return the message for another process."""
        return PendingCounts(self.answers, self.counts, self.seconds, self.pending, self.age)

    @classmethod
    def from_message(cls, counts: "PendingCounts") -> "ApprovalWaits":
        """Read the message of another process, which is not trusted. Raises ValueError."""
        if not counts.answers.keys() <= ANSWERS:
            raise ValueError("unknown answers")
        found = cls()
        found.answers, found.counts, found.seconds = dict(counts.answers), counts.counts, counts.seconds
        found._others, found._others_age = counts.pending, counts.age
        return found


OTHER = "other"
DNS_TYPES = frozenset(
    ("A", "AAAA", "ANY", "CAA", "CNAME", "HTTPS", "MX", "NS", "NULL", "PTR", "SOA", "SRV", "SVCB", "TXT")
)
PACKET_KINDS = frozenset({"tcp", "udp", "quic", "icmp", "dns_destination"})
UNUSUAL = frozenset({"destination", "bytes_up"})
TASK_OUTCOMES = frozenset({"passed", "blocked", "failed"})
MOST_RULES = 1_000  # rules with their own series
SOON = 7  # days
_MOST_CALLS = 100
CONNECTED = "connected"  # the dial result without a reason

# Seconds. Deciding takes microseconds, a dial milliseconds, a connection anything up to hours.
_DECISION = (5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 5e-3, 2.5e-2)
_DIAL = (5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_CONNECTION = (0.01, 0.05, 0.25, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0)
_START = (0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.5, 1.0, 2.5, 10.0)


class LimitUse(Protocol):
    """Source of the use of each limit."""

    def used(self) -> dict[tuple[str, str], float]:
        """Return the use of each limit, 0 to 1, by rule and field."""


class Histogram:
    """Counts of observations (seconds) between fixed upper bounds, and their sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)  # the last: above all bounds
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Count one observation."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds


class Metrics:
    """All numbers of one process. Only ever touched from one thread."""

    def __init__(self) -> None:
        self.decisions: dict[tuple[Kind, Verdict, Outcome, Reason], int] = {}
        self.rule_decisions: dict[tuple[str, Verdict], int] = {}
        self.dns_queries: dict[tuple[str, Verdict], int] = {}
        self.events: dict[Kind, int] = {}
        self.events_dropped = 0  # by the journal
        self.journal_bytes = 0
        self.agent_records_refused = 0
        self.gate_errors: dict[Component, int] = {}
        self.packets_refused: dict[str, int] = {}
        self.calls_refused: dict[str, int] = {}  # system calls, by name
        self.datagrams_refused = 0  # by the gate; the kernel's refusals count as packets
        self.datagrams_lost: dict[str, int] = {}  # allowed and not forwarded, by direction
        self.connections_open = 0
        self.bytes_up = self.bytes_down = 0
        self.connection_seconds = Histogram(_CONNECTION)
        self.decision_seconds = Histogram(_DECISION)
        self.peek_seconds = Histogram(_DIAL)
        self.dial_seconds: dict[str, Histogram] = {}
        self.limits: LimitUse | None = None  # of the sandbox; read at each scrape
        self.in_force: dict[str, Mode] = {}  # by revision: one policy; in totals those of all sandboxes
        self.known_rules: frozenset[str] = frozenset()
        self.rule_endings: tuple[date, ...] = ()  # last days of rules with an end
        self.rules_valid = False
        self.rules_loads: dict[str, int] = {}
        self.rules_loaded_at: float | None = None  # seconds since 1970
        self.ca_expiry: float | None = None  # seconds since 1970
        self.sandboxes = 0
        self.sandbox_start_seconds = Histogram(_START)
        self.tasks: dict[str, int] = {}
        self.waiting = ApprovalWaits()  # pending approvals
        self.tasks_tainted = 0
        self.flags = (0, 0.0)  # unreviewed flagged events, and the time of the oldest (s since 1970)
        self.tasks_unusual: dict[str, int] = {}  # by kind of anomaly
        self.worker_restarts = 0
        self.processes: dict[str, int | ProcessUse] = {}  # by role: its pid, or its reported use

    def decided(
        self, kind: Kind, verdict: "Verdict", outcome: Outcome, reason: Reason, rules: "Iterable[str]" = ()
    ) -> None:
        """Count a decision and each of its rules; unknown rules, and rules beyond the limit, as `other`."""
        key = (kind, verdict, outcome, reason)
        self.decisions[key] = self.decisions.get(key, 0) + 1
        for rule in rules:
            by_rule = (rule if rule in self.known_rules else OTHER, verdict)
            self.rule_decisions[by_rule] = self.rule_decisions.get(by_rule, 0) + 1

    def limits_used(self) -> dict[tuple[str, str], float]:
        """Return the use of each limit, 0 to 1, by rule and field, for rules with their own series."""
        used = {} if self.limits is None else self.limits.used()
        return {key: share for key, share in used.items() if key[0] in self.known_rules}

    def rules_expiring(self, today: "date") -> int:
        """Count the rules that end within `SOON` days."""
        return sum(0 <= ending.toordinal() - today.toordinal() < SOON for ending in self.rule_endings)

    def dns_query(self, question_type: str, verdict: "Verdict") -> None:
        """Count a DNS query by its type."""
        key = (question_type if question_type in DNS_TYPES else OTHER, verdict)
        self.dns_queries[key] = self.dns_queries.get(key, 0) + 1

    def count_events(self, kind: "Kind", length: int, times: int = 1) -> None:
        """Count written events of a kind, with `length` bytes in total."""
        self.events[kind] = self.events.get(kind, 0) + times
        self.journal_bytes += length

    def dialled(self, reason: "Reason | None", seconds: float) -> None:
        """Count a dial; `reason` is its failure, None for a connection."""
        result = CONNECTED if reason is None else reason.value
        histogram = self.dial_seconds.get(result)
        if histogram is None:
            histogram = self.dial_seconds[result] = self.dial_histogram()
        histogram.observe(seconds)

    @staticmethod
    def dial_histogram() -> Histogram:
        """Return an empty histogram of dials."""
        return Histogram(_DIAL)

    def failed(self, where: Component, times: int = 1) -> None:
        """Count an unexpected error."""
        self.gate_errors[where] = self.gate_errors.get(where, 0) + times

    def refused_packets(self, counts: "Mapping[str, int]") -> None:
        """Set the totals of the kernel's ruleset, by kind: packets refused since its installation."""
        totals: dict[str, int] = {}
        for kind, count in counts.items():
            label = kind if kind in PACKET_KINDS else OTHER
            totals[label] = totals.get(label, 0) + count
        self.packets_refused = totals

    def refused_call(self, call: str, times: int) -> None:
        """Count denied system calls by name; names beyond the limit count as `other`."""
        label = call if call in self.calls_refused or len(self.calls_refused) < _MOST_CALLS else OTHER
        self.calls_refused[label] = self.calls_refused.get(label, 0) + times

    def rules_loaded(
        self, revision: str, rules: "Iterable[str]", mode: "Mode", now: float, endings: "Iterable[date]" = ()
    ) -> None:
        """Set the policy in force from `now` (seconds since 1970) on, and the last days of its rules."""
        self.rule_endings = tuple(endings)
        self.in_force = {revision: mode}
        self.rules_valid = True
        self.rules_loaded_at = now
        # In file order, so that a reload keeps as many series as possible.
        self.known_rules = frozenset(islice(rules, MOST_RULES))
        self.rules_loads["loaded"] = self.rules_loads.get("loaded", 0) + 1
        # Counts of removed rules go to `other`: reloads must not add series for ever.
        counted, self.rule_decisions = self.rule_decisions, {}
        for (rule, verdict), count in counted.items():
            key = (rule if rule in self.known_rules else OTHER, verdict)
            self.rule_decisions[key] = self.rule_decisions.get(key, 0) + count

    def rules_rejected(self) -> None:
        """Record that the current rule files are invalid; an older policy may still be in force."""
        self.rules_valid = False
        self.rules_loads["rejected"] = self.rules_loads.get("rejected", 0) + 1

    def sandbox_started(self, seconds: float) -> None:
        """Count a sandbox that took `seconds` from the command to the task's first instruction."""
        self.sandboxes += 1
        self.sandbox_start_seconds.observe(seconds)

    def sandbox_ended(self) -> None:
        """Count an ended sandbox."""
        self.sandboxes -= 1

    def task_ended(self, outcome: "Outcome") -> None:
        """Count a task: `passed` has run, `blocked` was refused, `failed` did not start or lost its gate."""
        label = outcome.value if outcome.value in TASK_OUTCOMES else OTHER
        self.tasks[label] = self.tasks.get(label, 0) + 1

    def unusual(self, what: str, times: int = 1) -> None:
        """Count an anomaly."""
        label = what if what in UNUSUAL else OTHER
        self.tasks_unusual[label] = self.tasks_unusual.get(label, 0) + times

    def watch(self, role: str, pid: int) -> None:
        """Export the process_* metrics of a process under a role: `worker`, `launcher`."""
        self.processes[role] = pid

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format. The first call imports prometheus_client: about 75 ms."""
        from proxy.telemetry.prometheus.exposition import render  # 75 ms, only for a scrape

        return render(self)


_MOST_CALL_NAMES = 64  # names of system calls
_LONGEST_NAME = 255  # characters, as long as a name can be


class Tally:
    """Counts of a running task. Each attempt counts once: by its decision, or by its end if that differs."""

    __slots__ = ("_blocked", "_calls", "_counts", "_failed", "_given_up", "_held", "_leaked", "_leaks", "dropped",
                 "flagged", "tampers")  # fmt: skip

    def __init__(self) -> None:
        self._counts: dict[tuple[Kind, Outcome], int] = {}
        self._blocked: dict[str, Reason | None] = {}
        self._failed: dict[str, Reason | None] = {}
        self._leaked: dict[str, Reason | None] = {}
        self._calls: set[str] = set()
        self.dropped = 0
        self._leaks = 0
        self._held: dict[Reason, int] = {}
        self._given_up = 0
        self.flagged = 0
        self.tampers = 0

    def decided(
        self, kind: Kind, outcome: Outcome, name: str | None, address: object, reason: Reason | None = None
    ) -> None:
        """Count an attempt."""
        key = (kind, outcome)
        self._counts[key] = self._counts.get(key, 0) + 1
        if outcome is Outcome.BLOCKED:
            _add_place(self._blocked, name, address, reason)
        elif outcome is Outcome.FAILED:
            _add_place(self._failed, name, address)

    def ended(  # noqa: PLR0917  the parts of an attempt
        self,
        kind: Kind,
        decided: Outcome,
        outcome: Outcome,
        name: str | None,
        address: object,
        reason: Reason | None = None,
    ) -> None:
        """Change the count of an allowed attempt that was later cut, blocked or failed."""
        if outcome in STOPPED:
            self._counts[kind, decided] -= 1
            self.decided(kind, outcome, name, address, reason=reason)

    def count_secret(self, name: str | None, address: object) -> None:
        """Count a detected secret that was not blocked."""
        self._leaks += 1
        _add_place(self._leaked, name, address)

    def held(self, reason: Reason, *, given_up: bool = False) -> None:
        """Count a held attempt by the reason of its decision.

        `given_up`: the client left before the answer.
        """
        self._held[reason] = self._held.get(reason, 0) + 1
        self._given_up += given_up and reason is Reason.APPROVAL_TIMEOUT

    def count_denied_call(self, call: str) -> None:
        """Add the name of a denied system call; the filter records a few dozen names."""
        if len(self._calls) < _MOST_CALL_NAMES:
            self._calls.add(call)

    def summary(self) -> Summary:
        """Return the counts so far."""
        counts = tuple((kind, outcome, count) for (kind, outcome), count in self._counts.items() if count)
        blocked, failed, count_secret = map(Places.of, (self._blocked, self._failed, self._leaked))
        held = dict(self._held)
        reasons = list(islice(self._blocked.values(), MOST_SHOWN))
        why = () if None in reasons else tuple(reason for reason in reasons if reason is not None)
        return Summary(
            counts,
            blocked,
            failed,
            self._leaks,
            count_secret,
            self.tampers,
            held,
            self._given_up,
            self.flagged,
            why,
            frozenset(self._calls),
            self.dropped,
        )


def _add_place(
    places: dict[str, Reason | None], name: str | None, address: object, reason: Reason | None = None
) -> None:
    if len(places) < MOST_PLACES:
        places.setdefault((name or str(address or "an unknown host"))[:_LONGEST_NAME], reason)


_AFTER_COMMAND = 3  # number of the first field after the command's name, from 1 as in the manual page
_UTIME, _STIME, _STARTTIME, _VSIZE, _RSS = 14, 15, 22, 23, 24
_OPEN_FILES = re.compile(rb"^Max open files\s+(\d+)", re.MULTILINE)
_BOOT_TIME = re.compile(rb"^btime (\d+)$", re.MULTILINE)


class ProcessUse(NamedTuple):
    """Resource use of a process. Times in seconds, `started` since 1970; None: not readable."""

    cpu_seconds: Real
    resident_bytes: Count
    virtual_bytes: Count
    started: Real
    open_descriptors: Count | None
    most_descriptors: Count | None


def read_process(pid: int) -> ProcessUse | None:
    """Return the resource use of a process; None if it has ended or is hidden."""
    home = Path("/proc") / str(pid)
    try:
        stat = (home / "stat").read_bytes()
        boot = _BOOT_TIME.search(Path("/proc/stat").read_bytes())
    except OSError:
        return None
    # The command's name is in parentheses and may contain any byte, even parentheses.
    fields = stat.rpartition(b")")[2].split()

    def field(number: int) -> int:
        return int(fields[number - _AFTER_COMMAND])

    ticks = os.sysconf("SC_CLK_TCK")
    return ProcessUse(
        cpu_seconds=(field(_UTIME) + field(_STIME)) / ticks,
        resident_bytes=field(_RSS) * resource.getpagesize(),
        virtual_bytes=field(_VSIZE),
        started=(int(boot[1]) if boot else 0) + field(_STARTTIME) / ticks,
        open_descriptors=_open_descriptors(home),
        most_descriptors=_most_descriptors(home),
    )


def _open_descriptors(home: Path) -> int | None:
    try:
        return len(os.listdir(home / "fd"))
    except OSError:
        return None


def _most_descriptors(home: Path) -> int | None:
    try:
        found = _OPEN_FILES.search((home / "limits").read_bytes())
    except OSError:
        return None
    return int(found[1]) if found else None
