"""What a sandbox's processes are told once it is known what for: by value, or which it is of what both have."""

import contextlib
import os
import resource
import socket
import sys
from types import MappingProxyType

import pytest

from enforcer.errors import HostError
from enforcer.sandbox import shipping
from enforcer.sandbox.hull import Hull
from enforcer.service import runs
from proxy import message


def told(what, *, has):
    """What arrives of it, and how many bytes it took."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        shipping.ship(ours, what, [0], has=has)
        _, [(_, _, rights)], _, _ = theirs.recvmsg(1 << 10, socket.CMSG_SPACE(4), socket.MSG_PEEK)
        file = int.from_bytes(rights[:4], sys.byteorder)
        size = os.fstat(file).st_size
        os.close(file)
        arrived = shipping.unpack(theirs)
    for descriptor in arrived.descriptors.values():
        os.close(descriptor)
    return arrived.what, size


def test_what_both_have_had_since_before_is_not_sent_and_what_came_later_is(monkeypatch):
    monkeypatch.setattr(shipping, "_common", [])
    before, later = os.urandom(100_000), os.urandom(100_000)
    shipping.keep(before)
    has = shipping.kept()
    shipping.keep(later)
    what = MappingProxyType({"before": before, "like it": bytes(bytearray(before)), "later": later})
    arrived, size = told(what, has=has)
    assert (arrived, type(arrived)) == (dict(what), MappingProxyType)
    assert arrived["before"] is before
    assert 200_000 < size < 210_000
    assert told(what, has=0)[1] > 300_000


@contextlib.contextmanager
def room_for_one_more():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_descriptors_that_there_is_no_room_for_are_missed():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    before = os.listdir("/proc/self/fd")
    with ours, theirs:
        message.send(theirs, {"sockets": ["a", "b"], "init": 1}, [0, 0])
        with room_for_one_more(), pytest.raises(HostError, match="too many open files"):
            Hull(0, ours, ours, ()).ready()
        message.send(theirs, {"run": True}, [0] * 6)
        with room_for_one_more(), pytest.raises(OSError, match="not all of what the caller gave"):
            runs._await(ours, None)
        assert os.listdir("/proc/self/fd") == before
