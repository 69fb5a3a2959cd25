"""WebSocket frames (RFC 6455 section 5.2): where each begins in what a side sends. Pure."""

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTROL: Final = 0x08
FIN, RESERVED, MASKED = 0x80, 0x70, 0x80
MOST_CONTROL: Final = 125  # bytes of a control frame (section 5.5)
CLOSE: Final = 8  # opcode
_OPCODE, _SIZE = 0x0F, 0x7F
_OPCODES: Final = frozenset({0, 1, 2, 8, 9, 10})  # what there is without extensions (section 5.2)
_LONG: Final = {126: 2, 127: 8}  # bytes of a length that has no room in the first two
MASK: Final = 4  # bytes


class NotFramesError(Exception):
    """What a client sends is no WebSocket's; the text says why."""


class Frames:
    """Follows where frames begin in what a server sends. Nothing hangs on what is in them."""

    __slots__ = ("_head", "_left", "closing")

    def __init__(self) -> None:
        self.closing = False  # a Close frame has begun (section 5.5.1)
        self._head = b""  # of the frame that begins
        self._left = 0  # bytes of payload that are still to come

    @property
    def between(self) -> bool:
        """Whether all that was sent are whole frames, so that one of ours may be next."""
        return not self._head and not self._left

    def follow(self, data: bytes) -> None:
        """Take note of what is sent."""
        for _ in self.payloads(data):
            pass

    def payloads(self, data: bytes) -> "Iterator[tuple[int, int]]":
        """Take note of what is sent; yield where payload begins and ends in it, a frame's at a time."""
        at = 0
        while at < len(data):
            if self._left:
                step = min(self._left, len(data) - at)
                self._left -= step
                yield at, at + step
            else:
                step = _head_size(self._head) - len(self._head)
                self._head += data[at : at + step]
                self._look(self._head)
                if len(self._head) >= 2 and len(self._head) == _head_size(self._head):
                    head, self._head = self._head, b""
                    self._begin(head)
            at += step

    def _look(self, head: bytes) -> None:
        """Look at a frame's head, or the beginning of one."""

    def _begin(self, head: bytes) -> None:
        """Begin with a frame whose head is whole."""
        self.closing = self.closing or head[0] & _OPCODE == CLOSE
        size = head[1] & _SIZE
        self._left = int.from_bytes(head[2 : 2 + _LONG[size]]) if size in _LONG else size


class ClientFrames(Frames):
    """... and in what a client sends, of whom nothing else is taken: who is in the middle may read requests in it."""

    __slots__ = ("_extended",)

    def __init__(self, *, extended: bool) -> None:
        """Begin. `extended`: both sides have agreed to extensions, whose bits and opcodes are theirs (section 9)."""
        super().__init__()
        self._extended = extended

    def _look(self, head: bytes) -> None:
        """Raise NotFramesError for what no client may send."""
        if not self._extended and (head[0] & RESERVED or head[0] & _OPCODE not in _OPCODES):
            raise NotFramesError("what its client sends has no opcode that there is")
        if len(head) > 1 and not head[1] & MASKED:
            raise NotFramesError("what its client sends isn't masked")
        if len(head) > 1 and head[0] & CONTROL and head[1] & _SIZE > MOST_CONTROL:
            raise NotFramesError("its client sends a control frame that is too long")


def _head_size(head: bytes) -> int:
    """Return how long a frame's head is, as far as its first two bytes say."""
    if len(head) < 2:
        return 2
    return 2 + _LONG.get(head[1] & _SIZE, 0) + (MASK if head[1] & MASKED else 0)
