"""State of one sandbox in its worker: task, policy, the day for its rules, and its quotas.

The socket gives the identity (invariant 4): a listener belongs to one sandbox. Sandboxes share nothing (invariant 11):
each has its own names, limits and counters, and a fixed quota of descriptors. A quota that grew while other sandboxes
are idle would show a sandbox what its neighbours do.
"""

import time
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.sandbox.rule_limits import Meters
from rules.attempt import NO_LABELS, Caller
from rules.verdicts import Trust

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sized

    from proxy.approvals.approval_request import Source
    from proxy.approvals.client import ApprovalsClient
    from proxy.approvals.leases import Grant, Lease
    from proxy.sandbox.taint import Taint
    from proxy.secrets import SecretInjector
    from proxy.secrets.detection import OwnSecrets
    from rules.decision import Decision
    from rules.matching.policy import Policy
    from rules.values.addresses import Address
    from rules.values.names import HostName


_DAY: Final = 86_400  # seconds
TAINT_NOT_RECORDED: Final = "the task's read from an untrusted source could not be recorded"  # `record_read` is False


class Calendar:
    """Current date in UTC for rules with `until`, computed once a day. It never goes back, so expired rules stay so."""

    __slots__ = ("_clock", "_ends", "_today")

    def __init__(self, clock: "Callable[[], float]" = time.time) -> None:
        self._clock = clock
        self._today = date.min
        self._ends = float("-inf")

    def today(self) -> date:
        """Return the current date; the same object all day, so callers may compare by identity."""
        now = self._clock()
        if now >= self._ends:
            self._today = datetime.fromtimestamp(now, UTC).date()
            self._ends = (now // _DAY + 1) * _DAY
        return self._today


class Task(NamedTuple):
    """Task of a sandbox: id, name and labels, as events name it."""

    id: str
    name: str
    labels: "Mapping[str, str]" = NO_LABELS


class SandboxState:
    """One sandbox as the gate sees it. A reload replaces `policy` as a whole; later attempts use the new one."""

    __slots__ = (
        "approvals",
        "calendar",
        "gate_port",
        "has_info_api",
        "holds_programs",
        "id",
        "is_foreign",
        "meters",
        "own_addresses",
        "own_secrets",
        "policy",
        "secret_injector",
        "taint",
        "tainted",
        "task",
    )  # fmt: skip

    def __init__(
        self,
        sandbox_id: str,
        task: Task,
        policy: "Policy",
        own_addresses: frozenset["Address"] = frozenset(),
        gate_port: int = 0,
    ) -> None:
        self.id = sandbox_id
        self.task = task
        self.policy = policy
        self.own_addresses = own_addresses  # the sandbox's own, on lo
        self.gate_port = gate_port  # where tproxy delivers; a connection that names it is refused
        self.is_foreign = False  # another program made the sandbox; it has its own resolv.conf
        self.has_info_api = True  # the task can send requests to `exeat.internal`
        self.calendar = Calendar()
        self.meters = Meters()  # usage of its rules' limits
        self.holds_programs = False  # its programs wait for a decision before they start (`commands`)
        self.secret_injector: SecretInjector | None = None  # None: it has no secrets; only its worker has them
        self.own_secrets: OwnSecrets | None = None  # detects secrets that it must not send; only in its worker
        self.approvals: ApprovalsClient | None = None  # None: there is no approvals server
        self.tainted = False  # it has read from an untrusted source (`taint`)
        self.taint: Taint | None = None

    def record_read(self, decision: "Decision", target: "HostName | Address", port: int, event: str) -> bool:
        """Record that the task reads from this target, if `decision` doesn't trust it. Call it before it reads.

        Returns False when the taint could not be recorded: the caller must then block the read.
        """
        if decision.trust is Trust.TRUSTED:
            return True
        if self.taint is None:
            self.tainted = True
            return True
        return self.taint.record_read(decision, target, port, event)

    @property
    def caller(self) -> Caller:
        """The caller of its attempts: task, labels, date and taint as of now."""
        return Caller(self.task.name, self.task.labels, self.calendar.today(), self.tainted)

    @property
    def sources(self) -> "tuple[Source, ...]":
        """The known untrusted sources that it has read from, shown in approval requests."""
        return () if self.taint is None else tuple(self.taint.sources)

    def lease(self, grants: "tuple[Grant, ...]", cut: "Callable[[Grant], None]") -> "Lease | None":
        """Return a lease on grants; `cut` is called with the first grant that ends. None: one has ended already."""
        return None if self.approvals is None else self.approvals.leases.enter(grants, cut)

    def set_secrets(self, secret_injector: "SecretInjector | None", password: bytes = b"") -> None:
        """Set its secrets and the password for the upstream proxy. The task itself may send neither."""
        self.secret_injector = secret_injector
        self.own_secrets = None
        if secret_injector is not None or password:
            from proxy.secrets.detection import make_secret_search  # few tasks have either

            self.own_secrets = make_secret_search(secret_injector, password)


MOST: Final = 512  # sandboxes of one worker, where there are descriptors for as many
RESERVED: Final = 96  # descriptors of the worker itself
OWN: Final = 12  # descriptors that every sandbox has from its start: its sockets, and its epoll set
LEAST: Final = 128  # descriptors that a sandbox must get beside those: 64 connections
_UNLIMITED: Final = 1 << 31


class DescriptorQuotas:
    """Divides a worker's descriptors among its sandboxes. For one thread."""

    def __init__(self, limit: int, most: int) -> None:
        """Divide `limit` descriptors (RLIMIT_NOFILE) among `most` sandboxes, or fewer where they would get too few."""
        free = max(limit - RESERVED, 0)
        self.most = max(min(most, free // (OWN + LEAST)), 1)
        self.each = max(free // self.most - OWN, 0)
        self._joined = 0

    @property
    def is_full(self) -> bool:
        """Whether the worker can take no other sandbox."""
        return self._joined >= self.most

    def join(self) -> "DescriptorQuota":
        """Give a sandbox its quota."""
        self._joined += 1
        return DescriptorQuota(self.each, self)

    def leave(self) -> None:
        """Return one quota."""
        self._joined -= 1


class DescriptorQuota:
    """Descriptor quota of one sandbox: how many it uses, and how many it may use. For one thread.

    Each connection counts one socket to a server. `extra` counts further ones: a name with sixteen addresses may have
    sixteen dialed at once, and each request of an HTTP/2 connection may need its own HTTP/1 connection. The caller
    checks `has_room` before it opens a socket, and counts the socket.
    """

    def __init__(self, most: int = _UNLIMITED, of: DescriptorQuotas | None = None) -> None:
        self.extra = 0
        self._most = most
        self._of = of
        self._counted: list[tuple[Sized, int, int]] = []

    def count(self, things: "Sized", each: int, most: int = _UNLIMITED) -> None:
        """Count `each` descriptors for each member of `things`, for at most `most` members."""
        self._counted.append((things, each, most))

    def has_room(self) -> bool:
        """Whether the sandbox may open one more descriptor."""
        used = self.extra
        for things, each, most in self._counted:
            used += each * min(len(things), most)
        return used < self._most

    def leave(self) -> None:
        """Return the quota to the worker. Idempotent."""
        of, self._of = self._of, None
        if of is not None:
            of.leave()


class ExtraSockets:
    """Extra sockets of one connection, counted in its sandbox's quota."""

    __slots__ = ("_count", "_quota")

    def __init__(self, quota: DescriptorQuota) -> None:
        self._quota = quota
        self._count = 0

    def has_room(self) -> bool:
        """Whether the connection may open one more socket."""
        return self._quota.has_room()

    def set(self, count: int) -> None:
        """Set how many extra sockets the connection has now."""
        count = max(count, 0)
        self._quota.extra += count - self._count
        self._count = count
