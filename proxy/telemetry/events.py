"""Events as typed values (msgspec structs), and their ids: the recorder makes them, `encoding` writes and reads them.

Home of invariant 6 (one decision, one event) together with the recorder. A value may hold any text that a sandbox
chose; `encoding` and `visible` escape it. On creation a value drops or masks what the journal must never store: a query
string, the user in an authority, a credential in an argument vector.

The fields of a class, in their order, are the members of its JSON object. A field at its default is left out.
"""

import os
import time
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Final, NamedTuple, Self

from msgspec import Meta, Struct
from msgspec.structs import force_setattr, replace

from proxy.telemetry.masking import masked
from rules.attempt import Protocol
from rules.verdicts import Mode, Outcome, Reason, Verdict


class Kind(StrEnum):
    """Kind of event. Each is documented in docs/reference/telemetry.md."""

    GATE_ERROR = "gate.error"
    CONNECTION_DECIDED = "connection.decided"
    CONNECTION_CLOSED = "connection.closed"
    REQUEST_DECIDED = "request.decided"
    REQUEST_COMPLETED = "request.completed"
    DNS_DECIDED = "dns.decided"
    TASK_STARTED = "task.started"
    TASK_ENDED = "task.ended"
    TASK_LIMITED = "task.limited"
    RULES_LOADED = "rules.loaded"
    RULES_REJECTED = "rules.rejected"
    TAMPERING_DETECTED = "tampering.detected"
    CHANGES_KEPT = "changes.kept"
    CHANGES_ACCEPTED = "changes.accepted"
    CHANGES_MERGED = "changes.merged"
    CHANGES_DISCARDED = "changes.discarded"
    SECRET_DETECTED = "secret.detected"
    COMMAND_DECIDED = "command.decided"
    SYSCALL_DENIED = "syscall.denied"
    AGENT_SAID = "agent.said"
    APPROVAL_ASKED = "approval.asked"
    APPROVAL_SEEN = "approval.seen"
    APPROVAL_ANSWERED = "approval.answered"
    APPROVAL_EXPIRED = "approval.expired"
    APPROVAL_USED = "approval.used"
    APPROVAL_REFUSED = "approval.refused"
    APPROVAL_STALE = "approval.stale"
    FLAG_SEEN = "flag.seen"
    TASK_TAINTED = "task.tainted"
    ANOMALY_DETECTED = "anomaly.detected"
    JOURNAL_OPENED = "journal.opened"
    JOURNAL_CHECKPOINT = "journal.checkpoint"
    JOURNAL_SEALED = "journal.sealed"
    JOURNAL_REPAIRED = "journal.repaired"
    JOURNAL_REMOVED = "journal.removed"
    JOURNAL_KEY = "journal.key"

    @classmethod
    def _missing_(cls, value: object) -> "Kind | None":
        """Read the name that a kind had before version 0.2, as journals of earlier versions have it."""
        return FORMER_KINDS.get(value) if isinstance(value, str) else None

    def names(self) -> tuple[str, ...]:
        """Return every name of the kind in journals, the current one first."""
        return (self.value, *(name for name, kind in FORMER_KINDS.items() if kind is self))


# Names of kinds before version 0.2: old journals contain them, and every reader maps them to the current kind.
FORMER_KINDS: Final = {
    "tamper": Kind.TAMPERING_DETECTED,
    "leak.found": Kind.SECRET_DETECTED,
    "call.refused": Kind.SYSCALL_DENIED,
    "task.unusual": Kind.ANOMALY_DETECTED,
}

CLIENT_LEFT = "the client went away while people were asked"  # the detail of such an attempt
DECISIONS = frozenset({Kind.CONNECTION_DECIDED, Kind.REQUEST_DECIDED, Kind.DNS_DECIDED})
ATTEMPTS = DECISIONS | {Kind.COMMAND_DECIDED}
STOPPED = frozenset({Outcome.BLOCKED, Outcome.FAILED})
APPROVALS = frozenset({
    Kind.APPROVAL_ASKED, Kind.APPROVAL_SEEN, Kind.APPROVAL_ANSWERED, Kind.APPROVAL_EXPIRED, Kind.APPROVAL_USED,
    Kind.APPROVAL_REFUSED, Kind.APPROVAL_STALE,
})  # fmt: skip
# Events of the journal about itself, written every few seconds: readers show them only on request.
BOOKKEEPING = frozenset({Kind.JOURNAL_OPENED, Kind.JOURNAL_CHECKPOINT, Kind.JOURNAL_SEALED})


class Component(StrEnum):
    """Component in which an error happened (`fault.where`)."""

    OTHER = "other"
    ACCEPT = "accept"
    PEEK = "peek"
    DECIDE = "decide"
    DIAL = "dial"
    RELAY = "relay"
    RESOLVER = "resolver"
    REFUSALS = "refusals"  # the kernel's log of refused packets
    INSPECTION = "inspection"
    ADDON = "addon"
    JOURNAL = "journal"
    METRICS = "metrics"
    WORKER = "worker"
    INFO_API = "desk"  # the info API; journals keep the former word
    SUPERVISOR = "watcher"  # the seccomp supervisor; journals keep the former word
    APPROVALS = "approvals"  # the approvals client and server


Whole = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]  # the range that other JSON readers support
Count = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Real = Annotated[float, Meta(ge=0, le=1e15)]  # seconds


class Instant(int):
    """Nanoseconds since 1970, UTC. A line has it as RFC 3339 text with nine decimals."""

    __slots__ = ()


class Seconds(float):
    """A duration. A line has it with six decimals."""

    __slots__ = ()


class Value(Struct, frozen=True, omit_defaults=True):
    """Part of an event: immutable. Its JSON object leaves out the fields at their default."""

    def _replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed, masked like any new value."""
        return replace(self, **changes)


class Task(Value, frozen=True):
    """A task, as its starter named it."""

    id: str = ""
    name: str = ""
    labels: Mapping[str, str] = {}


NO_TASK = Task()


class Origin(NamedTuple):
    """Task, sandbox and host: the members that all events of a sandbox share."""

    task: Task = NO_TASK
    sandbox: str = ""
    host: str = ""

    @classmethod
    def of(cls, task: str, name: str, labels: Mapping[str, str], sandbox: str, host: str) -> Self:
        """Return the origin of a task's events."""
        return cls(Task(task, name, dict(labels)) if task or name or labels else NO_TASK, sandbox, host)


class Process(Value, frozen=True):
    """Process in the sandbox, read from /proc while its connection, command or call was held."""

    pid: Whole
    exe: str
    argv: tuple[str, ...] = ()
    uid: Whole | None = None  # on the host
    ancestors: tuple[str, ...] = ()  # executables, parent first
    ancestor_pids: tuple[Whole, ...] = ()  # theirs, in the same order
    sandbox_uid: Whole | None = None  # inside the sandbox: 0 or 1000; not a user of the host

    def __post_init__(self) -> None:
        """Mask what looks like a credential."""
        if self.argv:
            force_setattr(self, "argv", masked(self.argv))


class Destination(Value, frozen=True):
    """Destination of an attempt: the name that the client used and the address, where known.

    `via` is the proxy that makes the connection; the gate then doesn't know the address.
    """

    name: str | None = None
    address: str | None = None
    port: Whole | None = None
    via: str | None = None  # a URL, without a user


class Tls(Value, frozen=True):
    """Fields of a ClientHello."""

    sni: str | None = None
    alpn: tuple[str, ...] = ()
    version: str | None = None
    ech: bool = False
    ja4: str | None = None


class Http(Value, frozen=True):
    """Request without the parts that may hold secrets: query, fragment, body, and the user in the authority."""

    method: str | None = None
    host: str | None = None
    path: str | None = None
    status: Whole | None = None
    body: bool | None = None  # whether one follows the head; None: not recorded
    websocket: bool = False  # a handshake (RFC 6455 section 4.1)
    query: Whole = 0  # bytes of the query, which is not recorded
    pattern: bool = False  # `path` has the paths of rules with `log: pattern`

    def __post_init__(self) -> None:
        """Drop the parts that may hold a secret, so that no caller can forget to."""
        path, host = self.path, self.host
        if path is not None and (path[:1] != "/" or "?" in path or "#" in path):
            force_setattr(self, "path", bare_path(path))
        if host is not None and "@" in host:
            force_setattr(self, "host", host.rpartition("@")[2])


def bare_path(target: str) -> str:
    """Return the path of a request target (RFC 9112 section 3.2) in origin or absolute form, and nothing else."""
    path = target.partition("?")[0].partition("#")[0]
    scheme, separator, rest = path.partition("://")
    if separator and "/" not in scheme:
        return "/" + rest.partition("/")[2]
    return path if path.startswith("/") else path.rpartition("@")[2]


class Dns(Value, frozen=True):
    """Query, its type as text (`A`, `TYPE65`), and the answers."""

    question: str
    type: str
    answers: tuple[str, ...] = ()


class Git(Value, frozen=True):
    """Git operation of a request, where rules inspect it.

    `refs` has one text for each ref of a push: the change (create, update, delete), the ref, the old and the new
    object, separated by spaces.
    """

    service: str  # fetch, push
    repository: str
    refs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Mask what looks like a credential."""
        force_setattr(self, "repository", masked((self.repository,))[0])
        force_setattr(self, "refs", masked(self.refs))


class Transferred(Value, frozen=True):
    """Bytes of payload: `up` leaves the sandbox, `down` enters it."""

    up: Whole
    down: Whole


class Ending(Value, frozen=True):
    """How a task's process ended: its exit status, or the number of the signal that killed it."""

    status: Whole | None = None
    signal: Whole | None = None


class Fault(Value, frozen=True):
    """Unexpected error, and the component in which it happened."""

    where: Component
    detail: str


class Mark(Value, frozen=True):
    """State of one journal file, in the journal's own events."""

    segment: str  # `2026-11-18/0003`, `2026-11-18/ledger`, or a day
    lines: Whole | None = None  # complete lines in the file
    head: str = ""  # hash of the last of them
    closed: bool = False  # no line will be added
    format: Whole | None = None
    writer: Whole | None = None  # process id, on the host
    after: str = ""  # in the first line: the ledger that existed at that time
    follows: str = ""  # and the hash of the last line of that ledger at that time
    key: str = ""  # id of the key that signed the line


class Agent(Value, frozen=True):
    """Telemetry (OpenTelemetry) from a program of the task: a claim, not verified."""

    source: str  # log, span
    name: str = ""
    service: str = ""
    conversation: str = ""
    call: str = ""
    tool: str = ""
    at: Whole = 0  # ns since 1970, by its own clock; 0: not stated
    attributes: Mapping[str, str] = {}


class Answer(StrEnum):
    """Answer to an approval request, or why there was none."""

    REJECTED = "rejected"
    UNAVAILABLE = "unavailable"  # no approver could be reached
    FLOOD = "flood"  # too many requests are pending
    WIDE = "wide"  # the request covers more than one answer may grant
    TIMEOUT = "timeout"  # no answer in time
    PASS = "pass"  # a reviewer program leaves it to people
    APPROVED = "approved"


class Approval(Value, frozen=True):
    """Approval request in an event, and its answer; a decision has only the `id`.

    The `ask` rules, the destination, the request and the process are in the event's own fields.
    """

    id: str = ""  # empty: refused before it got an id
    about: str = ""  # connection, request, push, udp, command, merge
    by: tuple[str, ...] = ()  # approvers, by their names in the registry
    answer: Answer | None = None
    final: bool = False  # later answers are ignored
    why: str = ""  # comment of the requester or the approver
    grants: tuple[str, ...] = ()  # ids
    width: str = ""  # what a grant covers: attempt, destination, rule
    uses: Whole | None = None  # uses granted; in `approval.used`, uses left
    bytes: Whole | None = None  # likewise
    until: Whole | None = None  # s since 1970: end of the grant; in `approval.asked`, end of the wait
    agent: bool = False  # the task submitted it itself
    joined: bool = False  # waits for the answer to an identical pending request


class Anomaly(Value, frozen=True):
    """Anomaly: activity of a task that earlier runs of its name did not show."""

    what: str  # destination, bytes_up
    got: Whole
    usual: Whole  # maximum of the earlier runs
    runs: Whole  # number of earlier runs known


class StartedBy(Value, frozen=True):
    """User who started a task: the login user on the host, before any sudo(8) or su(1)."""

    uid: Whole
    name: str = ""  # empty: no account has this uid


class Event(Value, frozen=True):
    """Event. Fields that a kind does not have are None or empty; its line leaves them out."""

    time: Instant
    id: str  # UUIDv7
    kind: Kind
    verdict: Verdict | None = None
    outcome: Outcome | None = None
    reason: Reason | None = None
    rules: tuple[str, ...] = ()
    revision: str = ""
    mode: Mode | None = None
    task: Task = NO_TASK
    sandbox: str = ""
    host: str = ""
    cause: str | None = None  # id of the event that led to this one
    destination: Destination | None = None
    protocol: Protocol | None = None
    bytes: Transferred | None = None
    duration: Seconds | None = None
    tls: Tls | None = None
    http: Http | None = None
    dns: Dns | None = None
    process: Process | None = None
    argv: tuple[str, ...] = ()  # of a task or a command; the caller masks it
    call: str = ""  # the denied system call
    ending: Ending | None = None
    previous: str = ""  # revision in force before
    sources: tuple[str, ...] = ()  # rule files that were loaded
    problems: tuple[str, ...] = ()  # why rule files were rejected: `file:line:column: message`
    fault: Fault | None = None
    detail: str = ""  # explanation in words
    by: str = ""  # user on this host
    paths: tuple[str, ...] = ()  # relative to the task's workspace
    git: Git | None = None
    started_by: StartedBy | None = None
    workspace: str = ""  # of a task: its working directory on the host
    approval: Approval | None = None
    unusual: Anomaly | None = None
    agent: Agent | None = None
    journal: Mark | None = None

    def __post_init__(self) -> None:
        """Convert the time and the duration to the types that define their encoding."""
        if type(self.time) is not Instant:
            force_setattr(self, "time", Instant(self.time))
        if self.duration is not None and type(self.duration) is not Seconds:
            force_setattr(self, "duration", Seconds(self.duration))


_NS_A_MILLISECOND = 1_000_000
_LEADING = 1 << 60  # bit above an instant: keeps the number of hex digits constant
_VARIANT = bytes(0b10 << 6 | byte & 0x3F for byte in range(256))  # sets the variant bits `10` in front of rand_b
_AT_ONCE = 64  # ids per read of random bytes: one system call for each id would double its cost


class IdMaker:
    """Makes increasing ids (UUIDv7, RFC 9562), also when the clock is set back.

    rand_a holds the fraction of the millisecond (section 6.2, method 3). If the clock has not advanced since the last
    id, the maker uses the last value plus one. rand_b is random, each bit used once, so that two processes never
    collide. Not thread-safe; call `forked` after a fork.
    """

    __slots__ = ("_last", "_noise", "_variants")

    def __init__(self) -> None:
        self._last = 0  # milliseconds and their fraction, 60 bits
        self._variants: list[str] = []  # unused first four digits of rand_b, variant included
        self._noise: list[str] = []  # unused other twelve digits

    def forked(self) -> None:
        """Drop the random bytes that the parent process has too."""
        self._variants, self._noise = [], []

    def make(self, now: int | None = None) -> str:
        """Return a new id for the time `now` (ns since 1970)."""
        nanoseconds = time.time_ns() if now is None else now
        instant = (nanoseconds << 12) // _NS_A_MILLISECOND
        if instant <= self._last:
            instant = self._last + 1
        self._last = instant
        if not self._noise:
            self._get_noise()
        clock = hex(_LEADING | instant)[3:]
        return f"{clock[:8]}-{clock[8:12]}-7{clock[12:]}-{self._variants.pop()}-{self._noise.pop()}"

    def _get_noise(self) -> None:
        variants = bytearray(os.urandom(2 * _AT_ONCE))
        variants[::2] = variants[::2].translate(_VARIANT)
        self._variants = variants.hex("-", 2).split("-")
        self._noise = os.urandom(6 * _AT_ONCE).hex("-", 6).split("-")
