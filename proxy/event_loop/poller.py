"""Poller: calls small objects when their sockets are ready, without asyncio's work for each event.

Under a `Loop`, asyncio's selector serves them itself, and while nothing of asyncio's is due it doesn't even return: no
handle, no context, no turn of the loop. On a connection that is passed through this takes a third off the CPU time
(concurrent connections: 105 us with add_reader, 65 us so; single ones, where every event is a turn of the loop: 320 us
and 230 us). Under any other loop they have an epoll set of their own, which that loop watches.

A descriptor's number may have changed hands between epoll's answer and its turn, so whoever is watched must bear being
called when nothing is ready. An exception ends only the object that raised it (invariant 2).

Sockets are closed here too, by a reset or in peace: a cut is not an end (invariant 12). Source: socket(7), SO_LINGER.
"""

import asyncio
import contextlib
import math
import os
import select
import selectors
import socket
import struct
import time
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any, Final, Protocol

from proxy.compiled import library
from proxy.event_loop import turn
from proxy.event_loop.slices import Slice

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from datetime import date

IN: Final = select.EPOLLIN
OUT: Final = select.EPOLLOUT
ONCE: Final = select.EPOLLONESHOT  # one event, and then none, not even an error, before `watch` or `change`
ERR: Final = select.EPOLLERR
HUP: Final = select.EPOLLHUP
COMPILED: Final = library.load()  # None: the interpreter does it all

_RESET: Final = struct.pack("ii", 1, 0)  # struct linger, on with no time: close sends a reset
_IN_PEACE: Final = struct.pack("ii", 0, 0)
_closed = socket.SocketType.close  # the C type's: a socket's own goes through two functions, for makefile(), first
EVERY: Final = 1.0  # seconds
_A_TURN: Final = 16  # events of one sandbox before the others of its worker get theirs
_AT_ONCE: Final = 256  # events before time and asyncio's other business get their turn


def reset(sock: socket.socket) -> None:
    """Close so that the other side can't take it for an end."""
    _close(sock, _RESET)


def finish(sock: socket.socket) -> None:
    """Close in peace: what was sent is delivered, and the other side sees an end."""
    _close(sock, _IN_PEACE)


def cut_if_killed(sock: socket.socket) -> None:
    """Have the kernel reset the connection should this process end without closing it (invariant 12).

    What a listener has set, its accepted sockets inherit. `finish` closes in peace.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


def prepare_listener(listener: socket.socket) -> None:
    """Set what accepted sockets inherit from the moment when their first packet comes."""
    listener.setblocking(False)
    # No waiting to fill segments, urgent data in its place in the stream.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    cut_if_killed(listener)


def _close(sock: socket.socket, linger: bytes) -> None:
    try:  # noqa: SIM105  contextlib.suppress is three calls, twice a connection
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    except OSError:
        pass  # it is broken already
    _closed(sock)


class SocketHandler(Protocol):
    """Something with a socket in the set."""

    def ready(self, events: int) -> None:
        """Take note of epoll's `events`; ERR and HUP come unasked. Must not block."""

    def failed(self, error: Exception) -> None:
        """Close down: `ready` raised. Must not raise."""


class _Set:
    """A set of epoll's, and who is told of what happens in it."""

    __slots__ = ("epoll", "left", "watched")

    def __init__(self, epoll: select.epoll) -> None:
        self.epoll = epoll
        self.left: dict[int, int] = {}  # events by descriptor, that nobody was told of yet: their turn was over
        self.watched: dict[int, SocketHandler] = {}


class Poller:
    """What the gate watches on one loop. For one thread, and made within the running loop."""

    __slots__ = ("_left", "_loop", "_place", "_set", "_watched", "number")

    def __init__(self, *, in_turn: bool = False) -> None:
        """Watch on the running loop.

        `in_turn`: whatever happens in this set, it has one turn like anybody else's (invariant 11). For a `Loop` that
        serves several sandboxes, each in a set of its own (epoll(7): sets can be watched by sets).
        """
        loop = asyncio.get_running_loop()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._place: _PollSet | None = None
        mine = loop.selector.set if isinstance(loop, Loop) and not in_turn else _Set(select.epoll())
        self._set, self._watched, self._left = mine.epoll, mine.watched, mine.left
        if isinstance(loop, Loop) and in_turn:
            self._place = _PollSet(loop, mine)
        elif not isinstance(loop, Loop):
            self._loop = loop
            loop.add_reader(self._set.fileno(), _serve, mine, 0)
        self.number = self._set.fileno()  # the set's own descriptor

    def watch(self, fd: int, events: int, watched: SocketHandler) -> None:
        """Have `watched` told of `events` on a descriptor, and nobody else who was until now."""
        if fd in self._watched:
            self._set.modify(fd, events)
        else:
            self._set.register(fd, events)
            self._left.pop(fd, None)  # that was of another with this number
        self._watched[fd] = watched

    def change(self, fd: int, events: int) -> None:
        """Wait for something else on a descriptor in the set."""
        self._set.modify(fd, events)

    def forget(self, fd: int) -> None:
        """Take a descriptor out of the set, if it is there: always before it is closed or given away."""
        if self._watched.pop(fd, None) is not None:
            self._set.unregister(fd)

    def drop(self, fd: int) -> None:
        """Watch no more what is about to be closed, within this very call of the loop.

        The kernel takes it out of the set by itself (epoll(7), Q6): nobody else holds a socket of the gate's.
        """
        self._watched.pop(fd, None)

    def close(self) -> None:
        """Watch nothing any more. Idempotent."""
        for fd in tuple(self._watched):
            with contextlib.suppress(OSError):  # compiled code may have taken it out of the set already
                self.forget(fd)
        if self._set.closed or (self._place is None and self._loop is None):
            return  # that one is the loop's
        if self._place is not None:
            self._place.end()
        if self._loop is not None:
            self._loop.remove_reader(self.number)
        if COMPILED is not None:
            COMPILED.leave(self.number)
        self._set.close()


class _PollSet:
    """A set of its own as the loop's set sees it: ready when anything in it is, and served a little at a time."""

    __slots__ = ("_context", "_goes_on", "_loop", "_set")

    def __init__(self, loop: "Loop", one: _Set) -> None:
        self._loop = loop
        self._set = one
        self._goes_on = False  # whether there is a call of `_go_on` to come
        self._context = copy_context()  # whose it is
        all_of_them = loop.selector.set
        all_of_them.watched[one.epoll.fileno()] = self
        all_of_them.epoll.register(one.epoll.fileno(), IN)

    def ready(self, _events: int) -> None:
        """Serve what is ready, for as long as a turn takes; what is left comes first in the next one."""
        self._loop.in_turn(self._context, self._serve)
        if self._set.left and not self._goes_on:
            self._goes_on = True
            self._loop.call_soon(self._go_on)

    def _serve(self) -> None:
        left, turn = self._set.left, Slice()
        if not left:
            left.update(_poll(self._set, 0, _A_TURN))
        while left:
            fd = next(iter(left))
            events, who = left.pop(fd), self._set.watched.get(fd)
            if who is None:
                continue
            try:
                who.ready(events)
            except Exception as error:  # noqa: BLE001 - whatever it is, the others go on
                _fail(self._set, (fd, who), error)
            if turn.is_over:
                return

    def _go_on(self) -> None:
        """Serve what is left, unless that has been done meanwhile: what epoll says once it doesn't say again."""
        self._goes_on = False
        if self._set.left:
            self.ready(0)

    def failed(self, error: Exception) -> None:
        """Tell of an exception that nobody expected; the set stays."""
        self._loop.call_exception_handler({"message": "a sandbox's turn", "exception": error})

    def end(self) -> None:
        """Have no more turns."""
        self._set.left.clear()
        all_of_them, number = self._loop.selector.set, self._set.epoll.fileno()
        all_of_them.watched.pop(number, None)
        all_of_them.epoll.unregister(number)


def _serve(one: _Set, wait: float, most: int = _AT_ONCE) -> list[tuple[int, int]]:
    """Tell those who are watched of what has happened, and return what happened to other descriptors."""
    others = []
    for fd, events in _poll(one, wait, most):
        who = one.watched.get(fd)
        if who is None:
            others.append((fd, events))
            continue
        try:
            who.ready(events)
        except Exception as error:  # noqa: BLE001 - whatever it is, the others go on
            _fail(one, (fd, who), error)
    return others


def _poll(one: _Set, wait: float, most: int) -> "Iterable[tuple[int, int]]":
    """Wait for events, as epoll.poll does; what compiled code does by itself is done on the way."""
    if COMPILED is None:
        return one.epoll.poll(wait, most)
    told = COMPILED.serve(one.epoll.fileno(), wait, most)
    return zip(told[::2], told[1::2], strict=True)


def _fail(one: _Set, who: tuple[int, SocketHandler], error: Exception) -> None:
    """Have the one who raised close down; one that can't even do that is served no more, and told of."""
    fd, watched = who
    try:
        watched.failed(error)
    except Exception as worse:  # noqa: BLE001
        if one.watched.get(fd) is watched:
            del one.watched[fd]
            with contextlib.suppress(OSError):
                one.epoll.unregister(fd)
        said = {"message": "a watcher could not close down", "exception": worse}
        asyncio.get_running_loop().call_exception_handler(said)


class _Selector(selectors.EpollSelector):
    """Asyncio's selector, which serves the gate's objects out of the same epoll set."""

    def __init__(self) -> None:
        super().__init__()
        self.set = _Set(select.epoll.fromfd(os.dup(self.fileno())))
        self.stirred = False  # asyncio has been given something to do
        self._asyncio_has = self.get_map()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Serve what is watched until asyncio has something to do: an event, a callback, or the end of `timeout`."""
        self.stirred = False
        wait = -1.0 if timeout is None else max(timeout, 0.0)
        until = time.monotonic() + wait if wait > 0 else 0.0
        while True:
            others = _serve(self.set, math.ceil(wait * 1e3) * 1e-3 if wait > 0 else wait)
            if others or self.stirred or not wait:
                return [ready for fd, events in others if (ready := self._ready(fd, events))]
            if wait > 0:
                wait = max(until - time.monotonic(), 0.0)

    def close(self) -> None:
        self.set.watched.clear()
        self.set.epoll.close()
        super().close()

    def _ready(self, fd: int, events: int) -> tuple[selectors.SelectorKey, int] | None:
        key = self._asyncio_has.get(fd)
        if key is None:  # given up a moment ago
            return None
        reads = selectors.EVENT_READ if events & ~OUT else 0
        writes = selectors.EVENT_WRITE if events & ~IN else 0
        return key, (reads | writes) & key.events


class Loop(asyncio.SelectorEventLoop):
    """The event loop of a worker: `asyncio.run(main(), loop_factory=Loop)`."""

    def __init__(self, marker: turn.Marker | None = None) -> None:
        """`marker`: marks whose turn it is, where one worker serves several sandboxes."""
        self.selector = _Selector()
        self._marker = marker
        super().__init__(self.selector)

    def in_turn(self, context: Context, work: "Callable[..., object]", *args: Any) -> None:
        """Do some work now, in the turn of the sandbox that `context` belongs to."""
        if self._marker is None:
            context.run(work, *args)
        else:
            self._marker.run(turn.sandbox_in(context), context.run, work, *args)

    def call_soon(  # type: ignore[override]  # the same, but for a type variable
        self, callback: "Callable[..., object]", *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """Do as asyncio's, mark whose turn it is, and have the selector return."""
        self.selector.stirred = True
        if self._marker is not None and (sandbox := turn.sandbox_in(context)):
            return super().call_soon(self._marker.run, sandbox, callback, *args, context=context)
        return super().call_soon(callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: "Callable[..., object]", *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Do as `call_soon`: it may be due before what was."""
        self.selector.stirred = True
        if self._marker is not None and (sandbox := turn.sandbox_in(context)):
            return super().call_at(when, self._marker.run, sandbox, callback, *args, context=context)
        return super().call_at(when, callback, *args, context=context)


class PeriodicTarget(Protocol):
    """A connection or a flow in some stage of its life, as a gate keeps it."""

    def tick(self, now: float) -> None:
        """Look at the time, by the gate's clock."""

    def review(self) -> None:
        """Decide again what was let out: other rules are in force, or it is another day."""

    def abort(self) -> None:
        """End it now."""

    def failed(self, error: Exception) -> None:
        """End it now, and tell of an exception that nobody expected. Never raises."""


def for_each[Kind: PeriodicTarget](guests: "Collection[Kind]", act: "Callable[[Kind], None]") -> None:
    """Do it to each that is there now. One that raises fails; it may leave the collection, and others with it."""
    for guest in tuple(guests):
        try:
            act(guest)
        except Exception as error:  # noqa: BLE001 - the others are to have their turn
            guest.failed(error)


class PeriodicTasks:
    """The rounds of one gate. For one thread, within a running loop."""

    def __init__(
        self,
        today: "Callable[[], date]",
        guests: "Collection[PeriodicTarget]",
        review: "Callable[[], None]",
        clock: "Callable[[], float]" = time.monotonic,
    ) -> None:
        """Go through `guests`, which come and go; `review` is called when the day is another."""
        self._asks_today = today
        self._guests = guests
        self._review = review
        self._clock = clock
        self._today = today()
        self._next: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> bool:
        """Whether there will be another round."""
        return self._next is not None

    def keep_going(self) -> None:
        """See to it that there is a next round as long as anybody is there. Idempotent."""
        if self._next is None and self._guests:
            self._next = asyncio.get_running_loop().call_later(EVERY, self.go)

    def stop(self) -> None:
        """Go no more. Idempotent."""
        if self._next is not None:
            self._next.cancel()

    def go(self) -> None:
        """Go once, now."""
        self._next = None
        today = self._asks_today()
        if today is not self._today:
            self._today = today
            self._review()
        now = self._clock()
        for_each(self._guests, lambda guest: guest.tick(now))
        self.keep_going()
