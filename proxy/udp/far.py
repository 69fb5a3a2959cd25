"""The far end of a flow: a socket that is connected to one address that was checked. Nothing is sent by making it."""

import errno
import socket
from typing import TYPE_CHECKING, Final

from proxy.dialling.connecting import DialFailed
from rules.upstream import Via
from rules.verdicts import Reason

if TYPE_CHECKING:
    from proxy.dialling.connecting import Hop
    from rules.addresses import Address

_OUT_OF_SOCKETS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


def connected(hops: "tuple[Hop, ...]", port: int) -> "tuple[socket.socket, Address]":
    """Return a socket that is connected to the first address that this host has a way to. Raises DialFailed."""
    problem = "no address"
    for address in hops:
        if isinstance(address, Via):
            continue  # the dialer gives none for datagrams
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        try:
            far = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            reason = Reason.LIMIT_EXCEEDED if error.errno in _OUT_OF_SOCKETS else Reason.UPSTREAM_FAILED
            raise DialFailed(reason, str(error.strerror)) from error
        try:
            far.connect((str(address), port))
        except OSError as error:
            far.close()
            problem = f"{address}: {error.strerror}"
        else:
            return far, address
    raise DialFailed(Reason.UPSTREAM_FAILED, problem)
