"""Sets up the gate's network in an existing namespace (`exeat attach`), with the rights of the caller.

The gate must be the only way out, so a namespace with any device but `lo` is refused. The ruleset of a killed service
is replaced.
"""

import errno
import fcntl
import os
import socket
import struct
from typing import Final

from enforcer.network.constants import TABLE
from enforcer.network.gate_sockets import GateSockets, open_gate_sockets
from enforcer.network.install import EncodedNetwork, execute
from enforcer.system.errors import HostError
from proxy.wire.netlink import NETLINK_NETFILTER, NLM_F_ACK, NLM_F_REQUEST, NLMSG_ERROR, attribute, message, messages

_NS_GET_USERNS: Final = 0xB701  # ioctl_ns(2)
# linux/netfilter/nf_tables.h, nfnetlink.h
_DELTABLE, _TABLE_NAME, _INET = 10 << 8 | 2, 1, 1
_BATCH_BEGIN, _BATCH_END, _NFTABLES = 0x10, 0x11, 10
_TIMEOUT: Final = 5.0  # seconds


def enter(namespace: int) -> None:
    """Move the calling process, which must have one thread, into a network namespace, with the right to change it.

    An ordinary user has that right in a user namespace of their own, which owns the network namespace. Raises
    HostError.
    """
    own_namespace = os.stat("/proc/self/ns/net")
    status = os.fstat(namespace)
    if (status.st_dev, status.st_ino) == (own_namespace.st_dev, own_namespace.st_ino):
        raise HostError(
            "this is the network namespace of the host itself", "name a process of the container, or its namespace"
        )
    try:
        owner = fcntl.ioctl(namespace, _NS_GET_USERNS)
        try:
            if os.readlink(f"/proc/self/fd/{owner}") != os.readlink("/proc/self/ns/user"):
                os.setns(owner, os.CLONE_NEWUSER)
        finally:
            os.close(owner)
        os.setns(namespace, os.CLONE_NEWNET)
    except OSError as error:
        raise HostError(
            f"the network namespace can't be entered: {error.strerror}", "run as the user who made it, or as root"
        ) from error


def install(encoded: EncodedNetwork) -> GateSockets:
    """Set up the gate's network in this namespace, and open its sockets. Raises HostError, OSError."""
    other_devices = [name for _, name in socket.if_nameindex() if name != "lo"]
    if other_devices:
        raise HostError(
            f"the network namespace has other devices than `lo`: {', '.join(sorted(other_devices))}",
            "start the container without a network (`--network none`)",
        )
    _check_port_is_free(encoded.gate_port)
    delete_ruleset()
    installed = execute(encoded, is_repeated=True)
    return open_gate_sockets(encoded.gate_port, refusal_log=installed.refusal_log, ipv6=installed.ipv6)


def _check_port_is_free(port: int) -> None:
    """Raise HostError if a gate is there already, before anything is changed."""
    try:
        with socket.socket() as probe:
            probe.bind(("0.0.0.0", port))
    except OSError as error:
        raise HostError(
            f"port {port} in the network namespace is in use, as by a gate",
            "see `exeat ps`, and `exeat detach` it first",
        ) from error


def delete_ruleset() -> None:
    """Delete the ruleset of an earlier service, if there is one. Raises OSError."""
    delete = struct.pack("!BBH", _INET, 0, 0) + attribute(_TABLE_NAME, TABLE.encode() + b"\0")
    edge = struct.pack("!BBH", socket.AF_UNSPEC, 0, _NFTABLES)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as sock:
        sock.settimeout(_TIMEOUT)
        sock.bind((0, 0))
        sock.send(
            message(_BATCH_BEGIN, NLM_F_REQUEST, edge)
            + message(_DELTABLE, NLM_F_REQUEST | NLM_F_ACK, delete)
            + message(_BATCH_END, NLM_F_REQUEST, edge)
        )
        answers = (answer.errno for answer in messages(sock.recv(65536)) if answer.kind == NLMSG_ERROR)
        number = next(answers, 0)
    if number not in (0, errno.ENOENT):
        raise OSError(number, f"cannot delete the old ruleset: {os.strerror(number)}")
