"""Decisions that were made before: the same question has the same answer for as long as a policy is in force.

A decision on a connection hangs on the policy, on where it was made to and on what it says first, and on nothing else:
neither the time nor what happened before (that changes with `until`, limits and approvals, and then so must this). One
tenant's, and bounded: what is not remembered is decided anew.
"""

from typing import TYPE_CHECKING, Final

from proxy.deciding import judge, patience
from proxy.greetings import Greetings
from proxy.hello import ClientHello
from proxy.peek import recognise

if TYPE_CHECKING:
    from proxy.deciding import Judgement, Patience, Wanted
    from proxy.hello import NeedMore
    from proxy.peek import Seen
    from proxy.tenant import Tenant
    from rules.names import HostName
    from rules.policy import Policy

MOST_REMEMBERED: Final = 1024
_MOST_PROTOCOLS: Final = 8


class Recall:
    """What `deciding` and `peek` would say, with a memory. For one tenant."""

    __slots__ = ("_can_inspect", "_greetings", "_judged", "_patience", "_tenant")

    def __init__(self, tenant: "Tenant", *, can_inspect: bool) -> None:
        self._tenant = tenant
        self._can_inspect = can_inspect
        self._greetings = Greetings()
        self._patience: dict[tuple[Policy, tuple[HostName, ...], int], Patience] = {}
        self._judged: dict[tuple[object, ...], Judgement] = {}

    def patience(self, wanted: "Wanted") -> "Patience":
        """Say how long the first words are worth waiting for: `deciding.patience`."""
        policy = self._tenant.policy
        key = policy, wanted.names, wanted.port
        known = self._patience.get(key)
        if known is None:
            known = patience(policy, wanted)
            if wanted.names:  # else it hangs on the address
                _keep(self._patience, key, known)
        return known

    def recognise(self, data: bytes, *, whole_head: bool) -> "Seen | NeedMore":
        """Say what `data` begins with: `peek.recognise`."""
        return recognise(data, whole_head=whole_head, read_hello=self._greetings.read)

    def judge(self, wanted: "Wanted", seen: "Seen | None") -> "Judgement":
        """Decide: `deciding.judge`."""
        tenant = self._tenant
        # What a task writes itself is part of what is kept only where it is short.
        if not isinstance(seen, ClientHello) or seen.sni not in wanted.names or len(seen.alpn) > _MOST_PROTOCOLS:
            return judge(tenant, wanted, seen, can_inspect=self._can_inspect)
        key = tenant.policy, wanted.names, wanted.port, seen.sni, seen.alpn, seen.ech
        known = self._judged.get(key)
        if known is None:
            known = judge(tenant, wanted, seen, can_inspect=self._can_inspect)
            _keep(self._judged, key, known)
        return known if known.hello is seen else known._replace(hello=seen)


def _keep[K, V](memory: dict[K, V], key: K, value: V) -> None:
    if len(memory) >= MOST_REMEMBERED:
        memory.clear()
    memory[key] = value
