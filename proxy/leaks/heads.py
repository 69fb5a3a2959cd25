"""The head of a request looked through, before anything is dialled for it.

A credential in its usual place is how every client of every service logs in: fields that hold credentials by their
name (`Authorization`, `Cookie`, `X-Api-Key` ...) and parameters that do (`?access_token=`) are not held against the
patterns. Who has to be kept from using somebody else's credential there says `credential` in a rule. The values of the
task's own secrets are looked for everywhere: a task has none of them.
"""

from functools import lru_cache
from typing import TYPE_CHECKING, Final

from proxy.broker.reading import holds_key
from proxy.broker.spelling import ways
from proxy.leaks.finding import hits, may_have_some
from proxy.telemetry.events import MASK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from proxy.broker.own import Watch
    from proxy.inspection.heads import Field, Head

_MOST_KEPT: Final = 256  # fields of one connection that are known to be clean
_LONGEST_KEPT: Final = 512  # bytes
_LONGEST_NAME: Final = 64  # bytes of one that is remembered
_LONGEST_METHOD: Final = 16  # characters of one that is registered (IANA, "HTTP Method Registry"), with some to spare
HEAD: Final = "the head"  # where a value was: in what form, and so where in it, isn't known
# Fields that hold credentials and aren't called so: RFC 6455 (what browsers can set), RFC 9449, App Check's
_ALSO: Final = frozenset({b"sec-websocket-protocol", b"dpop", b"x-firebase-appcheck"})


class Heads:
    """The heads of one connection's requests: most of their fields are those of the request before."""

    __slots__ = ("_clean", "_last")

    def __init__(self) -> None:
        self._last: tuple[Field, ...] = ()
        self._clean: set[Field] = set()

    def is_clean(self, head: "Head") -> bool:
        """Whether nothing is in a head that is like the one before, at a glance; where there are no secrets to find."""
        path = head.path
        return (
            head.fields == self._last
            and len(head.method) <= _LONGEST_METHOD
            and not may_have_some(path)
            and b"%" not in path
        )

    def look(
        self, head: "Head", watch: "Watch | None", is_placeholder: "Callable[[bytes], bool]"
    ) -> list[tuple[str, str]]:
        """Return what is found, and where."""
        found: list[tuple[str, str]] = []
        if b"%" in head.path or may_have_some(head.path):
            found += [(name, "the URL") for name in _named(_unescaped(head.path), is_placeholder, url=True)]
        if len(head.method) > _LONGEST_METHOD:
            found += [(name, "the method") for name in _named(head.method, is_placeholder)]
        if watch is not None:
            found += [
                (name, HEAD) for name in watch.take(b"\n".join((head.method, head.authority, head.path)), lines=False)
            ]
        if head.fields != self._last:
            fresh = [field for field in head.fields if field not in self._clean]
            in_fields = list(_in_fields(fresh, is_placeholder))
            if watch is not None:
                together = b"\n".join(text for field in fresh for text in field)
                in_fields += [(name, HEAD) for name in watch.take(together, lines=False)]
            if not in_fields and (watch is None or not watch.saw_some):
                self._keep(head.fields, fresh)
            found += in_fields
        return found

    def _keep(self, fields: "tuple[Field, ...]", fresh: "list[Field]") -> None:
        """Remember what is clean."""
        self._last = fields
        if len(self._clean) + len(fresh) <= _MOST_KEPT:
            self._clean.update(field for field in fresh if len(field[0]) + len(field[1]) <= _LONGEST_KEPT)


def _in_fields(fields: "list[Field]", is_placeholder: "Callable[[bytes], bool]") -> "Iterator[tuple[str, str]]":
    texts = [name if holds(name) else name + b"\n" + value for name, value in fields]
    # Together, as most have nothing; one by one only to say where it is
    if not may_have_some(b"\n".join(texts)):
        return
    for (name, _), text in zip(fields, texts, strict=True):
        in_name = dict.fromkeys(_named(name, is_placeholder))
        yield from ((each, "the name of a header") for each in in_name)
        where = f"the header `{name.decode('latin-1')[:64]}`"
        yield from ((each, where) for each in _named(text, is_placeholder) if each not in in_name)


def holds(name: bytes) -> bool:
    """Whether credentials stand in fields of this name."""
    return _known(name) if len(name) <= _LONGEST_NAME else _holds(name)


def _holds(name: bytes) -> bool:
    lower = name.lower()
    return lower in _ALSO or holds_key(lower)


_known: Final = lru_cache(maxsize=1024)(_holds)


def shown(method: str, path: str, *, whole: bool) -> tuple[str, str]:
    """Return a method and a path as events and pages may have them, where something was found in their head.

    `whole`: it was, or may have been, in a form that can't be told from the rest.
    """
    if len(method) > _LONGEST_METHOD:
        method = MASK
    raw = path.encode("latin-1", "replace").partition(b"?")[0]
    for hit in reversed(list(hits(raw))):
        raw = raw[: hit.start] + MASK.encode() + raw[hit.end :]
    if whole or any(True for _ in hits(_unescaped(raw))):
        return method, f"/{MASK}"
    return method, raw.decode("latin-1")


def _unescaped(path: bytes) -> bytes:
    """Return a path as it is and with its percent signs read, if it has some."""
    return path if b"%" not in path else b"\n".join(text for text, _ in ways(path))


def _named(text: bytes, is_placeholder: "Callable[[bytes], bool]", *, url: bool = False) -> "Iterator[str]":
    """Yield the kinds of credentials that are in a text, each once; a placeholder is none."""
    found = (hit for hit in hits(text, parameters=True, url=url) if not is_placeholder(text[hit.start : hit.end]))
    yield from dict.fromkeys(hit.name for hit in found)
