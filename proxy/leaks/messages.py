"""What a client sends on a WebSocket, unmasked to be looked at (RFC 6455 section 5.2). It is passed on as it came."""

from typing import TYPE_CHECKING, Final

from proxy.leaks.packed import Unreadable

if TYPE_CHECKING:
    from collections.abc import Iterator

_FIN, _RESERVED, _MASKED, _SIZE = 0x80, 0x70, 0x80, 0x7F
_CONTROL: Final = 0x08
_MOST_CONTROL: Final = 125  # bytes (section 5.5)
_LONG: Final = {126: 2, 127: 8}  # bytes of a length that has no room in the first two
_MASK: Final = 4  # bytes


class Messages:
    """One client's frames.

    Control frames may stand in the middle of a message (section 5.4): what is in them is a text by itself.
    """

    prompt = True

    def __init__(self) -> None:
        self._head = b""
        self._left = 0  # bytes of payload that are still to come
        self._mask = b"\0\0\0\0"
        self._control = False  # whether this is a control frame
        self._open = False  # whether more of a message is to come
        self._aside = b""

    @property
    def between(self) -> bool:
        """Whether neither a frame nor a message is under way."""
        return not self._left and not self._head and not self._open

    def read(self, data: bytes) -> "Iterator[bytes]":
        """Yield what is in messages. Raises Unreadable for what no client may send, and for an extension."""
        at = 0
        while at < len(data):
            if self._left:
                piece = data[at : at + self._left]
                text = self._unmasked(piece)
                if self._control:
                    self._aside += text if self._left else text + b"\n"
                else:
                    yield text
            else:
                piece = data[at : at + self._wanted() - len(self._head)]
                self._head += piece
                if len(self._head) == 2:
                    _check(self._head)
                if len(self._head) == self._wanted() > 2:
                    self._begin(self._head)
                    self._head = b""
            at += len(piece)

    def aside(self) -> bytes:
        """Return what was in control frames since this was asked last."""
        text, self._aside = self._aside, b""
        return text

    def _wanted(self) -> int:
        """Return how long the head of this frame is, as far as its first two bytes say."""
        if len(self._head) < 2:
            return 2
        return 2 + _LONG.get(self._head[1] & _SIZE, 0) + _MASK

    def _begin(self, head: bytes) -> None:
        size = head[1] & _SIZE
        self._left = int.from_bytes(head[2:-_MASK]) if size in _LONG else size
        self._mask = head[-_MASK:]
        self._control = bool(head[0] & _CONTROL)
        if not self._control:
            self._open = not head[0] & _FIN

    def _unmasked(self, piece: bytes) -> bytes:
        size = len(piece)
        self._left -= size
        mask = self._mask * (size // _MASK + 1)
        self._mask = (self._mask * 2)[size % _MASK :][:_MASK]
        return (int.from_bytes(piece) ^ int.from_bytes(mask[:size])).to_bytes(size)


def _check(head: bytes) -> None:
    if head[0] & _CONTROL and head[1] & _SIZE > _MOST_CONTROL:
        raise Unreadable("it has a control frame that is too long")
    if head[0] & _RESERVED:
        raise Unreadable("its messages are packed")
    if not head[1] & _MASKED:
        raise Unreadable("its messages aren't masked, as a client's have to be")
