"""Requests that wait until others have started, without a process: sockets, descriptors and who is begun when."""

import errno
import os
import socket

import pytest

from enforcer.service import protocol, start_queue
from enforcer.service.start_queue import StartQueue
from enforcer.system.errors import HostError
from proxy.wire import message


class Room:
    """A line, and what it began: the names that were sent with each request."""

    def __init__(self, most=2, longest=10):
        self.line = StartQueue(self.start, most, longest)
        self.begun, self.clients, self.broken = [], [], set()

    def start(self, client, descriptors):
        name = client.recv(9).decode()
        assert client.getblocking()
        assert [os.fstat(each).st_rdev for each in descriptors] == [os.stat("/dev/null").st_rdev] * protocol.DESCRIPTORS
        if name in self.broken:
            raise HostError("no process can be made")
        self.begun.append(name)
        return ord(name)

    def ask(self, *names):
        for name in names:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            theirs.setblocking(False)
            ours.send(name.encode())
            self.clients.append(ours)
            null = os.open(os.devnull, os.O_RDWR)
            with theirs:
                self.line.submit(theirs, [null] * protocol.DESCRIPTORS)
            os.close(null)


@pytest.fixture
def room():
    before, made = os.listdir("/proc/self/fd"), Room()
    yield made
    made.line.close()
    for client in made.clients:
        client.close()
    assert os.listdir("/proc/self/fd") == before


def test_queue_starts_in_order_up_to_its_limit(room):
    room.ask("a", "b", "c", "d", "e")
    assert (room.begun, room.line.finish_start(ord("b")), room.line.wait()) == (["a", "b"], False, 0)
    room.line.turn()
    assert (room.begun, room.line.wait() > 0) == (["a", "b", "c"], True)
    room.line.turn()
    room.ask("f")  # behind those that wait
    for name in "ac":
        assert not room.line.finish_start(ord(name))
        room.line.turn()
    assert room.begun == ["a", "b", "c", "d", "e"]
    room.line.finish_start(ord("d"))
    room.line.turn()
    assert [room.line.finish_start(ord(name)) for name in "efxf"] == [False, True, False, False]


def test_slow_start_delays_no_other(room, monkeypatch):
    room.ask("a", "b", "c")
    monkeypatch.setattr(start_queue, "_COUNTED_FOR", 0)
    assert room.line.wait() <= 0
    room.line.turn()
    assert room.begun == ["a", "b", "c"]


def test_failed_copy_of_descriptors_queues_nothing(room, monkeypatch):
    """The copy of a connection that nobody closes would have who asks wait for ever."""
    room.ask("a", "b")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    copy, left = os.dup, iter([True] * 3)

    def dup(descriptor):
        if not next(left, False):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return copy(descriptor)

    monkeypatch.setattr(os, "dup", dup)
    with ours, theirs, pytest.raises(OSError, match="open files"):
        room.line.submit(theirs, [0] * protocol.DESCRIPTORS)
    monkeypatch.undo()
    assert room.line.wait() > 1  # nobody waits


def test_failed_start_does_not_stop_the_queue(room):
    room.broken = {"c"}
    room.ask("a", "b", "c", "d")
    room.line.finish_start(ord("a"))
    with pytest.raises(HostError, match="no process"):
        room.line.turn()
    assert room.clients[2].recv(99) == b"declined no process can be made"  # it runs its task without a service
    assert room.clients[2].recv(9) == b""
    room.line.turn()
    assert room.begun == ["a", "b", "d"]


def test_queued_requests_are_declined_at_the_end(room):
    room.ask("a", "b", "c")
    room.line.close()
    assert message.packet(room.clients[2], 99)[0].startswith(b"declined ")
    assert (room.begun, room.line.wait() > 1) == (["a", "b"], True)


def test_queue_is_bounded_and_refuses_partial_requests(room):
    room.line = StartQueue(room.start, 1, 1)
    room.ask("a", "b", "c")
    assert room.begun == ["a", "c"]
    with pytest.raises(protocol.MalformedRequestError):
        room.line.submit(room.clients[0], [0])
