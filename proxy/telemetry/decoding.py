"""A line of the journal read back as the event it was made from: the inverse of `encoding`.

A journal may be older or newer than this program, torn by a crash, or edited: what doesn't read as an event raises, and
nothing is guessed. Members that this version doesn't know are passed over, so that a newer journal can still be shown.
"""

import calendar
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from proxy import strict_json
from proxy.telemetry.events import (
    Agent,
    Answer,
    Approval,
    Destination,
    Dns,
    Ending,
    Event,
    Fault,
    Git,
    Http,
    Kind,
    Mark,
    Origin,
    Process,
    StartedBy,
    Tls,
    Transferred,
    Unusual,
    Where,
)
from proxy.telemetry.pieces import LONGEST_DURATION
from rules.attempt import Protocol
from rules.verdicts import Mode, Outcome, Reason, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

_EPOCH = "1970"  # when it began: no journal is older
_ALL_DIGITS_ARE_0 = str.maketrans("123456789", "000000000")


class MalformedEvent(ValueError):  # noqa: N818  past tense would say nothing more
    """A line that is not an event of ours."""


def decode(line: bytes) -> Event:
    """Return the event that one line holds. Raises MalformedEvent."""
    try:
        return _event(strict_json.loads(line))
    except (ValueError, RecursionError, OverflowError) as error:
        raise MalformedEvent(str(error) or type(error).__name__) from error


class _Members:
    """A JSON object whose members are taken out by type; a member of another type is an error, not a surprise."""

    __slots__ = ("_value",)

    def __init__(self, value: object) -> None:
        if not isinstance(value, dict):
            raise MalformedEvent("not a JSON object")
        self._value: dict[str, object] = value

    def text(self, key: str) -> str:
        value = self._value.get(key)
        if not isinstance(value, str):
            raise MalformedEvent(f"`{key}` is not a text")
        return value

    def text_if_any(self, key: str) -> str | None:
        value = self._value.get(key)
        if value.__class__ is str:
            return value
        return self.text(key) if key in self._value else None

    def whole(self, key: str) -> int:
        value = self._value.get(key)
        if not isinstance(value, int) or isinstance(value, bool):
            raise MalformedEvent(f"`{key}` is not a whole number")
        return value

    def whole_if_any(self, key: str) -> int | None:
        return self.whole(key) if key in self._value else None

    def seconds_if_any(self, key: str) -> float | None:
        if key not in self._value:
            return None
        value = self._value[key]
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise MalformedEvent(f"`{key}` is not a number")
        if not 0 <= value < LONGEST_DURATION:
            raise MalformedEvent(f"`{key}` is not a number of seconds that an event has")
        return float(value)

    def true(self, key: str) -> bool:
        value = self._value.get(key, False)
        if not isinstance(value, bool):
            raise MalformedEvent(f"`{key}` is neither true nor false")
        return value

    def said(self, key: str) -> bool | None:
        return self.true(key) if key in self._value else None

    def texts(self, key: str) -> tuple[str, ...]:
        return _texts(key, self._value[key]) if key in self._value else ()

    def wholes(self, key: str) -> tuple[int, ...]:
        value = self._value.get(key, [])
        if not isinstance(value, list) or not all(type(each) is int for each in value):
            raise MalformedEvent(f"`{key}` is not a list of whole numbers")
        return tuple(value)

    def pairs(self, key: str) -> dict[str, str]:
        value = self._value.get(key, {})
        if not isinstance(value, dict) or not all(isinstance(each, str) for each in value.values()):
            raise MalformedEvent(f"`{key}` is not an object of texts")
        return dict(value)

    def member_if_any[E: StrEnum](self, key: str, of: type[E]) -> E | None:
        return of(self.text(key)) if key in self._value else None

    def made_if_any[M](self, key: str, make: "Callable[[_Members], M]") -> M | None:
        return make(_Members(self._value[key])) if key in self._value else None


class _LastOrigin:
    """The origin read last, and what it was read from: lines of one task follow one another."""

    __slots__ = ("origin", "said")

    def __init__(self) -> None:
        self.said: object = (None, None, None)
        self.origin = Origin()


_last_origin = _LastOrigin()


def _event(value: object) -> Event:
    """Read what is there, member by member: of some thirty that there may be a line has a dozen."""
    if not isinstance(value, dict):
        raise MalformedEvent("not a JSON object")
    given: dict[str, Any] = {}
    for key, member in value.items():
        read = _READERS.get(key)
        if read is not None:
            given[key] = read(key, member)
    for key in ("time", "id", "kind"):
        if key not in given:
            raise MalformedEvent(f"`{key}` is missing")
    said = value.get("task"), value.get("sandbox"), value.get("host")
    if said != _last_origin.said:
        _last_origin.origin, _last_origin.said = _origin(_Members(value)), said
    return Event(origin=_last_origin.origin, **given)


def _text(key: str, value: object) -> str:
    if not isinstance(value, str):
        raise MalformedEvent(f"`{key}` is not a text")
    return value


def _texts(key: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise MalformedEvent(f"`{key}` is not a list of texts")
    return tuple(value)


def _time(key: str, value: object) -> int:
    return _nanoseconds(_text(key, value))


def _duration(key: str, value: object) -> float | None:
    return _Members({key: value}).seconds_if_any(key)


def _made[M](make: "Callable[[_Members], M]") -> "Callable[[str, object], M]":
    """Make a reader of an object."""
    return lambda _key, value: make(_Members(value))


def _one_of[E: StrEnum](of: type[E]) -> "Callable[[str, object], E]":
    """Make a reader of a word of a closed list: a look into a dictionary, which calling the type is not."""
    words = {member.value: member for member in of}

    def read(key: str, value: object) -> E:
        found = words.get(_text(key, value))
        if found is None:
            raise MalformedEvent(f"`{key}` is none of the words that it can be")
        return found

    return read


def _nanoseconds(text: str) -> int:
    """Read RFC 3339 text exactly as `encoding.timestamp` writes it."""
    if text.translate(_ALL_DIGITS_ARE_0) != "0000-00-00T00:00:00.000000000Z" or text < _EPOCH:
        raise MalformedEvent("`time` is not a time in UTC with nine decimals, of 1970 or later")
    return _seconds(text[:19]) * 1_000_000_000 + int(text[20:29])


@lru_cache(maxsize=64)  # much happens in one second
def _seconds(text: str) -> int:
    parts = (int(text[:4]), int(text[5:7]), int(text[8:10]), int(text[11:13]), int(text[14:16]), int(text[17:19]))
    return calendar.timegm(parts)


def _origin(members: _Members) -> Origin:
    task = members.made_if_any("task", lambda task: task) or _Members({})
    return Origin(
        task=task.text_if_any("id") or "",
        name=task.text_if_any("name") or "",
        labels=task.pairs("labels"),
        sandbox=members.text_if_any("sandbox") or "",
        host=members.text_if_any("host") or "",
    )


def _process(members: _Members) -> Process:
    return Process(
        pid=members.whole("pid"),
        exe=members.text("exe"),
        argv=members.texts("argv"),
        uid=members.whole_if_any("uid"),
        ancestors=members.texts("ancestors"),
        ancestor_pids=members.wholes("ancestor_pids"),
        sandbox_uid=members.whole_if_any("sandbox_uid"),
    )


def _started_by(members: _Members) -> StartedBy:
    return StartedBy(members.whole("uid"), members.text_if_any("name") or "")


def _destination(members: _Members) -> Destination:
    return Destination(
        members.text_if_any("name"),
        members.text_if_any("address"),
        members.whole_if_any("port"),
        members.text_if_any("via"),
    )


def _tls(members: _Members) -> Tls:
    return Tls(
        sni=members.text_if_any("sni"),
        alpn=members.texts("alpn"),
        version=members.text_if_any("version"),
        ech=members.true("ech"),
        ja4=members.text_if_any("ja4"),
    )


def _http(members: _Members) -> Http:
    return Http(
        method=members.text_if_any("method"),
        host=members.text_if_any("host"),
        path=members.text_if_any("path"),
        status=members.whole_if_any("status"),
        body=members.said("body"),
        websocket=members.true("websocket"),
        query=members.whole_if_any("query") or 0,
        pattern=members.true("pattern"),
    )


def _dns(members: _Members) -> Dns:
    return Dns(members.text("question"), members.text("type"), members.texts("answers"))


def _git(members: _Members) -> Git:
    return Git(members.text("service"), members.text("repository"), members.texts("refs"))


def _transferred(members: _Members) -> Transferred:
    return Transferred(members.whole("up"), members.whole("down"))


def _ending(members: _Members) -> Ending:
    return Ending(members.whole_if_any("status"), members.whole_if_any("signal"))


def _fault(members: _Members) -> Fault:
    return Fault(Where(members.text("where")), members.text("detail"))


def _agent(members: _Members) -> Agent:
    return Agent(
        source=members.text("source"),
        name=members.text_if_any("name") or "",
        service=members.text_if_any("service") or "",
        conversation=members.text_if_any("conversation") or "",
        call=members.text_if_any("call") or "",
        tool=members.text_if_any("tool") or "",
        at=members.whole_if_any("at") or 0,
        attributes=members.pairs("attributes"),
    )


def _mark(members: _Members) -> Mark:
    return Mark(
        segment=members.text("segment"),
        lines=members.whole_if_any("lines"),
        head=members.text_if_any("head") or "",
        closed=members.true("closed"),
        format=members.whole_if_any("format"),
        writer=members.whole_if_any("writer"),
        after=members.text_if_any("after") or "",
        follows=members.text_if_any("follows") or "",
        key=members.text_if_any("key") or "",
    )


def _approval(members: _Members) -> Approval:
    return Approval(
        id=members.text_if_any("id") or "",
        about=members.text_if_any("about") or "",
        by=members.texts("by"),
        answer=members.member_if_any("answer", Answer),
        final=members.true("final"),
        why=members.text_if_any("why") or "",
        grants=members.texts("grants"),
        width=members.text_if_any("width") or "",
        uses=members.whole_if_any("uses"),
        bytes=members.whole_if_any("bytes"),
        until=members.whole_if_any("until"),
        agent=members.true("agent"),
        joined=members.true("joined"),
    )


def _unusual(members: _Members) -> Unusual:
    return Unusual(members.text("what"), members.whole("got"), members.whole("usual"), members.whole("runs"))


_READERS: "dict[str, Callable[[str, object], Any]]" = {
    "time": _time,
    "id": _text,
    "kind": _one_of(Kind),
    "verdict": _one_of(Verdict),
    "outcome": _one_of(Outcome),
    "reason": _one_of(Reason),
    "rules": _texts,
    "revision": _text,
    "mode": _one_of(Mode),
    "cause": _text,
    "process": _made(_process),
    "destination": _made(_destination),
    "protocol": _one_of(Protocol),
    "tls": _made(_tls),
    "http": _made(_http),
    "dns": _made(_dns),
    "bytes": _made(_transferred),
    "duration": _duration,
    "argv": _texts,
    "call": _text,
    "ending": _made(_ending),
    "previous": _text,
    "sources": _texts,
    "problems": _texts,
    "fault": _made(_fault),
    "detail": _text,
    "by": _text,
    "paths": _texts,
    "agent": _made(_agent),
    "journal": _made(_mark),
    "approval": _made(_approval),
    "unusual": _made(_unusual),
    "git": _made(_git),
    "started_by": _made(_started_by),
    "workspace": _text,
}
