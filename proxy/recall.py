"""Decisions that were made before: the same question has the same answer for as long as a policy is in force.

A decision on a connection hangs on the policy, the day, whether the task is tainted, where it was made to and what it
says first, and on nothing else: what has been granted is asked for by each that is held. Another policy or another day,
or something that was read, begins with an empty memory. One tenant's, and bounded: what is not remembered is decided
anew.
"""

from typing import TYPE_CHECKING, Final

from proxy.deciding import judge, patience
from proxy.gate.client_hello import ClientHello

if TYPE_CHECKING:
    from proxy.deciding import Judgement, Patience, Wanted
    from proxy.gate.first_bytes import Seen
    from proxy.tenant import Tenant
    from rules.names import HostName

MOST_REMEMBERED: Final = 1024
_MOST_PROTOCOLS: Final = 8


class Recall:
    """What `deciding` would say, with a memory. For one tenant."""

    __slots__ = ("_can_inspect", "_judged", "_patience", "_policy", "_tainted", "_tenant", "_today")

    def __init__(self, tenant: "Tenant", *, can_inspect: bool) -> None:
        self._tenant = tenant
        self._can_inspect = can_inspect
        self._policy = tenant.policy
        self._today = tenant.calendar.today()
        self._tainted = tenant.tainted
        self._patience: dict[tuple[tuple[HostName, ...], int], Patience] = {}
        self._judged: dict[tuple[object, ...], Judgement] = {}

    def clear(self) -> None:
        """Remember nothing that an earlier policy, or an earlier day, said."""
        tenant = self._tenant
        self._policy, self._today, self._tainted = tenant.policy, tenant.calendar.today(), tenant.tainted
        self._patience.clear()
        self._judged.clear()

    def _is_stale(self) -> bool:
        tenant = self._tenant
        if self._policy is not tenant.policy or self._tainted is not tenant.tainted:
            return True
        return self._today is not tenant.calendar.today()

    def patience(self, wanted: "Wanted") -> "Patience":
        """Say how long the first words are worth waiting for: `deciding.patience`."""
        if self._is_stale():
            self.clear()
        policy = self._policy
        key = wanted.names, wanted.port
        known = self._patience.get(key)
        if known is None:
            known = patience(policy, wanted)
            if wanted.names:  # else it hangs on the address
                _keep(self._patience, key, known)
        return known

    def judge(self, wanted: "Wanted", seen: "Seen | None") -> "Judgement":
        """Decide: `deciding.judge`."""
        tenant = self._tenant
        # What a task writes itself is part of what is kept only where it is short.
        if not isinstance(seen, ClientHello) or seen.sni not in wanted.names or len(seen.alpn) > _MOST_PROTOCOLS:
            return judge(tenant, wanted, seen, can_inspect=self._can_inspect)
        if self._is_stale():
            self.clear()
        key = wanted.names, wanted.port, seen.sni, seen.alpn, seen.ech
        known = self._judged.get(key)
        if known is None:
            known = judge(tenant, wanted, seen, can_inspect=self._can_inspect)
            _keep(self._judged, key, known)
        return known if known.hello is seen else known._replace(hello=seen)


def _keep[K, V](memory: dict[K, V], key: K, value: V) -> None:
    if len(memory) >= MOST_REMEMBERED:
        memory.clear()
    memory[key] = value
