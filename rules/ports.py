"""Ports and their protocols, as a rule lists them, and which attempts such a list covers.

Rules distinguish raw TCP from TLS and HTTP, but bytes that are not read could be any of the three. With this table no
raw connection gets past a rule that inspects connections:

    the list says   an attempt on raw tcp      on tls     on http
    /tcp            covered                    covered    covered      any bytes: also those of TLS and HTTP
    /tls            could be covered           covered    not
    /http           could be covered           not        covered

"Could be covered" counts for rules that deny, ask or flag, never for rules that allow. UDP is separate: only `/udp`
covers it, and a rule without ports, which covers everything.
"""

from typing import Final, NamedTuple, Self

from rules.attempt import Protocol

LAST_PORT: Final = 65535
WELL_KNOWN: Final = {443: Protocol.TLS, 80: Protocol.HTTP}
USUAL_PORTS: Final = {protocol: port for port, protocol in WELL_KNOWN.items()}
# What is spoken over UDP and never leaves so: encrypted names aside, the gate reads no QUIC, and it answers DNS itself.
_NEVER_UDP: Final = {443: "QUIC", 53: "DNS"}
UNSEEN: Final = frozenset({Protocol.TCP, Protocol.UDP})  # bytes that are never read
_OVER_TCP: Final = (Protocol.TCP, Protocol.TLS, Protocol.HTTP)


class Ports(NamedTuple):
    """A range of ports with their protocol."""

    low: int
    high: int
    protocol: Protocol

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `443`, `80`, `5432/tcp`, `8000-8100/tls`. Raises ValueError with what to write instead."""
        numbers, slash, spoken = text.partition("/")
        first, dash, last = numbers.partition("-")
        low = _port(first, text)
        high = _port(last, text) if dash else low
        if low > high:
            raise ValueError(f"`{text}` ends before it begins")
        if slash:
            if spoken not in {protocol.value for protocol in Protocol}:
                raise ValueError(f"`{text}`: `{spoken}` is not a protocol; one of tls, http, tcp, udp")
            return cls(low, high, Protocol(spoken))
        if dash or low not in WELL_KNOWN:
            raise ValueError(f"`{text}` needs what is spoken there: `{text}/tls`, `/http`, `/tcp` or `/udp`")
        return cls(low, high, WELL_KNOWN[low])

    def __str__(self) -> str:
        numbers = str(self.low) if self.low == self.high else f"{self.low}-{self.high}"
        return f"{numbers}/{self.protocol}"

    def covers(self, port: int, protocol: Protocol) -> bool:
        """Whether an attempt on `port` is covered for certain."""
        if not self.low <= port <= self.high:
            return False
        return self.protocol is protocol or (self.protocol is Protocol.TCP and protocol in _OVER_TCP)

    def could_cover(self, port: int, protocol: Protocol) -> bool:
        """Whether an attempt on `port` is covered, or could be if the gate read its bytes."""
        if protocol is Protocol.TCP:
            return self.low <= port <= self.high and self.protocol in _OVER_TCP
        return self.covers(port, protocol)


def never_leaves(entry: Ports) -> tuple[int, str] | None:
    """Return a port of an entry and its protocol that no rule can allow over UDP; None if there is none."""
    found = (port for port in _NEVER_UDP if entry.protocol is Protocol.UDP and entry.low <= port <= entry.high)
    port = next(found, None)
    return None if port is None else (port, _NEVER_UDP[port])


def ports_cover(ports: tuple[Ports, ...] | None, port: int, protocol: Protocol) -> bool:
    """Whether a list (None: every port and protocol) covers an attempt for certain."""
    return ports is None or any(entry.covers(port, protocol) for entry in ports)


def ports_could_cover(ports: tuple[Ports, ...] | None, port: int, protocol: Protocol) -> bool:
    """Whether a list (None: every port and protocol) covers an attempt or could."""
    return ports is None or any(entry.could_cover(port, protocol) for entry in ports)


def describe(ports: tuple[Ports, ...] | None) -> str:
    """Write the list as a person would."""
    return "every port" if ports is None else ", ".join(map(str, ports))


def _port(text: str, whole: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > len(str(LAST_PORT)) or not 1 <= int(text) <= LAST_PORT:
        raise ValueError(f"`{whole}` is not a port between 1 and {LAST_PORT}, or a range of them")
    if text != str(int(text)):
        raise ValueError(f"`{whole}`: write `{int(text)}`")
    return int(text)
