"""The address that metrics are scraped at, opened before anything runs, so that one that is taken is said at once."""

import re
import socket

from enforcer.errors import HostError, UsageError

_LARGEST_PORT = 0xFFFF
_WAITING = 16  # connections that nobody has accepted yet


def listen(address: str, example: str) -> socket.socket:
    """Listen at `HOST:PORT`; without a host, on this machine only. Raises UsageError, HostError."""
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([^:\[\]]*)):(\d{1,5})", address)
    if match is None or int(match[3]) > _LARGEST_PORT:
        raise UsageError(f"--metrics: `{address}` is not an address; write HOST:PORT, as in {example}")
    host, port = match[1] or match[2] or "127.0.0.1", int(match[3])
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        server = socket.socket(family, kind, protocol)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(place)
        server.listen(_WAITING)
    except OSError as error:
        raise HostError(
            f"the metrics port `{address}` cannot be opened: {error.strerror}; choose another with --metrics"
        ) from error
    server.setblocking(False)
    return server
