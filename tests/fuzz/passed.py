"""Compiled code that passes bytes on, held against a model: what one end said the other hears, in order, and its end once.

An input is a row of operations on real connections, three bytes each: which, on whom, how much. Whatever happens in
whatever order, no byte is lost, doubled or another connection's, an end is heard where one was said and a cut where
somebody cut, what is held for full sockets stays below its bound, and in the end nothing of it is left and nothing spins.
"""

import contextlib
import fcntl
import os
import random
import select
import socket
import struct
import termios
import time
from itertools import chain

from proxy.compiled.library import AT_ONCE, PairState
from proxy.event_loop.poller import COMPILED, IN
from proxy.gate.splice import BufferQuota

MOST_OPERATIONS = 300
MOST_OPEN = 6
SIZES = (1, 10, 1000, 5000, 70_000, 131_000)
PATIENCE = 60.0  # seconds
_PERIOD = 65_521  # of what is said: no end says the same as another at the same place
_TEXT = random.Random(1).randbytes(_PERIOD) * 6
_RESET = struct.pack("ii", 1, 0)


class Party:
    """Whoever talks through a relay, a task or a server, and what it has said and heard."""

    def __init__(self, sock: socket.socket, number: int) -> None:
        self.sock = sock
        self._number = number
        self.other: Party
        self.said = self.heard = 0  # bytes
        self.has_ended = self.has_left = self.has_cut = False  # said that it ends; has closed; in a way that is a cut
        self.heard_end = self.heard_cut = False

    def _text(self, at: int, size: int) -> bytes:
        start = (self._number * 7919 + at) % _PERIOD
        return _TEXT[start : start + size]

    def say(self, size: int, flags: int = 0) -> None:
        """Say as much as the socket takes now."""
        if self.has_ended or self.has_left:
            return
        try:
            self.said += self.sock.send(self._text(self.said, size), flags | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            pass
        except ConnectionError:
            self._cut_off()

    def hear(self, size: int) -> bool:
        """Hear what there is; whether there was something."""
        if self.has_left or self.heard_end or self.heard_cut:
            return False
        try:
            data = self.sock.recv(size)
        except BlockingIOError:
            return False
        except ConnectionError:
            self._cut_off()
            return True
        assert data == self.other._text(self.heard, len(data)), "it heard what nobody said"
        self.heard += len(data)
        assert self.heard <= self.other.said
        if not data:
            self.heard_end = True
            assert self.other.has_ended, "a cut, or nothing at all, was heard as an end"
            assert self.heard == self.other.said, "the end came before all was heard"
        return True

    def _cut_off(self) -> None:
        self.heard_cut = True
        assert self.other.has_cut or self.other.has_left, "it was cut off by nobody"

    def end(self) -> None:
        """Say nothing any more, and go on listening."""
        if not self.has_left and not self.has_ended:
            with contextlib.suppress(OSError):  # cut off, and not aware of it
                self.sock.shutdown(socket.SHUT_WR)
                self.has_ended = True

    def leave(self, *, cut: bool) -> None:
        """Close; where something is unread the kernel makes a cut of that (RFC 2525, 2.17)."""
        if self.has_left:
            return
        unread = struct.unpack("i", fcntl.ioctl(self.sock, termios.FIONREAD, bytes(4)))[0]
        self.has_left = True
        self.has_cut = cut or unread > 0
        self.has_ended |= not self.has_cut
        if cut:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.sock.close()


class Connection:
    """Two parties, and the two sockets between them that compiled code has."""

    def __init__(self, lab: "RelayLab", how: int, at: tuple[int | None, int | None] = (None, None)) -> None:
        """Make it, where descriptors are given in their place: what was there is closed by that."""
        self._world = lab
        number, lab.made = lab.made, lab.made + 1
        task, self.near = _connected(lab.listener, how & 1)
        server, self.far = _connected(lab.listener, how & 2)
        self.task, self.server = Party(task, 2 * number), Party(server, 2 * number + 1)
        self.task.other, self.server.other = self.server, self.task
        if how & 4:
            self.task.say(SIZES[3])
        self.near, self.far = _put(self.near, at[0]), _put(self.far, at[1])
        for sock in (self.near, self.far):
            lab.polled.register(sock.fileno(), IN)
        most = 20_000 if how & 8 else lab.buffers.most
        fds = self.near.fileno(), self.far.fileno()
        self.pair = COMPILED.adopt(lab.polled.fileno(), *fds, lab.buffers.address, most)
        self.is_over = False
        said = b""
        if how & 32:
            with contextlib.suppress(OSError):
                said = self.near.recv(SIZES[3], socket.MSG_PEEK)
        if COMPILED.start(self.pair, said):
            self.over(COMPILED.state(self.pair))

    @property
    def parties(self) -> "tuple[Party, Party]":
        return self.task, self.server

    def over(self, how: int) -> None:
        """Close both sockets, as who was told does, and hold the end against who made it."""
        assert not self.is_over, "its end was told twice"
        assert how == COMPILED.state(self.pair)
        assert COMPILED.counts(self.pair) == (self.task.said, self.server.said) or how != PairState.ENDED
        match how:
            case PairState.ENDED:
                assert self.task.has_ended and self.server.has_ended  # noqa: PT018
            case PairState.CLIENT_BROKE:
                assert self.task.has_left
            case PairState.SERVER_BROKE:
                assert self.server.has_left
            case _:
                raise AssertionError(f"it failed: {how:#x}")
        self.close(cut=how != PairState.ENDED)

    def take_back(self) -> None:
        """Have no more done by compiled code: what it kept is what comes next, and what is waited for is in the set."""
        up, down = COMPILED.counts(self.pair)
        for far, given, sock, says in ((False, down, self.near, self.server), (True, up, self.far, self.task)):
            side = COMPILED.side(self.pair, server=far)
            assert side.unsent == says._text(given, len(side.unsent))
            assert given + len(side.unsent) <= says.said
            assert not side.has_ended or says.other.has_ended
            change = self._world.polled.modify if side.waits_for else self._world.polled.register
            change(sock.fileno(), IN)
        for one in self.parties:
            one.has_cut |= not one.other.has_left or one.has_left  # it is we who cut
        self.close(cut=True)

    def close(self, *, cut: bool) -> None:
        """Close both sockets, and let go of the pair."""
        self.is_over = True
        COMPILED.release(self.pair)
        for sock in (self.near, self.far):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET if cut else bytes(8))
            sock.close()

    def is_settled(self) -> bool:
        """Whether whoever is there has heard all that was said, or that it was cut off."""
        for one in self.parties:
            if one.has_left or one.heard_cut or (one.heard_end and self.is_over):
                continue
            if one.other.has_cut and not one.other.has_ended:  # what has ended isn't read, and nobody writes to it
                return False
            if not one.other.has_left and (one.heard, one.heard_end) != (one.other.said, one.other.has_ended):
                return False
        return self.is_over or not (self.task.has_ended and self.server.has_ended) or self._is_cut()

    def _is_cut(self) -> bool:
        return any(one.has_cut for one in self.parties)


class RelayLab:
    """All connections of one input, in one set."""

    def __init__(self) -> None:
        self.buffers = BufferQuota(400_000)
        self.polled = select.epoll()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.connections: list[Connection] = []
        self.made = 0  # connections
        self._strangers: dict[int, tuple[socket.socket, socket.socket]] = {}  # in the same set, by their descriptors
        self._abandoned: list[int] = []  # pairs whose sockets were closed without a word

    def do(self, operation: int, who: int, how: int) -> None:
        """Do one operation; one that can't be done is passed over."""
        there = [each for each in self.connections if not each.is_over or how & 64]
        if not operation % 16 or not there:
            if len(self.connections) < MOST_OPEN:
                self.connections.append(Connection(self, how))
            return
        connection = there[(who >> 1) % len(there)]
        if operation % 2:
            self._talk(connection.parties[who & 1], operation // 2 % 8, how)
        else:
            self._pass_on(connection, operation // 2 % 8, how)

    @staticmethod
    def _talk(party: Party, what: int, how: int) -> None:
        match what:
            case 0 | 1 | 2:
                party.say(SIZES[how % len(SIZES)])
            case 3 | 4:
                party.hear(SIZES[how % len(SIZES)])
            case 5:
                party.say(1, socket.MSG_OOB)
            case 6:
                party.end()
            case _:
                party.leave(cut=how & 1 == 0)

    def _pass_on(self, connection: Connection, what: int, how: int) -> None:
        match what:
            case 1 if self._strangers:
                list(self._strangers.values())[how % len(self._strangers)][1].send(b"x")
            case 2 if self._abandoned:
                COMPILED.release(self._abandoned.pop())  # late, and of what isn't its any more
            case 3 if not connection.is_over and COMPILED.state(connection.pair) == PairState.OPEN:
                connection.take_back()
            case 4 if not connection.is_over:
                self._abandon(connection, how)
            case 5:
                self.settle()
            case _:
                self.serve(1 + how % AT_ONCE)

    def _abandon(self, connection: Connection, how: int) -> None:
        """Close both sockets and say so to nobody: others have the numbers at once, and one may be a stranger's."""
        connection.is_over = True
        self._abandoned.append(connection.pair)
        for one in connection.parties:
            one.has_cut = True
        for sock in (connection.near, connection.far):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        near, far = connection.near.detach(), connection.far.detach()
        if how & 16:
            self.connections.append(Connection(self, how, (far, near)))
            return
        self.connections.append(Connection(self, how, (far, None)))
        ours, theirs = socket.socketpair()
        ours = _put(ours, near)
        ours.setblocking(False)
        self.polled.register(near, IN)
        self._strangers[near] = ours, theirs

    def serve(self, most: int = AT_ONCE) -> int:
        """Have what is ready passed on, and close what is over; returns how much was told."""
        told = COMPILED.serve(self.polled.fileno(), 0, most)
        assert len(told) <= 2 * most
        for fd, events in zip(told[::2], told[1::2], strict=True):
            if fd in self._strangers:
                assert events & IN
                assert self._strangers[fd][0].recv(100)
                continue
            (whose,) = [each for each in self.connections if not each.is_over and each.near.fileno() == fd]
            whose.over(events)
        bound = self.buffers.most + 256 * 1024 + 2 * 4096 * MOST_OPEN
        assert 0 <= self.buffers.used <= bound
        return len(told)

    def settle(self) -> None:
        """Have all heard by whoever is there, and find that nothing more happens."""
        deadline = time.monotonic() + PATIENCE
        while True:
            told = self.serve()
            heard = [one.hear(1 << 17) for each in self.connections for one in each.parties]
            settled = not told and not any(heard) and all(each.is_settled() for each in self.connections)
            if settled and not self.polled.poll(0):
                break
            assert time.monotonic() < deadline, "it never comes to an end, or something spins"
        self.connections = [each for each in self.connections if not each.is_over or self._leave(each)]

    @staticmethod
    def _leave(connection: Connection) -> bool:
        for one in connection.parties:
            one.leave(cut=True)
        return False

    def close(self) -> None:
        """Let go of everything: nothing is held any more."""
        for each in self.connections:
            if not each.is_over:
                each.close(cut=True)
            self._leave(each)
        for pair in self._abandoned:
            COMPILED.release(pair)
        for one in (self.listener, self.polled, *chain.from_iterable(self._strangers.values())):
            one.close()


def _connected(listener: socket.socket, small: int) -> tuple[socket.socket, socket.socket]:
    """Make a connection: whose end is a party's, and ours."""
    outer = socket.socket()
    if small:
        outer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    outer.connect(listener.getsockname())
    inner, _ = listener.accept()
    inner.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    if small:
        inner.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    for sock in (outer, inner):
        sock.setblocking(False)
    return outer, inner


def _put(sock: socket.socket, at: int | None) -> socket.socket:
    """Give a socket another number, which is closed if it is open."""
    if at is None:
        return sock
    os.dup2(sock.fileno(), at, inheritable=False)
    sock.close()
    return socket.socket(fileno=at)


def fuzz_passed(data: bytes) -> None:
    """Any row of operations is passed on as it was said, and leaves nothing."""
    lab = RelayLab()
    try:
        for at in range(0, min(len(data) - 2, 3 * MOST_OPERATIONS), 3):
            lab.do(*data[at : at + 3])
        lab.settle()
    finally:
        lab.close()
    assert lab.buffers.used == 0


def _seeds() -> list[bytes]:
    chance = random.Random(2)
    drawn = [bytes(chance.randrange(256) for _ in range(3 * size)) for size in (5, 20, 60, 150)]
    opens, says, hears, urges, ends, leaves = 0, 1, 7, 11, 13, 15
    serves, knocks, releases, takes, abandons, settles = 14, 2, 4, 6, 8, 10
    told = [
        [(opens, 0, 4), (says, 1, 5), (says, 0, 2), (serves, 0, 9), (ends, 0, 0), (serves, 0, 9), (ends, 1, 0), (settles, 0, 0)],
        [(opens, 0, 3), *[(says, 1, 5), (serves, 0, 9)] * 4, (hears, 0, 3), (serves, 0, 1), (leaves, 0, 0), (serves, 0, 9)],
        [(opens, 0, 11), (opens, 0, 3), *[(says, 1, 5), (says, 3, 4), (serves, 0, 9)] * 9, (takes, 0, 1), (settles, 0, 0)],
        [(opens, 0, 3), *[(says, 1, 5), (says, 0, 5), (serves, 0, 9)] * 6, (ends, 0, 0), (leaves, 1, 2), (serves, 0, 0)],
        [(opens, 0, 0), (urges, 0, 0), (urges, 1, 0), (serves, 0, 9), (urges, 0, 0), (ends, 1, 0), (serves, 0, 9)],
        [*[(opens, 0, 3)] * 6, *[(says, who, 5) for who in (1, 3, 5, 7, 9, 11) * 12], *[(serves, 0, 9)] * 9, (settles, 0, 0)],
        [(opens, 0, 3), (says, 1, 5), (abandons, 0, 3), (knocks, 0, 0), (serves, 0, 9), (says, 1, 5), (releases, 0, 0)],
        [(opens, 0, 3), (says, 1, 5), (abandons, 0, 19), (releases, 0, 0), (says, 1, 5), (serves, 0, 9), (settles, 0, 0)],
    ]  # fmt: skip
    return [*drawn, *(b"".join(map(bytes, each)) for each in told)]


TARGETS = {} if COMPILED is None else {"passed on": fuzz_passed}
SEEDS: dict[str, list[bytes]] = {} if COMPILED is None else {"passed on": _seeds()}
