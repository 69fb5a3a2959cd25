"""Messages between processes of Exeat over SOCK_SEQPACKET: one JSON object a packet, with file descriptors.

The kernel counts, for each user, descriptors that are sent and not received yet. It limits each sender to the sender's
own soft limit of open files (unix(7), ETOOMANYREFS). With the usual soft limit, sending fails while another program of
the same user has as many in flight. So `send_packet` then raises the soft limit to the hard limit for a moment. A
task's hard limit is lower than Exeat's (`enforcer.limits.resource_limits`), so this leaves room for Exeat.

Where that fails too, `send` puts the content of a file into the message as text. A change of the rules is sent as a
file, and must not depend on descriptors that a task can use up.
"""

import base64
import contextlib
import errno
import json
import os
import resource
import socket
import stat
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from proxy.wire import strict_json

_MAX_PACKET: Final = 1 << 17  # bytes; a longer packet is cut off, which makes it malformed
_encode: Final = json.JSONEncoder(ensure_ascii=False).encode
_INLINE_FILE: Final = "file in words"  # key of a file's content; no message uses it otherwise
_MAX_INLINE_FILE: Final = 1 << 26  # bytes


class MessageNotSentError(OSError):
    """A message could not be sent as a file; the caller must not continue without it."""


def as_text(message: Mapping[str, object]) -> str:
    """Return a message as JSON text, for a caller that sends it in pieces."""
    return json.dumps(message, ensure_ascii=True)


def send(channel: socket.socket, message: Mapping[str, object], descriptors: Sequence[int] = ()) -> None:
    """Send one message with descriptors. Raises OSError when the peer is gone, MessageNotSentError."""
    try:
        send_packet(channel, _to_bytes(message), descriptors)
    except OSError as error:
        if error.errno != errno.ETOOMANYREFS or not _is_one_file(descriptors):
            raise
        _send_with_inline_file(channel, message, descriptors[0])


def send_packet(channel: socket.socket, data: bytes, descriptors: Sequence[int]) -> None:
    """Send one packet with descriptors. Raises OSError."""
    try:
        socket.send_fds(channel, [data], list(descriptors))
    except OSError as error:
        if error.errno != errno.ETOOMANYREFS:
            raise
        with raised_descriptor_limit():
            socket.send_fds(channel, [data], list(descriptors))


@contextlib.contextmanager
def raised_descriptor_limit() -> Iterator[None]:
    """Raise the soft limit of open files to the hard limit for a moment. For a process with one thread."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # a confined worker may not, and its soft limit is the hard one
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def packet(channel: socket.socket, most: int, descriptors: int = 0) -> tuple[bytes, list[int]]:
    """Read one packet of a SOCK_SEQPACKET socket, with at most `descriptors` descriptors; empty: the peer ended.

    A peer that ends with unread data of ours causes ECONNRESET, which the kernel reports before the peer's last
    packet (unix(7)). It reports the error once, so the second read returns that packet, or the end. Raises other
    OSErrors.
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
    data, received = packet(channel, _MAX_PACKET, max(descriptors, 1))
    message = None
    try:
        message = strict_json.loads(data) if data else {}
    except ValueError as error:
        raise ValueError(f"another process sent a malformed message: {error}") from error
    finally:
        if not descriptors or not isinstance(message, dict):
            while received:
                os.close(received.pop())
    if not isinstance(message, dict):
        raise ValueError("another process sent a malformed message: it is no object")  # noqa: TRY004  as no JSON
    content = message.pop(_INLINE_FILE, None)
    if content is not None and descriptors and not received:
        received.append(_open_inline_file(content))
    return message, list(received)


def _to_bytes(message: Mapping[str, object]) -> bytes:
    return _encode(message).encode("utf-8", "surrogatepass")


def _is_one_file(descriptors: Sequence[int]) -> bool:
    return len(descriptors) == 1 and stat.S_ISREG(os.fstat(descriptors[0]).st_mode)


def _send_with_inline_file(channel: socket.socket, message: Mapping[str, object], file: int) -> None:
    import zlib  # few messages are sent this way

    size = os.fstat(file).st_size
    content = zlib.compress(os.pread(file, min(size, _MAX_INLINE_FILE), 0))
    data = _to_bytes({**message, _INLINE_FILE: base64.b64encode(content).decode()})
    if size > _MAX_INLINE_FILE or len(data) > _MAX_PACKET:
        raise MessageNotSentError(
            errno.ETOOMANYREFS, "the kernel passes no descriptor, and the file is too large for a message"
        )
    channel.send(data)


def _open_inline_file(text: object) -> int:
    """Return a memory file with the content that was sent as text. Raises ValueError, OSError."""
    import zlib

    try:
        decompressor = zlib.decompressobj()
        content = decompressor.decompress(base64.b64decode(str(text), validate=True), _MAX_INLINE_FILE)
    except zlib.error as error:
        raise ValueError("the file in a message can't be decompressed") from error
    if not decompressor.eof:
        raise ValueError("the file in a message is cut off, or too large")
    file = os.memfd_create("message-file", os.MFD_CLOEXEC)
    with os.fdopen(os.dup(file), "wb") as out:
        out.write(content)
    return file
