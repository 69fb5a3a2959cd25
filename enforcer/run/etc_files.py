"""The files of /etc that a sandbox has for itself: names, users, and where lookups go."""

import os

from enforcer.sandbox.identity import Identity
from enforcer.sandbox.mount_plan import bundle_names, java_names
from enforcer.sandbox.system_paths import real

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
# Browsers have roots of their own. Chromium, Chrome, Chrome for Testing (Playwright's) and Edge take more from a policy
# (CACertificates, chromeenterprise.google/policies), which each reads from a directory of its own.
_BROWSERS = ("chromium", "opt/chrome", "opt/chrome_for_testing", "opt/edge")


def browser_policies(certificate: bytes) -> dict[str, bytes]:
    """Return the policies that have browsers trust our CA, by where they are read from; where a link is, none."""
    policy = b'{"CACertificates": ["%b"]}\n' % b"".join(certificate.splitlines()[1:-1])  # what PEM has is Base64
    places = [f"/etc/{place}" for place in _BROWSERS]
    found = [place for place, leads in zip(_BROWSERS, real(places), strict=True) if leads == f"/etc/{place}"]
    return {f"{place}/policies/managed/exeat-ca.json": policy for place in found}


def files(  # noqa: PLR0917 - what they are made of
    identity: Identity, hostname: str, nameserver: str, certificate: bytes, link: str, trusted: bytes, java: bytes
) -> dict[str, bytes]:
    """Map paths relative to /etc to contents. `certificate` is our CA's, `link` the name OpenSSL looks it up by.

    `trusted` is the bundle that a sandbox trusts, `java` the trust store that is Java's.

    No `search` line: under one, a synthetic answer for every name makes clients take the wrong name (KERNEL notes).
    """
    user = f"{identity.user}:x:{identity.uid}:{identity.gid}::{identity.home}:/bin/sh\n"
    group = f"{identity.user}:x:{identity.gid}:\n"
    if identity.uid:  # else that is root
        user, group = f"root:x:0:0::/root:/usr/sbin/nologin\n{user}", f"root:x:0:\n{group}"
    own = {
        "resolv.conf": f"nameserver {nameserver}\n".encode(),
        "hosts": f"127.0.0.1 localhost\n::1 localhost ip6-localhost\n127.0.1.1 {hostname}\n".encode(),
        "hostname": f"{hostname}\n".encode(),
        "nsswitch.conf": _NSSWITCH,
        "passwd": f"{user}nobody:x:65534:65534::/:/usr/sbin/nologin\n".encode(),
        "group": f"{group}nogroup:x:65534:\n".encode(),
    }
    if link and os.path.isdir("/etc/ssl/certs"):
        folder = os.path.relpath(os.path.realpath("/etc/ssl/certs"), "/etc")
        own[f"{folder}/{link}"] = certificate
    return bundle_names(trusted, {**java_names(java), **browser_policies(certificate), **own})
