"""Mount namespaces for the lab's host side: its own resolver configuration, hosts file and trusted certificates.

And for an ordinary uid a second one, in which the Python interpreter and the project can be reached where they are,
even when they lie under a directory that only root may enter: that directory is covered by an empty one, with just
those paths bound into it, read-only.
"""

import os
import sys
from pathlib import Path

from enforcer.system.linux import MS_BIND, MS_NODEV, MS_NOSUID, MS_PRIVATE, MS_RDONLY, MS_REC, MS_REMOUNT, mount

from .names import UPSTREAM_RESOLVER

_BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")
_PROJECT = Path(__file__).resolve().parents[2]


def write_files(directory: Path, ca: bytes, hosts: dict[str, str]) -> None:
    """Write the files that `enter` mounts."""
    etc = directory / "etc"
    etc.mkdir()
    lines = {"localhost": "127.0.0.1 ::1", **hosts}
    lines_of_hosts = "".join(
        f"{address} {name}\n" for name, addresses in lines.items() for address in addresses.split()
    )
    (etc / "hosts").write_text(lines_of_hosts, encoding="ascii")
    (etc / "resolv.conf").write_text(
        f"nameserver {UPSTREAM_RESOLVER}\noptions timeout:1 attempts:2\n", encoding="ascii"
    )
    (etc / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files dns\n", encoding="ascii")
    system = next((Path(one).read_bytes() for one in _BUNDLES if Path(one).exists()), b"")
    (etc / "ca-certificates.crt").write_bytes(system + b"\n" + ca)


def enter(directory: Path) -> None:
    """Move the calling process into a new mount namespace with the files of the lab."""
    os.unshare(os.CLONE_NEWNS)
    mount("none", "/", flags=MS_REC | MS_PRIVATE)
    for name in "hosts", "resolv.conf", "nsswitch.conf":
        _bind(str(directory / "etc" / name), os.path.realpath(f"/etc/{name}"))
    for bundle in {os.path.realpath(one) for one in _BUNDLES if os.path.exists(one)}:
        _bind(str(directory / "etc" / "ca-certificates.crt"), bundle)


def open_for_everybody() -> None:
    """Make the interpreter and the project reachable for any uid, in the caller's mount namespace."""
    needed = {str(Path(one).resolve()) for one in (sys.base_prefix, sys.prefix, _PROJECT)}
    blocked: dict[str, list[str]] = {}
    for path in sorted(needed):
        if (closed := _first_closed_directory(path)) is not None:
            blocked.setdefault(closed, []).append(path)
    for directory, paths in blocked.items():
        handles = {path: os.open(path, os.O_PATH | os.O_DIRECTORY) for path in paths}
        mount("tmpfs", directory, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=1m")
        for path, handle in handles.items():
            os.makedirs(path, exist_ok=True)
            _bind(f"/proc/self/fd/{handle}", path)
            os.close(handle)


def _bind(source: str, target: str) -> None:
    if not os.path.exists(target):
        return
    mount(source, target, flags=MS_BIND)
    mount("none", target, flags=MS_BIND | MS_REMOUNT | MS_RDONLY)


def _first_closed_directory(path: str) -> str | None:
    """Return the first directory of a path that other users may not enter."""
    for above in reversed(Path(path).parents):
        if not above.stat().st_mode & 0o001:
            return str(above)
    return None if os.stat(path).st_mode & 0o001 else path
