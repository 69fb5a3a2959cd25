"""Cookies that a server set in its answers to requests whose one credential was a secret: those are nobody else's.

Clients keep what a service or whatever stands before it sets (a balancer, a bot check, a session) and send it back
beside the key. A rule with `credential` would take each for a second credential. What was set in any other answer, or
was never set, counts as one: it may be an attacker's session. Bounded; what falls out counts as one again.
"""

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.request.request_head import Field

_MOST: Final = 256  # of a secret; browsers keep fewer of a site (RFC 6265 section 6.1: at least 50)
_LONGEST: Final = 4096  # bytes of one, as there


class Jar:
    """The cookies of one task."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[str, dict[bytes, None]] = {}  # by the secret's id; the oldest first

    def keep(self, ident: str, fields: "Iterable[Field]") -> None:
        """Take note of what an answer sets."""
        for name, value in fields:
            if name.lower() != b"set-cookie":
                continue
            pair = value.partition(b";")[0].strip()
            if b"=" in pair and len(pair) <= _LONGEST:
                known = self._known.setdefault(ident, {})
                known.pop(pair, None)
                known[pair] = None
                if len(known) > _MOST:
                    del known[next(iter(known))]

    def knows(self, ident: str, cookies: "Iterable[bytes]") -> bool:
        """Whether every cookie of these fields was set for a secret."""
        known = self._known.get(ident, {})
        pairs = (pair.strip() for value in cookies for pair in value.split(b";"))
        return all(pair in known for pair in pairs if pair)
