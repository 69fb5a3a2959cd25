"""Scans request bodies as they pass: reports findings, or holds a body until it is scanned.

Under `flag`, data passes at once: the first 256 KB are scanned for patterns and secrets, the rest for secrets only.
Under `block`, all data is scanned and the last 16 to 32 KB are held back. A finding has at most 16 KB, so no byte of it
is sent. A body that can't be decoded (unknown or endless compression) passes under `flag`, but not under `block`.
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
MOST_HELD: Final = 256 << 10  # bytes held back of a compressed body, however little text it has
AT_ONCE: Final = 4 << 10  # bytes scanned together: many tiny pieces would cost one scan each
MOST_NAMED: Final = 8  # kinds of findings reported for one request


class SecretLeakError(Exception):
    """The body must not be sent; the text names the finding without its value."""


class Body:
    """Scan of one body, or of a client's WebSocket messages."""

    __slots__ = (
        "_action", "_end", "_form", "_held", "_is_placeholder", "_named", "_overlap", "_parts", "_pending", "_reader",
        "_scanned", "_size", "_tail", "_transfers", "_undecided", "_unnamed", "_watch",
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

        `longest`: bytes of the longest value that `watch` searches for. `unnamed`: no rule and no secret names the
        host, so `strict` applies.
        """
        self._action = action
        self._watch = watch
        self._is_placeholder = is_placeholder
        self._reader = reader or Plain()
        self._form = form
        self._parts = parts
        self._transfers: set[bytes] = set()  # transfer encodings named by parts so far
        self._unnamed = unnamed
        self._overlap = min(max(LONGEST, 3 * longest), HELD_BACK - 1)  # percent-encoded it is three times as long
        self._pending = b""  # not scanned yet
        self._tail = b""  # end of the scanned text, scanned again with the next piece
        self._undecided = False  # whether that end may be the start of a credential
        self._scanned = 0
        self._named: dict[str, None] = {}
        self._held: deque[tuple[bytes, int]] = deque()  # pieces held back, and where in the text each ends
        self._size = 0  # bytes held back
        self._end = 0  # bytes of text so far

    def end(self) -> tuple[bytes, list[str]]:
        """Run `finish` at once."""
        return run_at_once(self.finish())

    def scan(self, data: bytes) -> "Sliced[tuple[bytes, list[str]]]":
        """Scan the next bytes; returns the bytes to send now, and the findings in them.

        Raises SecretLeakError: then send neither these bytes nor those held back.
        """
        blocks = self._blocks
        if not blocks and self._is_done:
            return data, []
        self._pending += data
        if len(self._pending) < AT_ONCE and type(self._reader) is Plain:  # few compressed bytes may be much text
            return (b"" if blocks else data), []
        found = yield from self._scan_pending()
        return (self._release() if blocks else data), found

    def finish(self) -> "Sliced[tuple[bytes, list[str]]]":
        """End the scan: return the bytes held back, and the findings in bytes sent before. Raises SecretLeakError."""
        found = yield from self._scan_pending()
        found += yield from self._scan_end()
        return self._release_all(), found

    def scan_aside(self, text: bytes) -> "Sliced[list[str]]":
        """Scan text beside or after the body, such as trailers. Raises SecretLeakError."""
        before = self._tail, self._undecided
        self._tail = b""
        found = yield from self._scan_text(text, last=True)
        self._tail, self._undecided = before
        if found and self._blocks:
            raise SecretLeakError(describe_findings(found))
        return found

    def tighten(self, action: Scan) -> list[str]:
        """Continue under stricter rules. Returns the findings in bytes that were already sent."""
        found = [] if self._blocks else run_at_once(self._scan_pending())  # less than AT_ONCE, and not compressed
        self._action = Scan.strictest((self._action, action))
        return found

    @property
    def _blocks(self) -> bool:
        return self._action.blocks

    @property
    def _is_done(self) -> bool:
        if self._reader.prompt or self._watch is not None:
            return False
        return self._scanned >= LOOKED_AT or len(self._named) >= MOST_NAMED

    def _scan_pending(self) -> "Sliced[list[str]]":
        """Scan pending bytes; returns the findings in bytes that are sent, and holds back bytes if the action blocks.

        Whether it holds back is fixed at its start, though `tighten` may run between slices. Bytes that a step received
        under `flag` are sent together, or, if `tighten` ran and there is a finding, not at all.
        """
        data, self._pending = self._pending, b""
        holds_back = self._blocks
        every: list[str] = []
        for at in range(0, len(data), HELD_BACK):
            piece = data[at : at + HELD_BACK]
            try:
                for text in self._reader.read(piece):
                    found = yield from self._scan_text(text)
                    if found and self._blocks:
                        raise SecretLeakError(describe_findings(found))
                    every += found
                    self._end += len(text)
                    if not self._blocks and self._is_done:
                        return every
                    yield
                if aside := self._reader.aside():
                    every += yield from self.scan_aside(aside)
            except UnreadableBodyError as problem:
                if self._blocks:
                    raise SecretLeakError(f"the body can't be scanned: {problem}") from None
                self._reader, self._scanned, self._watch = Closed(str(problem)), LOOKED_AT, None
                return every
            if holds_back:
                self._held.append((piece, self._end))
                self._size += len(piece)
            if self._reader.between:  # the next message starts a new text
                every += yield from self._scan_end()
                self._tail, self._scanned = b"", 0
        return every

    def _scan_end(self) -> "Sliced[list[str]]":
        if not self._undecided:
            return []
        found = yield from self._scan_text(b"", last=True)
        if found and self._blocks:
            raise SecretLeakError(describe_findings(found))
        return found

    def _release(self) -> bytes:
        if self._reader.between:
            return self._release_all()
        free = []
        while self._held and self._end - self._held[0][1] >= HELD_BACK:
            piece, _ = self._held.popleft()
            self._size -= len(piece)
            free.append(piece)
        if self._size > MOST_HELD:
            raise SecretLeakError("the body can't be scanned: hardly anything comes out of its compressed data")
        return b"".join(free)

    def _release_all(self) -> bytes:
        held = b"".join(piece for piece, _ in self._held)
        self._held.clear()
        self._size = 0
        return held

    def _scan_text(self, text: bytes, *, last: bool = False) -> "Sliced[list[str]]":
        """Scan the next text, and return its new findings; `last`: no text follows."""
        wide = self._blocks or self._scanned < LOOKED_AT
        scanned = len(self._tail) - self._overlap  # bytes already scanned, repeated as context for the bytes after them
        self._scanned += len(text)
        text = self._tail + text
        self._tail = text[-self._overlap - BACK :]
        found: list[str] = []
        if self._watch is not None:
            yield from self._watch.search(text, pieces=wide, lines=wide)
            found += self._watch.found()  # no slice may come before `has_left`: two requests could share a finding
            if found and self._blocks:
                return found
            self._watch.has_left()
        if wide and (self._blocks or len(self._named) < MOST_NAMED):
            self._undecided = False
            strict = self._unnamed and self._action is Scan.STRICT
            found += yield from self._credentials(text, scanned, parameters=self._form and not strict, last=last)
            for reading, at in readings(text, scanned, form=self._form):
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

    def _credentials(self, text: bytes, scanned: int, *, parameters: bool, last: bool) -> "Sliced[list[str]]":
        """Return the credentials in a text whose first `scanned` bytes were scanned before."""
        found: list[str] = []
        for hit in candidates(text, parameters=parameters):
            if hit is None:
                yield
            elif hit.open and not last:
                self._undecided = True
            elif hit.start >= scanned and not self._is_placeholder(text[hit.start : hit.end]):
                found.append(hit.name)
        return found


def describe_findings(found: "list[str]") -> str:
    """Describe the findings in a body."""
    return f"{' and '.join(dict.fromkeys(found))} in the body"
