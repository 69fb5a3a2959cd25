"""How a worker's descriptors are divided among its tenants: to each a part that is its own, the rest to whoever asks.

Home of invariant 11 for descriptors. What is guaranteed is never lent: a tenant that takes all it can get leaves the
others theirs. Beyond that one may hold as much as is still free, which shrinks as it is taken (the dynamic threshold of
switches: Choudhury and Hahne, IEEE/ACM Transactions on Networking 6(2), 1998).
"""

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

RESERVED: Final = 96  # descriptors that are nobody's: the worker's own
OWN: Final = 12  # that every tenant has from its start: its sockets, and its place in the poller
LEAST: Final = 24  # that a tenant must have beside them


class Shares:
    """One worker's descriptors. For one thread."""

    def __init__(self, limit: int, most: int) -> None:
        """Divide `limit` descriptors (RLIMIT_NOFILE) among `most` tenants, or fewer where they would get too few."""
        free = max(limit - RESERVED, 0)
        self.most = max(min(most, free // (OWN + LEAST)), 1)
        self._pool = max(free - self.most * OWN, 0)
        self.guaranteed = self._pool if self.most == 1 else max(self._pool // self.most // 2, LEAST)
        self._uses: dict[int, Callable[[], int]] = {}
        self._next = 0

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another tenant."""
        return len(self._uses) >= self.most

    def join(self, use: "Callable[[], int]") -> "Share":
        """Give a tenant its share; `use` says how many descriptors it has beside its own."""
        number, self._next = self._next, self._next + 1
        self._uses[number] = use
        return Share(self, number, use)

    def leave(self, number: int) -> None:
        """Take a share back. Idempotent."""
        self._uses.pop(number, None)

    def allows(self, used: int) -> bool:
        """Whether a tenant that uses `used` descriptors may take more."""
        if used < self.guaranteed:
            return True
        # What the others are guaranteed counts as taken, whether they use it or not.
        spoken_for = sum(max(use(), self.guaranteed) for use in self._uses.values())
        spoken_for += (self.most - len(self._uses)) * self.guaranteed
        return used - self.guaranteed < self._pool - spoken_for


class Share:
    """One tenant's share."""

    __slots__ = ("_number", "_shares", "_use")

    def __init__(self, shares: Shares, number: int, use: "Callable[[], int]") -> None:
        self._shares = shares
        self._number = number
        self._use = use

    def has_room(self, more: int = 0) -> bool:
        """Whether the tenant may open one thing more, when it has opened others that take so many descriptors."""
        return self._shares.allows(self._use() + more)

    def leave(self) -> None:
        """Give it back. Idempotent."""
        self._shares.leave(self._number)
