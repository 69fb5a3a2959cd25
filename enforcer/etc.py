"""The files of /etc that a sandbox has for itself: names, users, and where lookups go."""

import contextlib
import os

from enforcer.sandbox.identity import Identity
from enforcer.sandbox.view import BUNDLES, bundle_names

_NSSWITCH = b"""passwd: files
group: files
shadow: files
hosts: files dns
networks: files
protocols: files
services: files
ethers: files
rpc: files
netgroup: files
"""


def system_roots() -> bytes:
    """Return the host's own bundle of roots: what its administrator trusts."""
    for path in BUNDLES:
        with contextlib.suppress(OSError), open(path, "rb") as file:
            return file.read()
    return b""


def files(identity: Identity, hostname: str, nameserver: str, certificate: bytes, link: str) -> dict[str, bytes]:
    """Map paths relative to /etc to contents. `certificate` is our CA's, `link` the name OpenSSL looks it up by.

    No `search` line: under one, a synthetic answer for every name makes clients take the wrong name (KERNEL notes).
    """
    user = f"{identity.user}:x:{identity.uid}:{identity.gid}::{identity.home}:/bin/sh\n"
    own = {
        "resolv.conf": f"nameserver {nameserver}\n".encode(),
        "hosts": f"127.0.0.1 localhost\n::1 localhost ip6-localhost\n127.0.1.1 {hostname}\n".encode(),
        "hostname": f"{hostname}\n".encode(),
        "nsswitch.conf": _NSSWITCH,
        "passwd": f"root:x:0:0::/root:/usr/sbin/nologin\n{user}nobody:x:65534:65534::/:/usr/sbin/nologin\n".encode(),
        "group": f"root:x:0:\n{identity.user}:x:{identity.gid}:\nnogroup:x:65534:\n".encode(),
    }
    if link and os.path.isdir("/etc/ssl/certs"):
        folder = os.path.relpath(os.path.realpath("/etc/ssl/certs"), "/etc")
        own[f"{folder}/{link}"] = certificate
    roots = system_roots().rstrip(b"\n")
    return bundle_names((roots + b"\n" if roots else b"") + certificate, own)
