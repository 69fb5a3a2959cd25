"""What a sandbox's processes are told once it is known what for: by value, or which it is of what both have."""

import os
import socket
import sys
from types import MappingProxyType

from enforcer.sandbox import shipping


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
