"""The process that creates and holds the namespaces of the lab: two for the network, two for mounts, two origins.

    origin namespace                          host side
    every address is local to it    veth      a default route to the origin, the lab's resolv.conf and CA;
    DNS, web, git, recorder      <────────>   its own loopback has the same services and a recorder too

Run by `lab.py`; prints the pids that hold each namespace, then waits. Its children die with it. It ends with its
parent and then removes the directory of the lab.
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
    """Create everything, print the pids, and wait."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    die_with_parent(signal.SIGTERM, settings["parent"])
    try:
        print(json.dumps(_make(settings)), flush=True)
        signal.pause()
    finally:
        shutil.rmtree(settings["directory"], ignore_errors=True)


def _make(settings: dict) -> dict[str, int]:
    """Return the pids whose namespaces programs can enter."""
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
    user_mounts = _hold_user_mounts()
    for process, ready in outside, inside:
        if os.read(ready, 1) != b"1":
            raise RuntimeError(f"an origin ended with {process.wait()}")
    return {"root": os.getpid(), "everybody": user_mounts, "origin": outside[0].pid}


def _connect(origin: int, host: int) -> None:
    """Connect the namespaces, and make every address local in that of the origin."""
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
        # In one table, so that the route back to the host, with its longer prefix, wins over the default route.
        for family, default, host_route, resolver in (
            (socket.AF_INET, "0.0.0.0/0", f"{HOST4}/32", UPSTREAM_RESOLVER),
            (socket.AF_INET6, "::/0", f"{HOST6}/128", UPSTREAM_RESOLVER6),
        ):
            bits = host_route.partition("/")[2]
            ip.addr("add", index=_LO, address=resolver, prefixlen=int(bits), flags=_NODAD if bits == "128" else 0)
            ip.route("add", dst=host_route, oif=device, table=_LOCAL, family=family)
            ip.route("add", type="local", dst=default, oif=_LO, table=_LOCAL, scope=_SCOPE_HOST, family=family)
    os.setns(host)


def _address(ip, device: int, four: str, six: str) -> None:
    ip.link("set", index=device, state="up")
    ip.addr("add", index=device, address=four, prefixlen=30)
    ip.addr("add", index=device, address=six, prefixlen=64, flags=_NODAD)


def _start(settings: dict, namespace: int) -> tuple[subprocess.Popen, int]:
    """Start an origin in a namespace; its pipe receives a byte when it listens."""
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


def _hold_user_mounts() -> int:
    """Fork a process that only holds the mount namespace for ordinary uids; return its pid."""
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
        raise RuntimeError("the mount namespace for ordinary users could not be made")
    os.close(ready)
    return pid


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
