"""What the processes of Exeat tell each other over a SOCK_SEQPACKET pair: one JSON object a packet."""

import json
import os
import socket
from collections.abc import Mapping, Sequence

_AT_MOST = 1 << 17  # bytes; what is cut off can't be read, and ends whoever reads it


def as_text(message: Mapping[str, object]) -> str:
    """Return a message as JSON, for one that is sent in pieces."""
    return json.dumps(message, ensure_ascii=True)


def send(channel: socket.socket, message: Mapping[str, object], descriptors: Sequence[int] = ()) -> None:
    """Send one message, with descriptors. Raises OSError when the other side is gone."""
    data = json.dumps(message, ensure_ascii=False).encode("utf-8", "surrogatepass")
    socket.send_fds(channel, [data], list(descriptors))


def packet(channel: socket.socket, most: int, descriptors: int = 0) -> tuple[bytes, list[int]]:
    """Read one packet of a SOCK_SEQPACKET socket, with at most so many descriptors; an empty one is the end.

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
    """Wait for one message, with at most so many descriptors; others that come with it are closed.

    An empty one means that the other side is gone. Raises ValueError for what is none, OSError.
    """
    data, received = packet(channel, _AT_MOST, max(descriptors, 1))
    message = None
    try:
        message = json.loads(data) if data else {}
    except RecursionError:
        pass
    finally:
        if not descriptors or not isinstance(message, dict):
            while received:
                os.close(received.pop())
    if not isinstance(message, dict):
        raise ValueError("what another process says is no message")  # noqa: TRY004  as what is no JSON
    return message, list(received)
