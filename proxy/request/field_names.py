"""Which names of header fields are one name to some server.

CGI's environment has one for `X-Team` and `X_Team` (RFC 3875 section 4.1.18), and with servers that write `_` for every
sign (lighttpd) for `X.Team` and `X!Team`, too. Pure.
"""

from typing import Final

ALIKE: Final = bytes(byte if byte >= 0x80 or chr(byte).isalnum() else ord("-") for byte in range(256))


def alike(name: bytes) -> bytes:
    """Write `-` for every sign of a name in lower case: names that are the same then may be one to a server."""
    return name.translate(ALIKE)
