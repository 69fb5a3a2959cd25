"""One sandbox as its gate knows it. Identity comes from the socket (invariant 4): a listener belongs to one tenant.

Nothing of a tenant is shared with another (invariant 11): names, limits and counters hang on this object.
"""

import time
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.sandbox.rule_limits import Meters
from rules.attempt import NO_LABELS
from rules.verdicts import Trust

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from proxy.approvals.approval_request import Source
    from proxy.approvals.client import ApprovalsClient
    from proxy.approvals.leases import Grant, Lease
    from proxy.dialing.proxy_auth import Login
    from proxy.secrets import SecretInjector
    from proxy.secrets.detection import OwnSecrets
    from proxy.worker.taint import Taint
    from rules.addresses import Address
    from rules.decision import Decision
    from rules.matching.policy import Policy
    from rules.names import HostName

_DAY: Final = 86_400  # seconds
UNNOTED: Final = "that the task reads from an untrusted source could not be kept"  # where `Tenant.reads` is False


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


class Tenant:
    """A sandbox behind the gate. `policy` is swapped whole on a reload; new attempts see the new one."""

    __slots__ = ("asking", "broker", "calendar", "desk", "foreign", "gate_port", "holds_programs", "meters", "own",
                 "own_addresses", "policy", "sandbox", "taint", "tainted", "task")  # fmt: skip

    def __init__(
        self,
        sandbox: str,
        task: Task,
        policy: "Policy",
        own_addresses: frozenset["Address"] = frozenset(),
        gate_port: int = 0,
    ) -> None:
        self.sandbox = sandbox
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
    def sources(self) -> "tuple[Source, ...]":
        """The untrusted sources that it has read from, as far as they are known, for who is asked about it."""
        return () if self.taint is None else tuple(self.taint.sources)

    def lease(self, grants: "tuple[Grant, ...]", cut: "Callable[[Grant], None]") -> "Lease | None":
        """Pass under grants until the first of them ends, which `cut` is called with. None: one has already."""
        return None if self.asking is None else self.asking.passes.enter(grants, cut)

    def entrust(self, broker: "SecretInjector | None", login: "Login | None") -> None:
        """Take its secrets, and what the upstream proxy is told about who we are: none of that may it send itself."""
        self.broker = broker
        self.own = None
        if broker is not None or login is not None:
            from proxy.secrets.detection import watched  # few tasks have either

            self.own = watched(broker, b"" if login is None else login.password)
