"""Messages between processes of Exeat over SOCK_SEQPACKET: one JSON object a packet.

A file goes along as a descriptor, or in words where the kernel passes none: it counts those that are under way for each
user (unix(7), ETOOMANYREFS), so that a task of the same user can use them all up. What is in a file, as rules that have
changed, must not depend on that.
"""

import base64
import errno
import json
import os
import socket
import stat
from collections.abc import Mapping, Sequence
from typing import Final

from proxy.wire import descriptor_passing, strict_json

_AT_MOST = 1 << 17  # bytes; what is cut off can't be read, and ends whoever reads it
_written: Final = json.JSONEncoder(ensure_ascii=False).encode
_IN_WORDS: Final = "file in words"  # no message has this by itself
_LARGEST: Final = 1 << 26  # bytes of such a file


class MessageNotSentError(OSError):
    """A message could not be sent as a file; the caller must not continue without it."""


def as_text(message: Mapping[str, object]) -> str:
    """Return a message as JSON text, for a caller that sends it in pieces."""
    return json.dumps(message, ensure_ascii=True)


def send(channel: socket.socket, message: Mapping[str, object], descriptors: Sequence[int] = ()) -> None:
    """Send one message with descriptors. Raises OSError when the peer is gone, MessageNotSentError."""
    try:
        descriptor_passing.send(channel, _packed(message), descriptors)
    except OSError as error:
        if error.errno != errno.ETOOMANYREFS or not _is_file(descriptors):
            raise
        _send_in_words(channel, message, descriptors[0])


def _packed(message: Mapping[str, object]) -> bytes:
    return _written(message).encode("utf-8", "surrogatepass")


def _is_file(descriptors: Sequence[int]) -> bool:
    return len(descriptors) == 1 and stat.S_ISREG(os.fstat(descriptors[0]).st_mode)


def _send_in_words(channel: socket.socket, message: Mapping[str, object], file: int) -> None:
    import zlib  # hardly any message goes this way

    size = os.fstat(file).st_size
    content = zlib.compress(os.pread(file, min(size, _LARGEST), 0))
    data = _packed({**message, _IN_WORDS: base64.b64encode(content).decode()})
    if size > _LARGEST or len(data) > _AT_MOST:
        raise MessageNotSentError(
            errno.ETOOMANYREFS, "the kernel passes no descriptor, and the file is too large for a message"
        )
    channel.send(data)


def _out_of_words(text: object) -> int:
    """Return a memory file with the content that came as text. Raises ValueError, OSError."""
    import zlib

    try:
        unpacking = zlib.decompressobj()
        content = unpacking.decompress(base64.b64decode(str(text), validate=True), _LARGEST)
    except zlib.error as error:
        raise ValueError("a file in words can't be read") from error
    if not unpacking.eof:
        raise ValueError("a file in words is cut off, or too large")
    file = os.memfd_create("words", os.MFD_CLOEXEC)
    with os.fdopen(os.dup(file), "wb") as out:
        out.write(content)
    return file


def packet(channel: socket.socket, most: int, descriptors: int = 0) -> tuple[bytes, list[int]]:
    """Read one packet of a SOCK_SEQPACKET socket, with at most `descriptors` descriptors; empty: the peer ended.

    Who ends with something of ours unread leaves a reset, and the kernel tells of that before it gives what was said
    last (unix(7)): it is told once, so a second look finds the last words, or the end. Raises other OSErrors.
    """
    for _ in range(2):
        try:
            if not descriptors:
                return channel.recv(most), []
            data, received, _, _ = socket.recv_fds(channel, most, descriptors)
        except ConnectionResetError:
            continue
        return data, received
    return b"", []


def receive(channel: socket.socket, descriptors: int = 0) -> tuple[dict[str, object], list[int]]:
    """Wait for one message, with at most `descriptors` descriptors; any others are closed.

    An empty message means that the peer is gone. Raises ValueError for a malformed one, OSError.
    """
    data, received = packet(channel, _AT_MOST, max(descriptors, 1))
    message = None
    try:
        message = strict_json.loads(data) if data else {}
    except ValueError as error:
        raise ValueError(f"what another process says is no message: {error}") from error
    finally:
        if not descriptors or not isinstance(message, dict):
            while received:
                os.close(received.pop())
    if not isinstance(message, dict):
        raise ValueError("what another process says is no message")  # noqa: TRY004  as what is no JSON
    words = message.pop(_IN_WORDS, None)
    if words is not None and descriptors and not received:
        received.append(_out_of_words(words))
    return message, list(received)
