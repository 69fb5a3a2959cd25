"""What leaves is looked through where the rules say so: heads before they are let out, what follows as it passes.

Home of the rule that looking fails closed: where it raises, a request that is to be blocked on a find ends with its
connection, and one that is only to be told of goes on, and that is counted. No text of an error gets out of here, as it
could show what was looked at.
"""

from typing import TYPE_CHECKING, Final, NamedTuple

from mitmproxy.proxy.layers.http._events import RequestData, RequestEndOfMessage, RequestTrailers

from proxy.dlp.body_readers import Messages, reader
from proxy.dlp.body_scan import Body, Leaking
from proxy.dlp.decodings import has_parts, is_form
from proxy.dlp.head_scan import HEAD, Heads
from proxy.event_loop.slices import at_once
from proxy.request.request_head import values
from proxy.telemetry.events import Where
from rules.verdicts import Scan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from proxy.event_loop.slices import Sliced
    from proxy.request.request_head import Head
    from proxy.secrets.detection import Watch
    from proxy.telemetry.journal.recorder import Recorder

type Piece = RequestData | RequestTrailers | RequestEndOfMessage


class Looked(NamedTuple):
    """What came of a head. `found`: what is in it and where, in words."""

    action: Scan = Scan.OFF
    found: tuple[str, ...] = ()
    watch: "Watch | None" = None  # goes on with the body, for the secrets of the task
    hides: bool = False  # whether what is told of it may show no more of its path than is clean
    whole: bool = False  # ... and that is nothing: it is, or may be, a part of a value

    @property
    def blocked(self) -> bool:
        """Whether it must not leave."""
        return bool(self.found) and self.action.blocks


class Seen(NamedTuple):
    """What was seen of a head that is not decided yet. `found`: credentials, and where they are."""

    strict: bool
    watch: "Watch | None"  # knows what was found of the values of secrets
    found: tuple[tuple[str, str], ...] = ()
    error: Exception | None = None  # it could not be looked at


_CODINGS: Final = (b"content-encoding", b"grpc-encoding", b"connect-content-encoding")
NOT_LOOKED: Final = Looked()
_CLEAN: Final = {action: Looked(action) for action in Scan}


class Leaks:
    """Looks through the requests of one connection."""

    __slots__ = ("_heads", "_recorder")

    def __init__(self, recorder: "Recorder") -> None:
        self._recorder = recorder
        self._heads = Heads()

    def looking(self, head: "Head", *, strict: bool) -> "Sliced[Seen]":
        """Look at a head, whatever will be decided about it."""
        broker, own = self._recorder.tenant.broker, self._recorder.tenant.own
        watch = None
        try:
            watch = None if own is None else own.watch()
            is_placeholder = _never if broker is None else broker.is_placeholder
            found = yield from self._heads.looking(head, watch, is_placeholder, strict=strict)
        except Exception as error:  # noqa: BLE001  see above
            return Seen(strict, watch, error=error)
        return Seen(strict, watch, tuple(found))

    def head(self, action: Scan, head: "Head", cause: str, *, strict: bool, seen: "Seen | None" = None) -> Looked:
        """Say what came of a head that the rules let out; `seen`: it was looked at before."""
        if action is Scan.OFF:
            return NOT_LOOKED
        try:
            if self._recorder.tenant.own is None and not strict and seen is None and self._heads.is_clean(head):
                return _CLEAN[action]
            if seen is None or seen.strict is not strict:
                seen = at_once(self.looking(head, strict=strict))
            watch, problem = seen.watch, seen.error
            values = [] if watch is None else watch.found()
            found = tuple(f"{name} in {where}" for name, where in (*seen.found, *((name, HEAD) for name in values)))
            whole = watch is not None and (watch.saw_some or bool(values))
            if watch is not None and not (found and action.blocks):
                watch.has_left()
        except Exception as error:  # noqa: BLE001  see above
            problem = error
        if problem is not None:
            self.failed(action, problem, cause)
            return NOT_LOOKED
        if not found and watch is None:
            return _CLEAN[action]
        return Looked(action, found, watch, whole or bool(found), whole)

    def body(self, looked: Looked, head: "Head", *, unnamed: bool, websocket: bool = False) -> Body:
        """Look at what follows a head, which was looked at."""
        broker, own = self._recorder.tenant.broker, self._recorder.tenant.own
        kind = values(head, b"content-type")
        # Messages of gRPC and Connect are packed each by itself, whatever the body is
        codings = [each for name in _CODINGS for each in values(head, name)]
        return Body(
            looked.action,
            looked.watch,
            _never if broker is None else broker.is_placeholder,
            reader=Messages() if websocket else reader(codings),
            form=bool(kind) and is_form(kind[0]),
            parts=bool(kind) and has_parts(kind[0]),
            longest=0 if own is None else own.longest,
            unnamed=unnamed,
        )

    def failed(self, action: Scan, error: Exception, cause: str) -> None:
        """Tell that looking has failed; what was to be blocked on a find goes nowhere then. Raises RuntimeError."""
        what = f"leaving bytes could not be looked at: {type(error).__name__}"
        if action.blocks:
            raise RuntimeError(what) from None
        self._recorder.error(Where.INSPECTION, what, cause=cause or None)


class Outgoing:
    """What follows the head of one request that is under way."""

    __slots__ = ("_action", "_body", "_cause", "_leaks", "_tell")

    def __init__(self, leaks: Leaks, action: Scan, body: Body, cause: str, tell: "Callable[[str], None]") -> None:
        """`tell` takes what was found in what has left."""
        self._leaks = leaks
        self._action = action
        self._body: Body | None = body
        self._cause = cause
        self._tell = tell

    def through(self, event: Piece) -> "Sliced[list[Piece]]":
        """Return what is passed on in the place of a piece. Raises Leaking: then nothing is, and no more comes."""
        if self._body is None:
            return [event]
        try:
            return (yield from self._looked_through(self._body, event))
        except Leaking:
            raise
        except Exception as error:  # noqa: BLE001  see above
            self._give_up(error)
            return [event]

    def passing(self, data: bytes, *, end: bool = False) -> "Sliced[bytes]":
        """Return what may leave now, of these bytes and of what was held back. Raises Leaking."""
        if self._body is None:
            return data
        try:
            free, found = (yield from self._body.taking(data)) if data else (b"", [])
            if end:
                rest, more = yield from self._body.ending()
                free, found = free + rest, found + more
        except Leaking:
            raise
        except Exception as error:  # noqa: BLE001  see above
            self._give_up(error)
            return data
        self._told(found)
        return free

    def tighten(self, action: Scan) -> None:
        """Go on under other rules."""
        if self._body is not None:
            self._action = Scan.strictest((self._action, action))
            self._told(self._body.tighten(action))

    def finish(self) -> None:
        """Look at what has left and was not looked at yet: nothing more comes."""
        if self._body is None or self._action.blocks:
            return
        try:
            _, found = self._body.end()
        except Exception as error:  # noqa: BLE001  see above
            self._give_up(error)
            return
        self._told(found)

    def _looked_through(self, body: Body, event: Piece) -> "Sliced[list[Piece]]":
        if isinstance(event, RequestData):
            free, found = yield from body.taking(event.data)
            if free is not event.data:
                event = RequestData(event.stream_id, free)
            pieces: list[Piece] = [event] if free else []
        else:
            free, found = yield from body.ending()
            if isinstance(event, RequestTrailers):
                trailers = b"\n".join(text for field in event.trailers.fields for text in field)
                found += yield from body.looking_after(trailers)
            pieces = [RequestData(event.stream_id, free), event] if free else [event]
        self._told(found)
        return pieces

    def _told(self, found: "Iterable[str]") -> None:
        if said := " and ".join(found):
            self._tell(f"{said} in the body")

    def _give_up(self, error: Exception) -> None:
        self._body = None
        self._leaks.failed(self._action, error, self._cause)


def _never(_text: bytes) -> bool:
    return False
