"""One thing a task tries: the question that `Policy.decide` answers."""

from dataclasses import dataclass, field
from datetime import date
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rules.addresses import Address
    from rules.names import HostName


class Protocol(StrEnum):
    """What is spoken on a connection, as far as rules tell protocols apart."""

    TCP = "tcp"  # any bytes: a server that speaks first, a database, SSH
    TLS = "tls"
    HTTP = "http"
    UDP = "udp"


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request inside a connection.

    `path` is the raw request target's path with its query (`/a/b?c=d`), as it will be forwarded.
    """

    method: str
    path: str


@dataclass(frozen=True, slots=True)
class Attempt:
    """A connection (`request` is None) or one request in it.

    `target` is a name or, for address literals, an address; never both: a name rule never allows an address.
    """

    protocol: Protocol
    target: "HostName | Address"
    port: int
    request: Request | None = None
    task: str = ""
    labels: "Mapping[str, str]" = field(default_factory=dict)
    at: date | None = None
