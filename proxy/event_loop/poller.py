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
from proxy.event_loop.turn import Slice

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
    """Close a socket with a reset, so that the peer can't take it for an orderly end."""
    _close(sock, _RESET)


def finish(sock: socket.socket) -> None:
    """Close a socket in order: the kernel delivers what was sent, then an end of stream."""
    _close(sock, _IN_PEACE)


def cut_if_killed(sock: socket.socket) -> None:
    """Have the kernel reset the connection if this process dies without closing it (invariant 12).

    Accepted sockets inherit it from their listener. `finish` undoes it.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


def prepare_listener(listener: socket.socket) -> None:
    """Set the options that accepted sockets inherit from their first packet on."""
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
    """Handler of a socket in the epoll set."""

    def ready(self, events: int) -> None:
        """Handle epoll events; ERR and HUP come without being requested. Must not block."""

    def failed(self, error: Exception) -> None:
        """Close the socket: `ready` raised. Must not raise."""


class _Set:
    """An epoll set and the handlers of its descriptors."""

    __slots__ = ("epoll", "left", "watched")

    def __init__(self, epoll: select.epoll) -> None:
        self.epoll = epoll
        self.left: dict[int, int] = {}  # events by descriptor, that nobody was told of yet: their turn was over
        self.watched: dict[int, SocketHandler] = {}


class Poller:
    """Epoll set of the gate's sockets on one loop. For one thread; made within the running loop."""

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
        """Call `watched` for `events` on a descriptor, in place of any handler before."""
        if fd in self._watched:
            self._set.modify(fd, events)
        else:
            self._set.register(fd, events)
            self._left.pop(fd, None)  # that was of another with this number
        self._watched[fd] = watched

    def change(self, fd: int, events: int) -> None:
        """Wait for other events on a registered descriptor."""
        self._set.modify(fd, events)

    def forget(self, fd: int) -> None:
        """Remove a descriptor, if it is registered; call it before the descriptor is closed or passed on."""
        if self._watched.pop(fd, None) is not None:
            self._set.unregister(fd)

    def drop(self, fd: int) -> None:
        """Remove a descriptor that is closed within the same call of the loop.

        The kernel removes it from the set by itself (epoll(7), Q6), since nobody else has the socket open.
        """
        self._watched.pop(fd, None)

    def close(self) -> None:
        """Remove all descriptors. Idempotent."""
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
    """Epoll set of one sandbox inside the loop's set, served a few events at a time."""

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
        """Serve ready sockets for one turn; the rest comes first in the next turn."""
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
        """Serve the rest, unless it is done: an edge that epoll has reported it doesn't report again."""
        self._goes_on = False
        if self._set.left:
            self.ready(0)

    def failed(self, error: Exception) -> None:
        """Report an unexpected exception; the set stays."""
        self._loop.call_exception_handler({"message": "a sandbox's turn", "exception": error})

    def end(self) -> None:
        """Stop: the set gets no more turns."""
        self._set.left.clear()
        all_of_them, number = self._loop.selector.set, self._set.epoll.fileno()
        all_of_them.watched.pop(number, None)
        all_of_them.epoll.unregister(number)


def _serve(one: _Set, wait: float, most: int = _AT_ONCE) -> list[tuple[int, int]]:
    """Call the handlers of ready descriptors, and return the events of other descriptors."""
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
    """Wait for events as epoll.poll does; the compiled relay handles its own descriptors meanwhile."""
    if COMPILED is None:
        return one.epoll.poll(wait, most)
    told = COMPILED.serve(one.epoll.fileno(), wait, most)
    return zip(told[::2], told[1::2], strict=True)


def _fail(one: _Set, who: tuple[int, SocketHandler], error: Exception) -> None:
    """Call `failed` of a handler that raised; if that raises too, drop the handler and report it."""
    fd, watched = who
    try:
        watched.failed(error)
    except Exception as worse:  # noqa: BLE001
        if one.watched.get(fd) is watched:
            del one.watched[fd]
            with contextlib.suppress(OSError):
                one.epoll.unregister(fd)
        said = {"message": "a socket handler could not be closed", "exception": worse}
        asyncio.get_running_loop().call_exception_handler(said)


class _Selector(selectors.EpollSelector):
    """Selector for asyncio that serves the gate's handlers from the same epoll set."""

    def __init__(self) -> None:
        super().__init__()
        self.set = _Set(select.epoll.fromfd(os.dup(self.fileno())))
        self.stirred = False  # asyncio has been given something to do
        self._asyncio_has = self.get_map()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Serve handlers until asyncio has an event, a callback or a timeout to handle."""
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
        """Run `work` now, in the turn of the sandbox of `context`."""
        if self._marker is None:
            context.run(work, *args)
        else:
            self._marker.run(turn.sandbox_in(context), context.run, work, *args)

    def call_soon(  # type: ignore[override]  # the same, but for a type variable
        self, callback: "Callable[..., object]", *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """As asyncio's call_soon; also marks the sandbox whose turn it is, and makes the selector return."""
        self.selector.stirred = True
        if self._marker is not None and (sandbox := turn.sandbox_in(context)):
            return super().call_soon(self._marker.run, sandbox, callback, *args, context=context)
        return super().call_soon(callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: "Callable[..., object]", *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """As `call_soon`: the callback may be due before the selector's timeout."""
        self.selector.stirred = True
        if self._marker is not None and (sandbox := turn.sandbox_in(context)):
            return super().call_at(when, self._marker.run, sandbox, callback, *args, context=context)
        return super().call_at(when, callback, *args, context=context)


class PeriodicTarget(Protocol):
    """A connection or flow that its gate checks periodically."""

    def tick(self, now: float) -> None:
        """Check deadlines, by the gate's clock (seconds)."""

    def review(self) -> None:
        """Decide again on an allowed connection: the rules or the date have changed."""

    def abort(self) -> None:
        """End it now."""

    def failed(self, error: Exception) -> None:
        """End it now and report an unexpected exception. Never raises."""


def for_each[Kind: PeriodicTarget](members: "Collection[Kind]", act: "Callable[[Kind], None]") -> None:
    """Call `act` for each current member; one that raises gets `failed`. Members may leave meanwhile."""
    for member in tuple(members):
        try:
            act(member)
        except Exception as error:  # noqa: BLE001 - the others are to have their turn
            member.failed(error)


class PeriodicTasks:
    """Periodic tasks of one gate: ticks of its connections, and a review when the date changes. For one thread."""

    def __init__(
        self,
        today: "Callable[[], date]",
        members: "Collection[PeriodicTarget]",
        review: "Callable[[], None]",
        clock: "Callable[[], float]" = time.monotonic,
    ) -> None:
        """Go through `members`, which come and go; `review` is called when the day is another."""
        self._asks_today = today
        self._members = members
        self._review = review
        self._clock = clock
        self._today = today()
        self._next: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> bool:
        """Whether the next run is scheduled."""
        return self._next is not None

    def keep_going(self) -> None:
        """Schedule the next run if there is any member. Idempotent."""
        if self._next is None and self._members:
            self._next = asyncio.get_running_loop().call_later(EVERY, self.go)

    def stop(self) -> None:
        """Cancel the next run. Idempotent."""
        if self._next is not None:
            self._next.cancel()

    def go(self) -> None:
        """Run once, now."""
        self._next = None
        today = self._asks_today()
        if today is not self._today:
            self._today = today
            self._review()
        now = self._clock()
        for_each(self._members, lambda member: member.tick(now))
        self.keep_going()
