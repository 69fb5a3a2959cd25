"""State of one sandbox in its worker: task, policy, the day for its rules, and its quotas.

Identity comes from the socket (invariant 4): a listener belongs to one sandbox. Nothing of a sandbox is shared with
another (invariant 11): names, limits and counters hang on its object, and its quota of descriptors is fixed. A quota
that grew while others are idle would show each sandbox what its neighbours do, so nothing is lent.
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
    from rules.addresses import Address
    from rules.decision import Decision
    from rules.matching.policy import Policy
    from rules.names import HostName


_DAY: Final = 86_400  # seconds
UNNOTED: Final = "that the task reads from an untrusted source could not be kept"  # where `SandboxState.reads` is False


class Calendar:
    """Which day it is, for rules with `until`: UTC, worked out once a day. It never goes back, as a clock may.

    Then what has expired stays so.
    """

    __slots__ = ("_clock", "_ends", "_today")

    def __init__(self, clock: "Callable[[], float]" = time.time) -> None:
        self._clock = clock
        self._today = date.min
        self._ends = float("-inf")

    def today(self) -> date:
        """Return the day; the same object all day long."""
        now = self._clock()
        if now >= self._ends:
            self._today = datetime.fromtimestamp(now, UTC).date()
            self._ends = (now // _DAY + 1) * _DAY
        return self._today


class Task(NamedTuple):
    """What a sandbox runs, as events name it."""

    id: str
    name: str
    labels: "Mapping[str, str]" = NO_LABELS


class SandboxState:
    """A sandbox behind the gate. `policy` is swapped whole on a reload; new attempts see the new one."""

    __slots__ = (
        "asking",
        "broker",
        "calendar",
        "desk",
        "foreign",
        "gate_port",
        "holds_programs",
        "id",
        "meters",
        "own",
        "own_addresses",
        "policy",
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
        self.foreign = False  # whether somebody else made it, with a resolver configuration of its own
        self.desk = True  # whether it can ask about itself at `exeat.internal`
        self.calendar = Calendar()
        self.meters = Meters()  # what it has used of its rules' limits
        self.holds_programs = False  # whether its programs wait until they are answered for (`commands`)
        self.broker: SecretInjector | None = None  # its secrets, where it has any; in its worker alone
        self.own: OwnSecrets | None = None  # looks for what it must not send; in its worker alone
        self.asking: ApprovalsClient | None = None  # who asks people, where there is a registry of approvals
        self.tainted = False  # whether it has read what nobody vouches for, as far as is known (`taint`)
        self.taint: Taint | None = None

    def reads(self, decision: "Decision", target: "HostName | Address", port: int, event: str) -> bool:
        """Take note that `decision` lets it read from there; call it before anything of that can reach the task.

        False: that can't be kept, so it must not.
        """
        if decision.trust is Trust.TRUSTED:
            return True
        if self.taint is None:
            self.tainted = True
            return True
        return self.taint.reads(decision, target, port, event)

    @property
    def caller(self) -> Caller:
        """Who tries what it tries, now."""
        return Caller(self.task.name, self.task.labels, self.calendar.today(), self.tainted)

    @property
    def sources(self) -> "tuple[Source, ...]":
        """The untrusted sources that it has read from, as far as they are known, for who is asked about it."""
        return () if self.taint is None else tuple(self.taint.sources)

    def lease(self, grants: "tuple[Grant, ...]", cut: "Callable[[Grant], None]") -> "Lease | None":
        """Pass under grants until the first of them ends, which `cut` is called with. None: one has already."""
        return None if self.asking is None else self.asking.passes.enter(grants, cut)

    def entrust(self, broker: "SecretInjector | None", password: bytes = b"") -> None:
        """Take its secrets, and our password at the upstream proxy: the task itself may send none of that."""
        self.broker = broker
        self.own = None
        if broker is not None or password:
            from proxy.secrets.detection import watched  # few tasks have either

            self.own = watched(broker, password)


MOST: Final = 512  # sandboxes of one worker, where there are descriptors for as many
RESERVED: Final = 96  # descriptors that are nobody's: the worker's own
OWN: Final = 12  # that every sandbox has from its start: its sockets, and its place in the poller
LEAST: Final = 128  # that a sandbox must have beside them: 64 connections
_UNLIMITED: Final = 1 << 31


class DescriptorQuotas:
    """One worker's descriptors. For one thread."""

    def __init__(self, limit: int, most: int) -> None:
        """Divide `limit` descriptors (RLIMIT_NOFILE) among `most` sandboxes, or fewer where they would get too few."""
        free = max(limit - RESERVED, 0)
        self.most = max(min(most, free // (OWN + LEAST)), 1)
        self.each = max(free // self.most - OWN, 0)
        self._joined = 0

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another sandbox."""
        return self._joined >= self.most

    def join(self) -> "DescriptorQuota":
        """Give a sandbox its quota."""
        self._joined += 1
        return DescriptorQuota(self.each, self)

    def leave(self) -> None:
        """Take a quota back."""
        self._joined -= 1


class DescriptorQuota:
    """One sandbox's descriptors, in use and at most. For one thread.

    `extra` are sockets to servers beside the one that each connection is counted with: a name with sixteen addresses,
    none of which answers, has as many dialed at once, and behind one HTTP/2 connection each request has a connection
    of its own where the server speaks HTTP/1. Whoever opens one asks `has_room` before, and counts it.
    """

    def __init__(self, most: int = _UNLIMITED, of: DescriptorQuotas | None = None) -> None:
        self.extra = 0
        self._most = most
        self._of = of
        self._counted: list[tuple[Sized, int, int]] = []

    def count(self, things: "Sized", each: int, most: int = _UNLIMITED) -> None:
        """Count `each` descriptors for each of `things` that is there, at most `most` of which have any."""
        self._counted.append((things, each, most))

    def has_room(self) -> bool:
        """Whether the sandbox may open one thing more."""
        used = self.extra
        for things, each, most in self._counted:
            used += each * min(len(things), most)
        return used < self._most

    def leave(self) -> None:
        """Give it back. Idempotent."""
        of, self._of = self._of, None
        if of is not None:
            of.leave()


class ExtraSockets:
    """The extra sockets of one connection."""

    __slots__ = ("_count", "_quota")

    def __init__(self, quota: DescriptorQuota) -> None:
        self._quota = quota
        self._count = 0

    def has_room(self) -> bool:
        """Whether there may be one more."""
        return self._quota.has_room()

    def be(self, count: int) -> None:
        """Take note of how many there are now."""
        count = max(count, 0)
        self._quota.extra += count - self._count
        self._count = count
