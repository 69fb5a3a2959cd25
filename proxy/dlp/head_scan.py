"""Scans the head of a request before anything is dialed for it.

Fields and parameters that hold credentials by their name (`Authorization`, `Cookie`, `?access_token=`) are not matched
against the patterns: the rule key `credential` covers those. The task's own secrets are searched for everywhere.
"""

from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.dlp.decodings import decoded, of_form, of_json
from proxy.dlp.patterns import ANCHORS, candidates, find_credentials
from proxy.secrets.credentials import holds_key
from proxy.secrets.encodings import ways
from proxy.telemetry.masking import MASK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from proxy.event_loop.turn import Sliced
    from proxy.request.request_head import Field, Head
    from proxy.secrets.detection import SecretSearch

_MOST_CACHED: Final = 256  # clean fields that are cached for one connection
_LONGEST_CACHED: Final = 512  # bytes
_LONGEST_NAME: Final = 64  # bytes of a name that is cached
_LONGEST_METHOD: Final = 16  # characters; registered methods are shorter (IANA, "HTTP Method Registry")
_LONGEST_SHOWN: Final = 4096  # bytes of a path; a longer path with a credential is masked completely
HEAD: Final = "the head"  # place of a finding whose exact field isn't known
# Fields that hold credentials despite their names: RFC 6455 (what browsers can set), RFC 9449, App Check's
_OTHER_CREDENTIAL_FIELDS: Final = frozenset({b"sec-websocket-protocol", b"dpop", b"x-firebase-appcheck"})


class Heads:
    """Scans the heads of one connection's requests; caches clean fields, which most requests repeat."""

    __slots__ = ("_clean", "_last")

    def __init__(self) -> None:
        self._last: tuple[Field, ...] = ()
        self._clean: set[Field] = set()

    def is_clean(self, head: "Head") -> bool:
        """Whether one quick pass shows that a head matches no pattern: most heads need no other scan.

        False doesn't mean a finding: it also scans fields where credentials are allowed, and then `scan` decides.
        """
        path, fields = head.path, head.fields
        if len(head.method) > _LONGEST_METHOD or b"%" in path or b"+" in path or b"\\" in path or ANCHORS.search(path):
            return False
        if fields != self._last:
            fresh = [field for field in fields if field not in self._clean]
            if ANCHORS.search(b"\n".join([b"\n".join(field) for field in fresh])):
                return False
            self._cache_clean(fields, fresh)
        return True

    def scan(
        self,
        head: "Head",
        watch: "SecretSearch | None",
        is_placeholder: "Callable[[bytes], bool]",
        *,
        strict: bool = False,
    ) -> "Sliced[list[tuple[str, str]]]":
        """Return the credentials found and their places; findings of secrets' values are in `watch`.

        `strict`: also report credentials in their usual place, and encoded ones.
        """
        found: list[tuple[str, str]] = []
        credentials = _CredentialNames(is_placeholder, strict=strict)
        for text in _readings(head.path):
            found += [(name, "the URL") for name in (yield from credentials.in_text(text, url=True))]
        if len(head.method) > _LONGEST_METHOD:
            found += [(name, "the method") for name in (yield from credentials.in_text(head.method))]
        found = list(dict.fromkeys(found))
        if watch is not None:
            yield from watch.search(b"\n".join((head.method, head.authority, head.path)), lines=False)
        if strict:  # the cache doesn't apply: a field that is clean otherwise may not be here
            found += yield from _in_fields(list(head.fields), credentials)
        if head.fields != self._last:
            fresh = [field for field in head.fields if field not in self._clean]
            in_fields = [] if strict else (yield from _in_fields(fresh, credentials))
            if watch is not None:
                yield from watch.search(b"\n".join(text for field in fresh for text in field), lines=False)
            if not in_fields and not strict and (watch is None or not watch.saw_some):
                self._cache_clean(head.fields, fresh)
            found += in_fields
        return found

    def _cache_clean(self, fields: "tuple[Field, ...]", fresh: "list[Field]") -> None:
        self._last = fields
        if len(self._clean) + len(fresh) <= _MOST_CACHED:
            self._clean.update([field for field in fresh if len(field[0]) + len(field[1]) <= _LONGEST_CACHED])


class _CredentialNames(NamedTuple):
    """Kinds of credentials that a text has; placeholders are ignored."""

    is_placeholder: "Callable[[bytes], bool]"
    strict: bool

    def in_text(self, text: bytes, *, url: bool = False) -> "Sliced[list[str]]":
        """Return the kinds in a text, each once."""
        found = yield from self._in_one(text, parameters=not self.strict, url=url)
        if self.strict:
            for inner in decoded(text):
                found |= yield from self._in_one(inner, parameters=False, url=False)
        return list(found)

    def _in_one(self, text: bytes, *, parameters: bool, url: bool) -> "Sliced[dict[str, None]]":
        found: dict[str, None] = {}
        for hit in candidates(text, parameters=parameters, url=url):
            if hit is None:
                yield
            elif not self.is_placeholder(text[hit.start : hit.end]):
                found[hit.name] = None
        return found


def _in_fields(fields: "list[Field]", credentials: _CredentialNames) -> "Sliced[list[tuple[str, str]]]":
    texts = [name if holds(name) and not credentials.strict else name + b"\n" + value for name, value in fields]
    # All fields in one text first, since most have no finding; then each, to find the place
    if not (yield from credentials.in_text(b"\n".join(texts))):
        return []
    found: list[tuple[str, str]] = []
    for (name, _), text in zip(fields, texts, strict=True):
        in_name = yield from credentials.in_text(name)
        found += [(each, "the name of a header") for each in in_name]
        where = f"the header `{name.decode('latin-1')[:64]}`"
        found += [(each, where) for each in (yield from credentials.in_text(text)) if each not in in_name]
    return found


def holds(name: bytes) -> bool:
    """Whether fields of this name hold credentials."""
    return _cached_holds(name) if len(name) <= _LONGEST_NAME else _holds(name)


def _holds(name: bytes) -> bool:
    lower = name.lower()
    return lower in _OTHER_CREDENTIAL_FIELDS or holds_key(lower)


_cached_holds: Final = lru_cache(maxsize=1024)(_holds)


def shown(method: str, path: str, *, whole: bool) -> tuple[str, str]:
    """Return method and path, masked for events and pages, of a head with a finding.

    `whole`: mask the whole path, because the finding can't be located in it.
    """
    if len(method) > _LONGEST_METHOD:
        method = MASK
    raw = path.encode("latin-1", "replace").partition(b"?")[0]
    if whole or len(raw) > _LONGEST_SHOWN:
        return method, f"/{MASK}"
    for hit in reversed(list(find_credentials(raw))):
        raw = raw[: hit.start] + MASK.encode() + raw[hit.end :]
    if any(True for text in _readings(raw) for _ in find_credentials(text)):
        return method, f"/{MASK}"
    return method, raw.decode("latin-1")


def _readings(path: bytes) -> "Iterator[bytes]":
    """Yield the readings of a path: as it is, percent-decoded, plus-decoded query, and each without JSON escapes.

    Each is scanned by itself: a parameter's name in one reading may be part of a value in another.
    """
    found = [path]
    if b"%" in path:
        found += (text for text, _ in ways(path)[1:])
    if b"+" in (query := path.partition(b"?")[2]):
        found.append(of_form(query))
    yield from found
    yield from (of_json(text) for text in found if b"\\u00" in text or b"\\/" in text)
