"""The process that makes the lab's world and holds it: two network namespaces, two mount namespaces, two origins.

    origin namespace                          host side
    every address is local to it    veth      a default route to the origin, the lab's resolv.conf and CA;
    DNS, web, git, recorder      <────────>   its own loopback has the same services and a recorder too

Run by `lab.py`; says on stdout which processes hold what, then waits. Everything dies with it, and it ends when whoever
made it does: then it also removes the lab's directory, which nobody else is left to do.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

from enforcer.system.linux import die_with_parent

from . import mount_namespaces
from .certificates import Authority
from .names import UPSTREAM_RESOLVER

HOST4, ORIGIN4, HOST6, ORIGIN6 = "192.0.2.2", "192.0.2.1", "2001:db8:1ab::2", "2001:db8:1ab::1"
UPSTREAM_RESOLVER6 = "2001:db8:53::53"
_LOCAL, _SCOPE_HOST, _NODAD, _LO = 255, 254, 2, 1
_DEVICE = "lab0"


def main(settings: dict) -> None:
    """Make everything, say so, and wait."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    die_with_parent(signal.SIGTERM, settings["parent"])
    try:
        print(json.dumps(_make(settings)), flush=True)
        signal.pause()
    finally:
        shutil.rmtree(settings["directory"], ignore_errors=True)


def _make(settings: dict) -> dict[str, int]:
    """Return the pids that hold what a program can be moved into."""
    directory = Path(settings["directory"])
    authority = Authority.make()
    authority.save(directory / "ca.key")
    (directory / "ca.pem").write_bytes(authority.pem())
    mount_namespaces.write_files(directory, authority.pem(), settings["hosts"])

    os.unshare(os.CLONE_NEWNET)
    origin = os.open("/proc/self/ns/net", os.O_RDONLY)
    os.unshare(os.CLONE_NEWNET)
    host = os.open("/proc/self/ns/net", os.O_RDONLY)
    _connect(origin, host)

    resolvers = [UPSTREAM_RESOLVER, UPSTREAM_RESOLVER6]
    outside = _start({**settings, "role": "origin", "device": _DEVICE, "dns": resolvers}, origin)
    inside = _start({**settings, "role": "loopback", "device": "lo", "dns": []}, host)
    mount_namespaces.enter(directory)
    everybody = _hold_a_view()
    for process, ready in outside, inside:
        if os.read(ready, 1) != b"1":
            raise RuntimeError(f"an origin ended with {process.wait()}")
    return {"root": os.getpid(), "everybody": everybody, "origin": outside[0].pid}


def _connect(origin: int, host: int) -> None:
    """Join the namespaces, and make every address local in the origin's."""
    from pyroute2 import IPRoute

    with IPRoute() as ip:
        ip.link("set", index=_LO, state="up")
        ip.link("add", ifname=_DEVICE, kind="veth", peer={"ifname": _DEVICE, "net_ns_fd": origin})
        device = ip.link_lookup(ifname=_DEVICE)[0]
        _address(ip, device, HOST4, HOST6)
        ip.route("add", dst="0.0.0.0/0", gateway=ORIGIN4)
        ip.route("add", dst="::/0", gateway=ORIGIN6, family=socket.AF_INET6)
    os.setns(origin)
    with IPRoute() as ip:
        ip.link("set", index=_LO, state="up")
        device = ip.link_lookup(ifname=_DEVICE)[0]
        _address(ip, device, ORIGIN4, ORIGIN6)
        # In one table, so that the longer prefix, the way back to the host, wins over the one that takes everything.
        for here, everything, back, resolver in (
            (socket.AF_INET, "0.0.0.0/0", f"{HOST4}/32", UPSTREAM_RESOLVER),
            (socket.AF_INET6, "::/0", f"{HOST6}/128", UPSTREAM_RESOLVER6),
        ):
            bits = back.partition("/")[2]
            ip.addr("add", index=_LO, address=resolver, prefixlen=int(bits), flags=_NODAD if bits == "128" else 0)
            ip.route("add", dst=back, oif=device, table=_LOCAL, family=here)
            ip.route("add", type="local", dst=everything, oif=_LO, table=_LOCAL, scope=_SCOPE_HOST, family=here)
    os.setns(host)


def _address(ip, device: int, four: str, six: str) -> None:
    ip.link("set", index=device, state="up")
    ip.addr("add", index=device, address=four, prefixlen=30)
    ip.addr("add", index=device, address=six, prefixlen=64, flags=_NODAD)


def _start(settings: dict, namespace: int) -> tuple[subprocess.Popen, int]:
    """Start an origin in a namespace; its pipe says when it listens."""
    ready, writer = os.pipe()
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    os.setns(namespace)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.lab.origin", json.dumps({**settings, "parent": os.getpid(), "ready": writer})],
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        pass_fds=[writer],
        env={
            **os.environ,
            "LAB_GIT_ROOT": str(Path(settings["directory"]) / "git"),
            "LAB_FILES": str(Path(settings["directory"]) / "files"),
        },
    )
    os.setns(home)
    os.close(home)
    os.close(writer)
    return process, ready


def _hold_a_view() -> int:
    """Fork a process that does nothing but hold the mount namespace for ordinary uids; return its pid."""
    ready, writer = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            die_with_parent(signal.SIGKILL, parent)
            os.unshare(os.CLONE_NEWNS)
            mount_namespaces.open_for_everybody()
            os.write(writer, b"1")
            signal.pause()
        finally:
            os._exit(1)
    os.close(writer)
    if os.read(ready, 1) != b"1":
        raise RuntimeError("the view for ordinary users could not be made")
    os.close(ready)
    return pid


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
