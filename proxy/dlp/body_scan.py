"""Scans request bodies as they pass: reports findings, or holds a body until it is scanned.

Under `flag` everything passes at once: the first 256 KB are scanned for everything, the rest for values of secrets.
Under `block` all is scanned, and 16 to 32 KB are held back: of a finding, never longer than 16 KB, not a byte has left.
What can't be read (packed in an unknown way, or without end) passes under `flag`, and doesn't under `block`.
"""

from collections import deque
from itertools import chain
from typing import TYPE_CHECKING, Final

from proxy.dlp.decodings import Closed, Plain, Reader, UnreadableBodyError, decoded, of_parts, readings, transfers
from proxy.dlp.patterns import BACK, LONGEST, candidates
from proxy.event_loop.turn import run_at_once
from rules.verdicts import Scan

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.event_loop.turn import Sliced
    from proxy.secrets.detection import SecretSearch

LOOKED_AT: Final = 256 << 10  # bytes of a body, for patterns, under `flag`
HELD_BACK: Final = 16 << 10  # bytes, under `block`
MOST_HELD: Final = 256 << 10  # bytes that are held back of a packed body, whatever comes out of it
AT_ONCE: Final = 4 << 10  # bytes that are looked at together: what comes byte by byte is not looked at byte by byte
MOST_NAMED: Final = 8  # kinds that are told of one request


class SecretLeakError(Exception):
    """A body must not leave; the text names what was found, without the value."""


class Body:
    """Scan of one body, or of a client's WebSocket messages."""

    __slots__ = (
        "_action", "_end", "_form", "_held", "_is_placeholder", "_kept", "_looked", "_named", "_overlap", "_parts",
        "_pending", "_reader", "_size", "_transfers", "_undecided", "_unnamed", "_watch",
    )  # fmt: skip

    def __init__(
        self,
        action: Scan,
        watch: "SecretSearch | None",
        is_placeholder: "Callable[[bytes], bool]",
        *,
        reader: Reader | None = None,
        form: bool = False,
        parts: bool = False,
        longest: int = 0,
        unnamed: bool = False,
    ) -> None:
        """`form`: the body has parameters, `name=value`; `parts`: it has parts with heads of their own.

        `longest`: bytes of the longest that `watch` looks for. `unnamed`: no rule and no secret names where it goes,
        which is what `strict` is about.
        """
        self._action = action
        self._watch = watch
        self._is_placeholder = is_placeholder
        self._reader = reader or Plain()
        self._form = form
        self._parts = parts
        self._transfers: set[bytes] = set()  # encodings that parts have named so far
        self._unnamed = unnamed
        self._overlap = min(max(LONGEST, 3 * longest), HELD_BACK - 1)  # percent-encoded it is three times as long
        self._pending = b""  # not looked at yet
        self._kept = b""  # the end of what was looked at
        self._undecided = False  # whether there is something at that end that may be a credential
        self._looked = 0
        self._named: dict[str, None] = {}
        self._held: deque[tuple[bytes, int]] = deque()  # what is held back, and where in the text each piece ends
        self._size = 0  # bytes of that
        self._end = 0  # bytes of text so far

    def end(self) -> tuple[bytes, list[str]]:
        """Do all of `ending` now."""
        return run_at_once(self.ending())

    def taking(self, data: bytes) -> "Sliced[tuple[bytes, list[str]]]":
        """Take the next bytes; returns those that may leave now, and what was found and leaves.

        Raises SecretLeakError: then it doesn't leave, nor what is held back.
        """
        blocks = self._blocks
        if not blocks and self._is_done:
            return data, []
        self._pending += data
        if len(self._pending) < AT_ONCE and type(self._reader) is Plain:  # a little that is packed may be much
            return (b"" if blocks else data), []
        found = yield from self._work()
        return (self._free() if blocks else data), found

    def ending(self) -> "Sliced[tuple[bytes, list[str]]]":
        """Return what was held back, at the end, and what was found in what had left. Raises SecretLeakError."""
        found = yield from self._work()
        found += yield from self._conclude()
        return self._let_go(), found

    def looking_after(self, text: bytes) -> "Sliced[list[str]]":
        """Look at what comes beside the body, or after it. Raises SecretLeakError."""
        before = self._kept, self._undecided
        self._kept = b""
        found = yield from self._look(text, last=True)
        self._kept, self._undecided = before
        if found and self._blocks:
            raise SecretLeakError(describe_findings(found))
        return found

    def tighten(self, action: Scan) -> list[str]:
        """Go on under other rules; what has left has left. Returns what was found in that."""
        found = [] if self._blocks else run_at_once(self._work())  # it is less than AT_ONCE, and not packed
        self._action = Scan.strictest((self._action, action))
        return found

    @property
    def _blocks(self) -> bool:
        return self._action.blocks

    @property
    def _is_done(self) -> bool:
        if self._reader.prompt or self._watch is not None:
            return False
        return self._looked >= LOOKED_AT or len(self._named) >= MOST_NAMED

    def _work(self) -> "Sliced[list[str]]":
        """Look at what is pending; returns what is found in what leaves, and holds back what may not leave yet.

        Whether it holds back is settled when it begins: `tighten` may come between two slices, and what a step under
        `flag` was given leaves as a whole, or, where `tighten` has come and something is found, not at all.
        """
        data, self._pending = self._pending, b""
        holds_back = self._blocks
        every: list[str] = []
        for at in range(0, len(data), HELD_BACK):
            piece = data[at : at + HELD_BACK]
            try:
                for text in self._reader.read(piece):
                    found = yield from self._look(text)
                    if found and self._blocks:
                        raise SecretLeakError(describe_findings(found))
                    every += found
                    self._end += len(text)
                    if not self._blocks and self._is_done:
                        return every
                    yield
                if aside := self._reader.aside():
                    every += yield from self.looking_after(aside)
            except UnreadableBodyError as problem:
                if self._blocks:
                    raise SecretLeakError(f"nobody can look into the body: {problem}") from None
                self._reader, self._looked, self._watch = Closed(str(problem)), LOOKED_AT, None
                return every
            if holds_back:
                self._held.append((piece, self._end))
                self._size += len(piece)
            if self._reader.between:  # the next message is another text
                every += yield from self._conclude()
                self._kept, self._looked = b"", 0
        return every

    def _conclude(self) -> "Sliced[list[str]]":
        if not self._undecided:
            return []
        found = yield from self._look(b"", last=True)
        if found and self._blocks:
            raise SecretLeakError(describe_findings(found))
        return found

    def _free(self) -> bytes:
        if self._reader.between:
            return self._let_go()
        free = []
        while self._held and self._end - self._held[0][1] >= HELD_BACK:
            piece, _ = self._held.popleft()
            self._size -= len(piece)
            free.append(piece)
        if self._size > MOST_HELD:
            raise SecretLeakError("nobody can look into the body: hardly anything comes out of what it is packed in")
        return b"".join(free)

    def _let_go(self) -> bytes:
        held = b"".join(piece for piece, _ in self._held)
        self._held.clear()
        self._size = 0
        return held

    def _look(self, text: bytes, *, last: bool = False) -> "Sliced[list[str]]":
        """Look at the next text, and return what is new in it; `last`: nothing comes behind it."""
        wide = self._blocks or self._looked < LOOKED_AT
        known = len(self._kept) - self._overlap  # bytes that are there for what is behind them alone
        self._looked += len(text)
        text = self._kept + text
        self._kept = text[-self._overlap - BACK :]
        found: list[str] = []
        if self._watch is not None:
            yield from self._watch.taking(text, pieces=wide, lines=wide)
            found += self._watch.found()  # with no slice between that and what follows, or two requests could share one
            if found and self._blocks:
                return found
            self._watch.has_left()
        if wide and (self._blocks or len(self._named) < MOST_NAMED):
            self._undecided = False
            strict = self._unnamed and self._action is Scan.STRICT
            found += yield from self._credentials(text, known, parameters=self._form and not strict, last=last)
            for reading, at in readings(text, known, form=self._form):
                found += yield from self._credentials(reading, at, parameters=self._form and not strict, last=last)
            if self._parts:
                self._transfers |= transfers(text)
            for inner in chain(of_parts(text, self._transfers), decoded(text) if strict else ()):
                found += yield from self._credentials(inner, 0, parameters=False, last=True)
        if self._blocks:
            return found
        new = [name for name in dict.fromkeys(found) if name not in self._named][:MOST_NAMED]
        self._named.update(dict.fromkeys(new))
        return new

    def _credentials(self, text: bytes, known: int, *, parameters: bool, last: bool) -> "Sliced[list[str]]":
        """Return the credentials in a text whose first `known` bytes were looked at before."""
        found: list[str] = []
        for hit in candidates(text, parameters=parameters):
            if hit is None:
                yield
            elif hit.open and not last:
                self._undecided = True
            elif hit.start >= known and not self._is_placeholder(text[hit.start : hit.end]):
                found.append(hit.name)
        return found


def describe_findings(found: "list[str]") -> str:
    """Return what is in a body in words."""
    return f"{' and '.join(dict.fromkeys(found))} in the body"
