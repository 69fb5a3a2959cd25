"""The other path that a request names: where WebDAV's COPY and MOVE put what they find (RFC 4918 section 10.3).

Pure. What is written there is no less asked for than the path of the request line, so the rules are asked about both.
"""

import re
from typing import TYPE_CHECKING, Final

from proxy.request.request_head import Unclear, read_authority, values
from rules.verdicts import Reason

if TYPE_CHECKING:
    from proxy.request.request_head import Asked, Head
    from rules.addresses import Address
    from rules.names import HostName

_METHODS: Final = frozenset({"COPY", "MOVE"})
# Simple-ref: an absolute URI, or a path (RFC 4918 section 8.3), in which `//` would begin a host
_DESTINATION: Final = re.compile(r"(?:(https?)://([^/?#]+))?(/(?!/)[!-\"$-~]*)", re.IGNORECASE)
_PORTS: Final = {"https": 443, "http": 80}


def second_path(head: "Head", asked: "Asked", target: "HostName | Address", port: int, *, tls: bool) -> str | None:
    """Return the path that a request names beside that of its request line; None: there is none. Raises Unclear."""
    if asked.method not in _METHODS:
        return None
    named = values(head, b"destination")
    if not named:
        return None
    match = _DESTINATION.fullmatch(named[0])
    if match is None or len(named) > 1:
        raise Unclear("its `Destination` is not one path of this host, or one URL")
    scheme, authority, path = match.groups()
    if scheme is not None:
        host = read_authority(authority.encode(), _PORTS[scheme.lower()])
        if host != (target, port) or (scheme.lower() == "https") is not tls:
            raise Unclear("its `Destination` is at another host", Reason.NAME_MISMATCH)
    return str(path)
