"""The only way out of the host that a soak runs on: it ends at a recorder of every packet, and one server that rules allow.

    host side (the soak, its service, its tasks' gates)  <── veth ──>  origin: every address is local to it

`world` needs root. What was seen is in a file, for whoever the soak runs as: a line for each destination, when it is first seen.
"""

import contextlib
import os
import select
import selectors
import socket
import struct
import subprocess
import sys
from pathlib import Path

ALLOWED, REFUSED = "93.184.216.35", "93.184.216.34"
FILE, PROCESS = "EXEAT_SOAK_SEEN", "EXEAT_SOAK_ORIGIN"  # variables: what was seen, and by whom
_HERE, _THERE = "192.0.2.2/30", "192.0.2.1/30"
_ALL, _OUTGOING, _FRAGMENT = 3, 4, 0x1FFF  # packet(7); RFC 791, section 3.1
_NEIGHBOURS = range(130, 150)  # types of ICMPv6 that hosts say to each other on a link (RFC 4861, RFC 3810)


def world(seen: Path) -> None:
    """Leave the host's network for one of this process's own, with the origin at its other end. Needs root."""
    seen.touch()
    seen.chmod(0o644)
    us, them = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        os.close(us)
        _origin(seen, them, parent)
    os.close(them)
    os.read(us, 1)
    os.unshare(os.CLONE_NEWNET)
    for words in (
        "link set lo up",
        f"link add soak0 type veth peer name soak1 netns {pid}",
        f"addr add {_HERE} dev soak0",
        "link set soak0 up",
        f"route add default via {_THERE.partition('/')[0]}",
    ):
        subprocess.run(["ip", *words.split()], check=True)
    os.read(us, 1)
    os.close(us)
    os.environ |= {FILE: str(seen), PROCESS: str(pid)}


def reached() -> set[str]:
    """Return each destination that a packet of the host side's came for: `tcp 93.184.216.35:80`."""
    return set(Path(os.environ[FILE]).read_text().splitlines())


def _origin(seen: Path, ready: int, parent: int) -> None:
    above = os.pidfd_open(parent)  # a signal of the kernel's at its death would be of the user that it is by then
    os.unshare(os.CLONE_NEWNET)
    os.write(ready, b"n")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    while "soak1" not in [name for _, name in socket.if_nameindex()]:
        if select.select([above], (), (), 0.01)[0]:
            os._exit(1)
    packets = socket.socket(
        socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ALL)
    )  # before it is up: the first one too
    for words in (f"addr add {_THERE} dev soak1", "link set soak1 up", "route add local default dev lo"):
        subprocess.run(["ip", *words.split()], check=True)
    server = socket.create_server((ALLOWED, 80), backlog=512)
    os.write(ready, b"r")
    os.close(ready)
    known = set()
    with selectors.DefaultSelector() as selector, seen.open("a", buffering=1) as told:
        for source in (packets, server, above):
            selector.register(source, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj == above:
                    os._exit(0)
                if key.fileobj is server:
                    _answer(server)
                elif (what := _destination(*packets.recvfrom(2048))) and what not in known:
                    known.add(what)
                    told.write(what + "\n")


def _answer(server: socket.socket) -> None:
    with contextlib.suppress(OSError), server.accept()[0] as client:
        client.settimeout(1)
        client.recv(4096)
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


def _destination(packet: bytes, where: tuple) -> str:
    """Say where a packet is going; nothing for what is ours, or only the link's own affair."""
    device, protocol, kind, *_ = where
    if kind == _OUTGOING or device == "lo":
        return ""
    if protocol == 0x0800:
        number, to = packet[9], socket.inet_ntoa(packet[16:20])
        rest = b"" if struct.unpack_from(">H", packet, 6)[0] & _FRAGMENT else packet[(packet[0] & 15) * 4 :]
    elif protocol == 0x86DD:
        number, to, rest = packet[6], socket.inet_ntop(socket.AF_INET6, packet[24:40]), packet[40:]
        if to.startswith("ff02::") or (number == socket.IPPROTO_ICMPV6 and rest and rest[0] in _NEIGHBOURS):
            return ""
    else:
        return ""  # ARP
    name = {socket.IPPROTO_TCP: "tcp", socket.IPPROTO_UDP: "udp"}.get(number)
    return f"{name} {to}:{struct.unpack_from('>H', rest, 2)[0]}" if name and len(rest) >= 4 else f"{number} {to}"


if __name__ == "__main__":  # `python -m tests.soak.origin FILE COMMAND...`: have a command run there
    world(Path(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
