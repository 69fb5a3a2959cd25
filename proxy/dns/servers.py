"""Asking the host's name servers, those of its resolv.conf(5), for the addresses of one absolute name.

No search list is applied: the name that was checked is the name that is asked for (invariant 3). dnspython checks that
an answer is one (id, question, source) and goes on to TCP where it is truncated. Imported when a name is first asked
for: dnspython takes 75 ms.
"""

import asyncio
import ipaddress
from typing import TYPE_CHECKING, Any, Final

import dns.asyncresolver
import dns.exception
import dns.name
import dns.rdataclass
import dns.rdatatype
import dns.resolver

from proxy.dns.answers import Answers
from proxy.dns.records import LONGEST_KEPT, MOST_RECORDS, LookupFailed, Records
from rules.addresses import normal
from rules.names import is_own

if TYPE_CHECKING:
    from rules.addresses import Address
    from rules.names import HostName

LIFETIME: Final = 5.0  # seconds for one question, with all repeats and name servers
MOST_ALIASES: Final = 8  # answers in a row that only say where to ask next


class NameServers:
    """The name servers of one resolv.conf, as it is when this is made."""

    __slots__ = ("_answers", "_resolver")

    def __init__(self, path: str = "/etc/resolv.conf", turn: asyncio.Lock | None = None) -> None:
        """Read the file. `turn`: see `Answers`. Raises LookupFailed when it names no server."""
        self._answers = Answers(turn or asyncio.Lock())
        try:
            self._resolver = dns.asyncresolver.Resolver(path)
        except (dns.exception.DNSException, ValueError) as error:
            raise LookupFailed(f"`{path}` names no usable name server: {error}") from error
        self._resolver.cache = None

    async def ask(self, name: "HostName", kind: str) -> "tuple[tuple[Address, ...], float]":
        """Return the addresses of `kind` (A or AAAA) and for how many seconds they hold. Raises LookupFailed."""
        try:
            found, seconds = await self._find(name, kind)
            if not found:
                raise LookupFailed(f"`{name}` has no {kind} record")
            return tuple(normal(ipaddress.ip_address(record.address)) for record in found), seconds
        except dns.resolver.NXDOMAIN as error:
            raise LookupFailed(f"`{name}` does not exist") from error
        except ValueError as error:
            raise LookupFailed(f"no name server would say what `{name}` is: {error}") from error

    async def records(self, name: "HostName", kind: str) -> Records:
        """Return the records of one kind, of which there may be none. Raises LookupFailed when nobody would say."""
        try:
            found, seconds = await self._find(name, kind)
        except dns.resolver.NXDOMAIN:
            return Records(exists=False)
        kept = found[:MOST_RECORDS]
        data = tuple(record.to_wire() or b"" for record in kept)
        return Records(data, tuple(record.to_text() for record in kept), min(seconds, LONGEST_KEPT))

    async def _find(self, name: "HostName", kind: str) -> "tuple[list[Any], float]":
        """Return the records at a name, or at what it is an alias of, and for how many seconds they hold.

        Raises LookupFailed when nobody would say, and NXDOMAIN.
        """
        asked = dns.name.from_text(name + ".")
        least = float("inf")
        try:
            for _ in range(MOST_ALIASES):
                answer = await self._resolver.resolve(
                    asked, kind, search=False, lifetime=LIFETIME, raise_on_no_answer=False, backend=self._answers
                )
                least = min(least, float(answer.chaining_result.minimum_ttl))
                if answer.rrset is not None:
                    return list(answer.rrset), least
                if answer.canonical_name == asked:
                    return [], least
                asked = answer.canonical_name
                if is_own(asked.to_text(omit_final_dot=True).lower()):  # nobody's DNS has a say in our names
                    return [], least
        except dns.resolver.NXDOMAIN:
            raise
        except dns.exception.Timeout as error:
            raise LookupFailed(f"no name server answered for `{name}` in {LIFETIME:.0f} seconds") from error
        except (dns.exception.DNSException, OSError, ValueError) as error:
            raise LookupFailed(f"no name server would say what `{name}` is: {error}") from error
        raise LookupFailed(f"`{name}` is an alias of an alias, and so on")
