"""One client connection from adoption to its last event: mitmproxy's layers decide what to do, this does it.

The part of mitmproxy that is replaced here (proxy/server.py) makes a task and takes a lock for every event and hook;
here an event runs through the layers and comes out as bytes in one go. Home of invariant 2 for inspected connections:
whatever raises, in a layer or in a decision, ends the conversation with resets and is told as gate.error. Nothing is
ever dialled but the place that the gate admitted.
"""

import asyncio
import math
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from mitmproxy.connection import ConnectionState
from mitmproxy.proxy import events

from proxy.dialing.connecting import DialFailed
from proxy.event_loop.poller import reset
from proxy.event_loop.slices import Slice
from proxy.gate.states import LIFETIME
from proxy.inspection.context import (
    Broken,
    Decided,
    Failure,
    Far,
    GateContext,
    Near,
    Opened,
    Relieved,
    Revoked,
    Unspoken,
    far,
    near,
)
from proxy.inspection.deciding import Requests, is_good
from proxy.inspection.http import GateHttp
from proxy.inspection.link import Link
from proxy.inspection.messages import is_relayed
from proxy.inspection.session import Session
from proxy.inspection.tls import FarTls, NearTls
from proxy.telemetry.events import Where
from rules.verdicts import Reason

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Generator

    from proxy.dialing.connecting import Hop
    from proxy.event_loop.slices import Sliced
    from proxy.gate.admitted import Admitted
    from proxy.inspection.deciding import Found
    from proxy.inspection.engine import Engine
    from proxy.inspection.judging import Place
    from proxy.inspection.stream import Stream
    from rules.attempt import Attempt
    from rules.decision import Decision

_READABLE: Final = (ConnectionState.OPEN, ConnectionState.CAN_READ)
SILENCE: Final = 10.0  # seconds that a client has after a handshake without ALPN; one of HTTP speaks at once
HEAD_TIMEOUT: Final = 60.0  # seconds from the first byte of a request's head, or of a connection over TLS, to its last


class Conversation:
    """A client connection and the connections to the internet that its requests use."""

    def __init__(self, engine: "Engine", admitted: "Admitted", place: "Place") -> None:
        refused = None if admitted.decision.passes else admitted.decision
        self._engine = engine
        self._admitted = admitted
        self.session = Session(
            engine.recorder, place, admitted.event, refused, admitted.detail, admitted.advice, admitted.whose,
            admitted.approval,
        )  # fmt: skip
        self.session.asked_about.changed = self._watch_out
        self.session.cut = lambda flows: self._feed(Revoked(flows))
        self._requests = Requests(self.session, self._addresses)
        peer, peer_port = admitted.peer
        self._client = near((str(peer), peer_port), place)
        self._context = GateContext(self._client, far(place), self.session, engine.ends)
        tls = NearTls(self._context, admitted.shown_host, admitted.sni) if place.tls else None
        self._http = GateHttp(self._context, engine.room, self)
        link = Link(engine.loop, engine.poller, admitted.client, self, client=True, tls=tls)
        self._links: dict[Near | Far, Link] = {self._client: link}
        self._connections: dict[Link, Near | Far] = {link: self._client}
        self._dials: dict[Far, Callable[[], None]] = {}  # how to call each off
        self._counted = 0  # servers beside the one that is the client's own
        self._extra_sockets = engine.extra_sockets()  # of what it has of connections to servers
        self._waiting: deque[events.Event] = deque()
        self._steps: Generator[None] | None = None  # what there is to do about the event at hand
        self._review: Sliced[frozenset[str]] | None = None  # under other rules, before anything else goes on
        self._busy = self._over = False
        self._slice = Slice()  # what is left of the turn
        self._hooks: set[asyncio.Future[None]] = set()
        self._up = self._down = 0  # of connections to the internet that are over
        self._last = time.monotonic()
        self._idle_timeout = admitted.decision.idle_timeout
        self._head: int | None = None  # that has begun and isn't whole
        self._head_due = math.inf  # when it has to be (time.monotonic())
        self._leaving = False  # the client's connection is being closed
        self.kept = 0  # bytes, as far as the room knows

    def start(self) -> None:
        """Begin."""
        if self.session.place.tls:
            self._turn()  # what comes first is a handshake, which has its time, too
        else:
            self._feed(events.Start())
        try:
            if link := self._links.get(self._client):
                link.start()
        except OSError as error:
            self.crashed(error)

    # --- what links tell ---

    def received(self, link: Link, data: bytes) -> None:
        """Run what has come through the layers."""
        self._last = time.monotonic()
        self._feed(events.DataReceived(self._connections[link], data))

    def opened(self, link: Link, problem: str | None) -> None:
        """Let what is above TLS begin, or tell why it can't."""
        connection = self._connections[link]
        if problem is not None:
            connection.state &= ~ConnectionState.CAN_READ  # nothing above knows it: its end is no event
            self.close(connection)
        if type(connection) is Far:
            self._feed(Opened(connection, problem))
        elif problem is None:
            self._feed(events.Start())
        elif not self._over:
            self._turn()

    def finished(self, link: Link, *, broken: bool) -> None:
        """Tell the layers that a peer has ended its side of TLS, or broken it."""
        connection = self._connections[link]
        connection.cut = connection.cut or broken
        connection.state &= ~ConnectionState.CAN_READ
        self._feed(Broken(connection) if broken else events.ConnectionClosed(connection))

    def ended(self, link: Link) -> None:
        """Tell the layers that nothing more comes."""
        connection = self._connections[link]
        connection.cut = link.cut
        self.session.client_left = self.session.client_left or connection is self._client
        if link.cut:
            connection.state = ConnectionState.CLOSED
        else:
            connection.state &= ~ConnectionState.CAN_READ
        tls = link.tls
        if tls is None:
            self._feed(events.ConnectionClosed(connection))
        elif not tls.has_ended:  # after a close_notify it is old news, without one it is a cut (invariant 12)
            tls.has_ended = True
            if tls.is_open:
                connection.cut = True
                self._feed(events.ConnectionClosed(connection))
            else:
                self.opened(link, "connection closed")
        if link.cut and not link.over:
            link.reset()

    def relieved(self, link: Link) -> None:
        """Go on with what waited for room."""
        self._connections[link].full = False
        self._feed(Relieved())

    def leaving(self, link: Link) -> None:
        """Take note that a client has ended its side while people are asked: it waits no more."""
        if self._connections.get(link) is self._client:
            self.session.asked_about.leave()

    def gone(self, link: Link) -> None:
        """Forget a socket that is closed; without the client's there is nothing left to do."""
        connection = self._connections.pop(link)
        del self._links[connection]
        connection.state = ConnectionState.CLOSED
        if type(connection) is Far:
            self._up += link.up
            self._down += link.down
            connection.over = True
            self._count_servers()
        else:
            self._finish()

    def go_on(self) -> None:
        """Go on with what was put off (Engine.later)."""
        if self._is_put_off:
            self._last = time.monotonic()  # nothing was read meanwhile
            self._turn()
        else:
            self._feed(Relieved())

    def review(self, decision: "Decision") -> None:
        """Go on under other rules, which say `decision` to the connection; what they deny ends with a reset."""
        if self._over or self.session.refused is not None:
            return
        try:
            if not decision.passes:
                self.session.revoke_all(decision)
                self.abort()
                return
            self._idle_timeout = decision.idle_timeout
            self.session.asked_about.look_again()
            put_off, self._review = self._is_put_off, self.session.reviewing(self._http.under_way())
            if not (self._busy or put_off):
                self._turn()
        except Exception as error:  # noqa: BLE001  what can't be decided again doesn't go on
            self.crashed(error)

    def tick(self, now: float) -> None:
        """End what takes too long (`now`: time.monotonic()), with a reset, as it isn't complete.

        A head, or a handshake, that comes byte by byte; what hasn't brought anything for too long, or goes on too long.
        """
        ends = min(self._last + self._idle_timeout, self._admitted.opened + LIFETIME)
        if not self._is_put_off and (self._engine.room.is_tight or self._http.stinted):
            self._balance()  # sockets have taken more since, and what was left unread may have room now
        if now >= self._last + SILENCE and self._http.is_unspoken():
            self._feed(Unspoken())
        elif now >= self._head_due or (now >= ends and not self._hooks):
            self.session.ending = Reason.LIMIT_EXCEEDED
            self.abort()

    def abort(self) -> None:
        """End everything with resets."""
        for link in list(self._links.values()):
            link.reset()
        self._finish()

    def crashed(self, error: Exception) -> None:
        """End everything, and say so: what has gone wrong here must not let anything through."""
        if not self._over:
            self.session.ending = Reason.GATE_ERROR
            self._tell_error(error)
            self.abort()

    # --- events in, commands out ---

    def _feed(self, event: events.Event) -> None:
        self._waiting.append(event)
        if not self._busy and not self._over and not self._is_put_off:
            self._turn()

    @property
    def _is_put_off(self) -> bool:
        """Whether a turn is over and there is a next one: until then nothing is begun, and nothing read."""
        return self._steps is not None or self._review is not None

    def _turn(self) -> None:
        """Have the layers do what there is to do, for as long as a turn takes; the rest waits, and nothing is read."""
        self._busy = True
        self._http.begin_turn()
        self._slice = Slice()
        try:
            over = self._work(self._slice)
            for link in list(self._links.values()):
                link.flush()
            self._count_servers()
            if not over or (self._review is not None and not self._over):
                for link in self._links.values():
                    link.pause(paused=True)
                self._engine.later(self)
                self._note_kept()
            elif self._leaving:
                self._leave_servers()
            else:
                self._balance()
                if self._http.puts_off():
                    self._engine.later(self)
        except Exception as error:  # noqa: BLE001  whatever it is
            self.crashed(error)
        finally:
            self._busy = False
            if self._over:
                self._drop_steps()

    def _next(self) -> events.Event:
        """Return the next event for the layers. A connection whose TLS broke is cut before they hear of its end."""
        event = self._waiting.popleft()
        if type(event) is not Broken:
            return event
        self.reset(event.connection)  # type: ignore[arg-type]  # ours
        return events.ConnectionClosed(event.connection)

    def _work(self, turn: Slice) -> bool:
        """Handle what waits; returns whether all is done, and not just the turn over."""
        while True:
            if self._review is not None and not self._reviewed(self._review, turn):
                return False
            if self._steps is None:
                if not self._waiting:
                    return True
                self._steps = self._http.handle(self._next())
            steps = self._steps
            for _ in steps:
                if self._over:
                    return True
                if turn.is_over:
                    return False
                if self._review is not None:
                    break
            else:
                self._steps = None
                if self._over:
                    return True

    def _reviewed(self, review: "Sliced[frozenset[str]]", turn: Slice) -> bool:
        """Go on with a review; returns whether it is through, and not just the turn over."""
        while True:
            try:
                next(review)
            except StopIteration as done:
                self._review = None
                if done.value:
                    self._waiting.appendleft(Revoked(done.value))
                return True
            if turn.is_over:
                return False

    def _drop_steps(self) -> None:
        """Do nothing more of what was put off: the conversation is over."""
        steps, self._steps, self._review = self._steps, None, None
        if steps is not None:
            steps.close()

    # --- what the router wants (`proxy.inspection.http.Driver`) ---

    def stops(self) -> bool:
        """Whether a turn has to stop at the next point where it can."""
        return self._over or self._review is not None or self._slice.is_over

    def send(self, connection: Near | Far, data: bytes) -> None:
        """Send with the end of the turn."""
        if link := self._links.get(connection):
            link.queue(data)

    def decide(self, stream: "Stream") -> None:
        """Have a request decided: at once, or in a while."""
        pending = self._requests.requestheaders(stream.request)
        if pending is None:
            self._waiting.append(Decided(stream))
            return
        task = asyncio.ensure_future(pending)
        self._hooks.add(task)
        task.add_done_callback(lambda done: self._decided(stream, done))

    def _decided(self, stream: "Stream", task: "asyncio.Future[None]") -> None:
        self._hooks.discard(task)
        if task.cancelled() or self._over:
            return
        self._last = time.monotonic()  # while it was decided on nothing could come
        error = task.exception()
        if error is None:
            self._feed(Decided(stream))
        elif isinstance(error, Exception):
            self.crashed(error)
        else:
            raise error

    def _watch_out(self, waits: bool) -> None:  # noqa: FBT001  it is called with nothing else
        """Look out for a client that goes away, as long as people are asked, also where it is not read from."""
        if link := self._links.get(self._client):
            link.watch_out(on=waits)

    def _addresses(self, attempt: "Attempt") -> "Found | Awaitable[Found]":
        """Return what may be dialled for a request: preferably where a connection is open to."""
        policy = self._engine.recorder.tenant.policy
        for connection in self._http.outgoing:
            address = connection.dialled
            if address and self._http.usable(connection) and is_good(connection, policy, attempt, address):
                return (address,)
        return self._engine.addresses(policy, attempt)

    def open(self, connection: Far) -> None:
        """Dial the one place there is, at an address that was checked for the request at hand."""
        place = self.session.place
        if connection.address != (str(place.target), place.port) or connection.tls is not place.tls:
            raise RuntimeError("the router wants to dial somewhere else")
        if self.session.refused is not None or not connection.addresses:
            raise RuntimeError("the router wants to dial without a decision")

        def done(got: "socket.socket | DialFailed", address: "Hop | None") -> None:
            self._dials.pop(connection, None)
            try:
                self._dialled(connection, got, address)
            except Exception as error:  # noqa: BLE001  the dialler has no use for it
                self.crashed(error)
                if not isinstance(got, DialFailed):
                    reset(got)

        if self._count_servers() and not self._extra_sockets.has_room():
            done(DialFailed(Reason.LIMIT_EXCEEDED, "there is no room for one more connection of this task"), None)
            return
        if call_off := self._engine.connect(connection.addresses, place.port, done):
            self._dials[connection] = call_off

    def _count_servers(self) -> int:
        """Count connections to servers, one of which is counted with the client's; return how many there are."""
        servers = len(self._dials) + len(self._links) - (self._client in self._links)
        if (beside := servers - (not self._over)) != self._counted:
            self._counted = beside
            self._extra_sockets.be(beside)
        return servers

    def _dialled(self, server: Far, got: "socket.socket | DialFailed", address: "Hop | None") -> None:
        if isinstance(got, DialFailed):
            server.over = True
            self._feed(Opened(server, Failure(got.reason, got.detail)))
            return
        tls = FarTls(self._context, server) if server.tls else None
        link = Link(self._engine.loop, self._engine.poller, got, self, client=False, tls=tls)
        link.start()
        self._links[server] = link
        self._connections[link] = server
        server.state = ConnectionState.OPEN
        server.timestamp_start = time.time()
        server.dialled = address
        if address is not None:
            self._admitted.leads_to(address)
        server.login = self._engine.login if is_relayed(server) else None
        if tls is None:
            self._feed(Opened(server, None))
        else:
            link.shake_hands()

    def end_sending(self, connection: Near | Far) -> None:
        """End our half alone."""
        connection.state &= ~ConnectionState.CAN_WRITE
        if link := self._links.get(connection):
            link.end_sending()

    def close(self, connection: Near | Far) -> None:
        """Send what waits, then close; without a client no server is needed either."""
        link = self._end(connection)
        if link is not None:
            link.close()

    def reset(self, connection: Near | Far, *, at_once: bool = False) -> None:
        """Cut a connection; what was sent before is delivered first, unless it is `at_once`."""
        link = self._end(connection)
        if link is None:
            return
        if at_once:
            link.reset()
        else:
            link.cut_off()

    def _end(self, connection: Near | Far) -> Link | None:
        """Note that a connection is closed, and have it told; returns its link."""
        if type(connection) is Far:
            connection.over = True
            if call_off := self._dials.pop(connection, None):
                call_off()
        told = connection.state not in _READABLE
        connection.state = ConnectionState.CLOSED
        if not told:
            self._waiting.append(events.ConnectionClosed(connection))
        if connection is self._client:
            self._leaving = True
        return self._links.get(connection)

    def _balance(self) -> None:
        """Read only from those whose bytes can leave on the other side, and give a head a while to come."""
        if (head := self._http.begun_head()) != self._head:  # it has only so long to come
            self._head = head
            self._head_due = math.inf if head is None else time.monotonic() + HEAD_TIMEOUT
        self._note_kept()
        self._http.stinted = False
        links = list(self._links.items())
        for connection, link in links:
            connection.full = link.full
        for connection, link in links:
            link.pause(paused=self._http.paused(connection))

    def _note_kept(self) -> None:
        if (kept := self.weigh(exactly=False)) != self.kept:
            self._engine.room.note(self, kept)

    def weigh(self, *, exactly: bool = True) -> int:
        """Return how many bytes are kept here (Room)."""
        kept = self._http.kept(weigh=exactly) + self.session.held
        for link in self._connections:
            kept += link.kept
        return kept

    def overflow(self) -> None:
        """End with resets: it keeps more than there is room for (Room)."""
        self.session.ending = Reason.LIMIT_EXCEEDED
        self.abort()

    def _leave_servers(self, *, cut: bool = False) -> None:
        """End what was there for a client that is leaving; what broke off was reset by the layers.

        `cut`: they haven't heard of it, so whatever is open breaks off (invariant 12).
        """
        for call_off in self._dials.values():
            self._try(call_off)
        self._dials.clear()
        for connection, link in list(self._links.items()):
            if connection is not self._client:
                self._try(link.cut_off if cut else link.close)

    def _finish(self) -> None:
        """Tell the end, once."""
        if self._over:
            return
        self._over = True
        for task in self._hooks:
            task.cancel()
        unheard = self._is_put_off and not self._busy
        if not self._busy:
            self._try(self._drop_steps)
        self._try(self._leave_servers, cut=unheard and self._client.cut)
        self._try(self.session.end)
        up, down = self._up, self._down
        for link in self._connections:
            up, down = up + link.up, down + link.down
        self._count_servers()
        self._engine.forget(self)
        self._admitted.closed(up, down, self.session.ending)

    def _try[**P](self, step: "Callable[P, None]", *arguments: P.args, **named: P.kwargs) -> None:
        """Take one step of the end: if it raises, that is recorded, and the next steps are taken all the same."""
        try:
            step(*arguments, **named)
        except Exception as error:  # noqa: BLE001  whatever it is
            self.session.ending = Reason.GATE_ERROR
            self._tell_error(error)

    def _tell_error(self, error: Exception) -> None:
        self._engine.recorder.error(Where.INSPECTION, f"{type(error).__name__}: {error}", cause=self.session.cause)
