"""Leases: connections and requests that pass under a grant, cut when it ends, and counted against its byte budget.

Bytes are reported before they pass, a piece at a time, so that a worker that dies has never let more pass than the
registry knows of. A grant may give less by a piece for each worker that died.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from proxy.approvals.protocol import Granted

PIECE: Final = 64 * 1024  # bytes that are told at a time, at least
_PIECES: Final = 64  # of a large budget
_MOST_ENDED: Final = 4096  # grants that are remembered as over: between an answer and what it lets out is a lookup


class Grant(NamedTuple):
    """Grant as a worker holds it, for one rule. `budget`: its remaining bytes."""

    rule: str
    digest: str
    id: str
    approval: str
    era: int  # of the registry that gave it
    budget: "Budget | None" = None


class Budget:
    """Byte budget of one grant, for both directions and all its leases."""

    __slots__ = ("_ahead", "_left", "_tell", "granted", "over", "rule")

    def __init__(self, rule: str, left: int, tell: "Callable[[int], bool]") -> None:
        """`tell` takes how many more are used; False: that could not be told, so they may not be."""
        self.rule = rule
        self.granted = left
        self.over = False  # whether more was to pass: then whatever passes under it ends
        self._left = left  # that the registry has not been told of
        self._ahead = 0  # that it was told of, and that have not passed
        self._tell = tell

    def limit(self, left: int) -> None:
        """Take note of what the registry says is left."""
        self._left = min(self._left, left)

    @property
    def is_empty(self) -> bool:
        """Whether nothing more may pass."""
        return self.over or not self._left + self._ahead

    def take(self, size: int) -> bool:
        """Whether `size` bytes may pass; they are counted then."""
        if self.over:
            return False
        if size > self._ahead:
            wanted = size - self._ahead
            # The registry ends a grant that is used up, so the last byte is told only when it passes
            more = max(wanted, min(max(PIECE, self._left // _PIECES), self._left - 1))
            if wanted > self._left or not self._tell(more):
                self._spend()
                return False
            self._left -= more
            self._ahead += more
        self._ahead -= size
        return True

    def _spend(self) -> None:
        """Let nothing more pass, and have the registry end the grant: what is asked next is a new question."""
        self.over = True
        if self._left:
            self._tell(self._left)
            self._left = 0


@dataclass(slots=True, eq=False)
class Lease:
    """Attempt that passes under grants, until `end`."""

    leases: "Leases"
    grants: "tuple[Grant, ...]"
    cut: "Callable[[Grant], None]"

    def end(self) -> None:
        """Take it off the list. Idempotent."""
        self.leases.ended(self)


class Leases:
    """All leases of one sandbox. For one thread."""

    def __init__(self, tell: "Callable[[str, int], bool]") -> None:
        """`tell` takes a grant and how many more of its bytes are used."""
        self._tell = tell
        self._budgets: dict[str, Budget] = {}
        self._leases: dict[str, set[Lease]] = {}
        self._ended: dict[str, None] = {}
        self._era = 0
        self._lost = False

    def grants(self, approval: str, granted: "Iterable[Granted]") -> tuple[Grant, ...]:
        """Take in what an answer grants."""
        return tuple(Grant(one.rule, one.digest, one.grant, approval, self._era, self._budget(one)) for one in granted)

    def enter(self, grants: tuple[Grant, ...], cut: "Callable[[Grant], None]") -> Lease | None:
        """Note what passes under these; None: it may not, for one of them is over by now.

        `cut` is called with the first of them that ends meanwhile. It must not raise.
        """
        if self._lost or any(grant.id in self._ended or grant.era != self._era for grant in grants):
            return None
        lease = Lease(self, grants, cut)
        for grant in grants:
            self._leases.setdefault(grant.id, set()).add(lease)
        return lease

    def ended(self, lease: Lease) -> None:
        """Forget a lease."""
        for grant in lease.grants:
            under = self._leases.get(grant.id)
            if under is not None:
                under.discard(lease)
                if not under:
                    del self._leases[grant.id]

    def over(self, ended: "Iterable[str]") -> None:
        """Cut what passes under grants that ended."""
        for one in ended:
            if len(self._ended) >= _MOST_ENDED:
                self._ended.pop(next(iter(self._ended)))
            self._ended[one] = None
            self._cut(one)

    def lost(self) -> None:
        """Cut it all: nobody would say when it ends."""
        self._lost = True
        for one in tuple(self._leases):
            self._cut(one)

    def begin_anew(self) -> None:
        """Take grants of another registry; none that are left of the one before count."""
        self._lost = False
        self._era += 1
        self._budgets.clear()

    def _cut(self, ended: str) -> None:
        self._budgets.pop(ended, None)
        for lease in tuple(self._leases.get(ended, ())):
            lease.end()
            lease.cut(next(grant for grant in lease.grants if grant.id == ended))

    def _budget(self, granted: "Granted") -> Budget | None:
        if granted.bytes is None:
            return None
        known = self._budgets.get(granted.grant)
        if known is None:
            known = self._budgets[granted.grant] = Budget(
                granted.rule, granted.bytes, lambda size: self._tell(granted.grant, size)
            )
        else:
            known.limit(granted.bytes)
        return known
