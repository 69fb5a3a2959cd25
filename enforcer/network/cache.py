"""Keep a plan's encoded bytes, so that pyroute2 is imported once an installation and not once a start.

The file decides what a sandbox's ruleset is: it is used only when it is ours alone (`enforcer.kept`) and whole (length
and SHA-256). Anything else is not repaired but made again.
"""

import contextlib
import hashlib
import importlib.util
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from enforcer import kept

if TYPE_CHECKING:
    from enforcer.network.execute import Encoded
    from enforcer.network.plan import NetworkPlan

_LARGEST_FILE = 1 << 20
_COUNT = struct.Struct("!I")


def cached(plan: "NetworkPlan", directory: Path) -> "Encoded":
    """Return the plan's encoded bytes, from `directory` where they lie there safely, else made now and put there.

    A directory that can't be written costs time, not the start.
    """
    path = directory / f"network-{_key(plan)}"
    encoded = _read(path, plan)
    if encoded is None:
        from enforcer.network.encode import encode  # 140 ms, only when there is nothing to use

        encoded = encode(plan)
        with contextlib.suppress(OSError):
            kept.write(path, _pack(encoded))
    return encoded


def _key(plan: "NetworkPlan") -> str:
    """Everything that the bytes depend on: what is encoded, the encoder (ours and pyroute2's), the byte order."""
    encoder = Path(__file__).with_name("encode.py").read_bytes()
    parts = (encoder, _pyroute2_version().encode(), sys.byteorder.encode(), repr(plan).encode())
    return hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:32]


def _pyroute2_version() -> str:
    """From the name of the installed distribution's directory: `importlib.metadata` alone would cost 35 ms."""
    found = importlib.util.find_spec("pyroute2")
    if found is not None and found.origin is not None:
        for path in Path(found.origin).parent.parent.glob("pyroute2-*.dist-info"):
            return path.name
    from importlib.metadata import version

    return version("pyroute2")


def _read(path: Path, plan: "NetworkPlan") -> "Encoded | None":
    content = kept.read(path, _LARGEST_FILE)
    if content is None:
        return None
    digest, body = content[:32], content[32:]
    if hashlib.sha256(body).digest() != digest:
        return None
    encoded = _unpack(body)
    return encoded if len(encoded) == len(plan.batches) else None


def _pack(encoded: "Encoded") -> bytes:
    """SHA-256 of the rest; then for each batch its number of messages, and each with its length before it."""
    body = bytearray()
    for batch in encoded:
        body += _COUNT.pack(len(batch))
        for message in batch:
            body += _COUNT.pack(len(message)) + message
    return hashlib.sha256(body).digest() + body


def _unpack(body: bytes) -> "Encoded":
    """Read what `_pack` wrote; its checksum has been verified."""
    at = 0

    def number() -> int:
        nonlocal at
        at += _COUNT.size
        return int(_COUNT.unpack_from(body, at - _COUNT.size)[0])

    def message() -> bytes:
        nonlocal at
        length = number()
        at += length
        return body[at - length : at]

    batches: list[tuple[bytes, ...]] = []
    while at < len(body):
        batches.append(tuple(message() for _ in range(number())))
    return tuple(batches)
