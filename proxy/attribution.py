"""Whose socket is this: from a connection's addresses to the process that opened it, best effort.

The kernel is asked with the exact tuple (inet_diag, no capability needed) over a socket that belongs to the sandbox's
namespace; its answer's inode is then looked for in a /proc that the caller may read. Ask while the connection waits on
its decision: afterwards the process may be gone. Whatever is not certain is None, "unknown" and never a guess: this
tells people who did something, it decides nothing.
"""

import contextlib
import os
import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from proxy.netlink import HEADER, NLM_F_REQUEST, MalformedMessageError, message, messages
from proxy.telemetry.events import Process

if TYPE_CHECKING:
    from collections.abc import Iterator

type Endpoint = tuple[IPv4Address | IPv6Address, int]

_SOCK_DIAG_BY_FAMILY = 20  # linux/sock_diag.h
_REQUEST = struct.Struct("=BBBxI")  # struct inet_diag_req_v2: family, protocol, extensions, states; then the id
_ID = struct.Struct("!HH16s16s")  # struct inet_diag_sockid: source port, destination port, source, destination
_ID_END = struct.Struct("=III")  # its interface, and the cookie: INET_DIAG_NOCOOKIE
_ANSWER_ID, _ANSWER_END = 4, struct.Struct("=IIIII")  # struct inet_diag_msg: expires, rqueue, wqueue, uid, inode
_ID_BYTES = _ID.size + _ID_END.size
_NO_COOKIE, _EVERY_STATE = 0xFFFFFFFF, 0xFFFFFFFF
_LO = 1  # the only interface of a sandbox; a socket bound to it is found only under it

_MOST_DESCRIPTORS = 8192  # in all processes together, 10 ms; a sandbox that has more open gets "unknown"
_LONGEST_ARGV = 4096  # bytes; also the bound on what is read of any file in /proc
_MOST_ANCESTORS = 8


@dataclass(frozen=True, slots=True)
class Owner:
    """What the kernel knows of a socket: its inode, and the uid of its maker as the asking namespace sees it."""

    inode: int
    uid: int


def ask_owner(diag: socket.socket, protocol: int, local: Endpoint, remote: Endpoint) -> Owner | None:
    """Return whose socket has these two ends; None when that isn't known. Never blocks.

    `local` is the task's end (accept's peer), `remote` where it connected to (getsockname of the accepted socket).
    `protocol` is IPPROTO_TCP or IPPROTO_UDP.
    """
    for interface in (0, _LO):
        request = encode_query(protocol, local, remote, interface=interface)
        sequence = HEADER.unpack_from(request)[3]
        with contextlib.suppress(OSError, MalformedMessageError):
            diag.send(request, socket.MSG_DONTWAIT)
            while True:  # the kernel answers before send returns; what an earlier, failed question left is skipped
                data = diag.recv(8192, socket.MSG_DONTWAIT)
                answer = next(messages(data), None)
                if answer is not None and answer.sequence == sequence:
                    break
            if owner := parse_owner(data, protocol, local, remote):
                return owner
    return None


def encode_query(protocol: int, local: Endpoint, remote: Endpoint, *, interface: int = 0) -> bytes:
    """Return the netlink request for the one socket with these ends."""
    # The kernel swaps the two for UDP, "for historical reasons" (udp_diag.c, udp_dump_one).
    first, second = (local, remote) if protocol == socket.IPPROTO_TCP else (remote, local)
    family = socket.AF_INET if first[0].version == 4 else socket.AF_INET6
    tuple_ = _ID.pack(first[1], second[1], first[0].packed, second[0].packed)
    payload = (
        _REQUEST.pack(family, protocol, 0, _EVERY_STATE) + tuple_ + _ID_END.pack(interface, _NO_COOKIE, _NO_COOKIE)
    )
    return message(_SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, payload, int.from_bytes(os.urandom(4)))


def parse_owner(data: bytes, protocol: int, local: Endpoint, remote: Endpoint) -> Owner | None:
    """Return the owner that one answer names, if it is the answer for exactly these ends.

    Where no connection has them the kernel falls back to a listener on the port: that is another socket.
    """
    for answer in messages(data):
        if answer.kind != _SOCK_DIAG_BY_FAMILY or len(answer.payload) < _ANSWER_ID + _ID_BYTES + _ANSWER_END.size:
            continue
        family = answer.payload[0]
        sport, dport, source, destination = _ID.unpack_from(answer.payload, _ANSWER_ID)
        here, there = (_address(family, source), sport), (_address(family, destination), dport)
        exact = here == local and there == remote
        # An unconnected UDP socket has no remote end, and often no local address.
        unconnected = protocol == socket.IPPROTO_UDP and sport == local[1] and not dport
        if exact or (unconnected and (here == local or not int(here[0]))):
            *_, uid, inode = _ANSWER_END.unpack_from(answer.payload, _ANSWER_ID + _ID_BYTES)
            return Owner(inode, uid) if inode else None  # 0: the process has closed it
    return None


def find_process(proc: int, owner: Owner) -> Process | None:
    """Return the process that alone holds the socket, from the /proc directory `proc`; None if none or several do."""
    wanted = f"socket:[{owner.inode}]"
    try:
        pids = _holders(proc, wanted)
        if len(pids) != 1:
            return None
        with _directory(str(pids[0]), proc) as process:
            found = _describe(proc, pids[0], process, owner.uid)
            # The pid may have changed hands since it was found; this directory can't: ask it what it was found for.
            return found if wanted in _links(process) else None
    except (OSError, ValueError):
        return None


def _holders(proc: int, wanted: str) -> list[int]:
    """Every process that has the socket open, of those the caller may look into."""
    holders, left = [], _MOST_DESCRIPTORS
    for pid in [int(name) for name in os.listdir(proc) if name.isdecimal()]:
        with (
            contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError),
            _directory(str(pid), proc) as it,
        ):
            for link in _links(it):
                left -= 1
                if left < 0:
                    raise OSError("more descriptors than are looked through")
                if link == wanted:
                    holders.append(pid)
                    break
    return holders


def _links(process: int) -> "Iterator[str]":
    """Yield what each descriptor of a process is, in /proc's words."""
    with _directory("fd", process) as descriptors:
        for name in os.listdir(descriptors):
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                yield os.readlink(name, dir_fd=descriptors)


@contextlib.contextmanager
def _directory(name: str, above: int) -> "Iterator[int]":
    handle = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=above)
    try:
        yield handle
    finally:
        os.close(handle)


def _describe(proc: int, pid: int, directory: int, uid: int) -> Process:
    argv = _read(directory, "cmdline").rstrip(b"\0").split(b"\0")
    return Process(
        pid=pid,
        exe=_executable(directory),
        argv=tuple(part.decode("utf-8", "backslashreplace") for part in argv),
        uid=uid,
        ancestors=tuple(_ancestors(proc, directory)),
    )


def _ancestors(proc: int, directory: int) -> "Iterator[str]":
    """Yield the executables of the parents, nearest first, as far as /proc says."""
    with contextlib.suppress(OSError, ValueError):
        parent = _parent(directory)
        for _ in range(_MOST_ANCESTORS):
            if not parent:
                return
            with _directory(str(parent), proc) as process:
                yield _executable(process)
                parent = _parent(process)


def _executable(process: int) -> str:
    return os.readlink(b"exe", dir_fd=process).decode("utf-8", "backslashreplace")


def _parent(process: int) -> int:
    """Read the second field after the command's name, which may itself hold spaces and brackets (proc_pid_stat(5))."""
    return int(_read(process, "stat").rpartition(b")")[2].split()[1])


def _read(process: int, name: str) -> bytes:
    with open(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=process), "rb") as file:
        return file.read(_LONGEST_ARGV)


def _address(family: int, packed: bytes) -> IPv4Address | IPv6Address:
    if family == socket.AF_INET:
        return IPv4Address(packed[:4])
    address = IPv6Address(packed)
    return address.ipv4_mapped or address
