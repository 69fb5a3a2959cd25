"""Table of WebSocket exchanges (RFC 6455) as raw bytes, run through the gate and without it.

A row has the bytes that client and server send after their handshakes. Each side ends when it has sent and
received everything; `ends_first` ends first. Each difference has its line in `docs/reference/clients.md`.
"""

from typing import NamedTuple

FIN, TEXT, BINARY, CLOSE, PING, PONG = 0x80, 0x1, 0x2, 0x8, 0x9, 0xA
CLIENT, SERVER = "client", "server"


class Exchange(NamedTuple):
    name: str
    up: bytes = b""  # what the client sends
    down: bytes = b""  # what the server sends
    ends_first: str = CLIENT
    late: bytes = b""  # what the other side sends after this half-close, without TLS only
    extensions: str = ""  # that the client offers and the server agrees to
    offered: tuple[str, ...] = ()  # further lines of the client's handshake
    agreed: tuple[str, ...] = ()  # further lines of the server's
    arrives: bytes | None = None  # what the server receives at most, where the gate ends the connection
    why: str = ""  # the line of the docs that explains the difference


def _frame(payload, first, mask):
    size = len(payload)
    bit = 0x80 if mask is not None else 0
    if size < 126:
        head = bytes([first, bit | size])
    elif size < 1 << 16:
        head = bytes([first, bit | 126]) + size.to_bytes(2)
    else:
        head = bytes([first, bit | 127]) + size.to_bytes(8)
    if mask is None:
        return head + payload
    key = int.from_bytes((mask * (size // 4 + 1))[:size])
    return head + mask + (int.from_bytes(payload) ^ key).to_bytes(size)


def up(payload=b"", opcode=FIN | TEXT, mask=b"\x37\xfa\x21\x3d"):
    """A client's frame, masked (section 5.3)."""
    return _frame(payload, opcode, mask)


def down(payload=b"", opcode=FIN | TEXT):
    """A server's frame."""
    return _frame(payload, opcode, None)


def _both(name, *frames, **more):
    """A row in which both sides send the same frames."""
    return Exchange(name, b"".join(up(*one) for one in frames), b"".join(down(*one) for one in frames), **more)


_BYE = (1000).to_bytes(2)
_DEFLATE = "permessage-deflate; client_max_window_bits=15"

EXCHANGES = [
    Exchange("nothing at all"),
    Exchange("nothing at all, and the server ends first", ends_first=SERVER),
    *(_both(f"a message of {size} bytes", (b"x" * size, FIN | BINARY)) for size in (0, 1, 125, 126, 127, 65535, 65536, 300_000)),
    _both("text", ("h\xe9llo \U0001f600".encode(), FIN | TEXT)),
    _both("text that is no UTF-8", (b"\xff\xfe", FIN | TEXT)),
    _both("a hundred messages in a row", *((b"%d" % n, FIN | TEXT) for n in range(100))),
    Exchange("a length field longer than needed", b"\x82\xfe\0\x01" + bytes(4) + b"x", b"\x82\x7e\0\x01x"),
    # fragmentation
    _both("a message in two frames", (b"Hel", TEXT), (b"lo", FIN)),
    _both("a message in many frames", (b"a", BINARY), *((b"b", 0) for _ in range(50)), (b"c", FIN)),
    _both("a message whose first frame is empty", (b"", TEXT), (b"x", FIN)),
    _both("a message whose last frame is empty", (b"x", TEXT), (b"", FIN)),
    _both("a ping in the middle of a message", (b"Hel", TEXT), (b"p", FIN | PING), (b"lo", FIN)),
    _both("large frames of one message", (b"x" * 70_000, BINARY), (b"y" * 70_000, FIN)),
    _both("a message that never ends", (b"x", TEXT), (b"y", 0)),
    _both("a continuation of nothing", (b"x", FIN)),
    # control frames
    _both("a ping", (b"", FIN | PING)),
    _both("a ping of 125 bytes", (b"x" * 125, FIN | PING)),
    _both("an unsolicited pong", (b"x", FIN | PONG)),
    _both("pings and pongs", (b"1", FIN | PING), (b"1", FIN | PONG), (b"2", FIN | PING), (b"2", FIN | PONG)),
    # closing
    _both("a close without a code", (b"", FIN | CLOSE)),
    *(_both(f"a close with {code}", (code.to_bytes(2) + b"why", FIN | CLOSE)) for code in (1000, 1001, 1002, 1008, 1011, 3000, 4999)),
    _both("a close with a code that isn't sent", ((1005).to_bytes(2), FIN | CLOSE)),
    _both("a close of one byte", (b"x", FIN | CLOSE)),
    _both("a close with the longest reason", (_BYE + b"x" * 123, FIN | CLOSE)),
    _both("a message and a close", (b"x", FIN | TEXT), (_BYE, FIN | CLOSE)),
    _both("a message behind a close", (_BYE, FIN | CLOSE), (b"x", FIN | TEXT)),
    _both("a close, and the server ends first", (_BYE, FIN | CLOSE), ends_first=SERVER),
    _both("a message, and the server ends first", (b"x", FIN | TEXT), ends_first=SERVER),
    Exchange("only the client closes", up(_BYE, FIN | CLOSE)),
    Exchange("only the server closes", b"", down(_BYE, FIN | CLOSE), ends_first=SERVER),
    Exchange("a frame of the client's that breaks off", up(b"x" * 100)[:20]),
    Exchange("a frame of the server's that breaks off", b"", down(b"x" * 100)[:20], ends_first=SERVER),
    Exchange("the server's close behind the end of the client's side", up(_BYE, FIN | CLOSE), late=down(_BYE, FIN | CLOSE)),
    Exchange("the client's close behind the end of the server's side", b"", down(_BYE, FIN | CLOSE), ends_first=SERVER, late=up(_BYE, FIN | CLOSE)),
    Exchange("much behind the end of the client's side", up(b"x"), late=down(b"y" * 300_000)),
    # masks
    Exchange("a mask of nothing", up(b"hello", mask=bytes(4))),
    Exchange("a mask that makes a request of a message", up(b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", mask=bytes(4))),
    Exchange("a server that masks its frames", b"", up(b"hello"), ends_first=SERVER),
    # handshake fields
    Exchange("a subprotocol", offered=("Sec-WebSocket-Protocol: chat, superchat",), agreed=("Sec-WebSocket-Protocol: chat",)),
    Exchange("fields of the application's", offered=("Origin: https://a.example", "Cookie: a=b", "Authorization: Bearer x"), agreed=("Set-Cookie: a=b", "X: y")),
    # compression and other extensions
    Exchange("extensions that the server doesn't take", up(b"x"), down(b"x"), offered=(f"Sec-WebSocket-Extensions: {_DEFLATE}",)),
    _both("a packed message", (b"\xf2\x48\xcd\xc9\xc9\x07\x00", FIN | 0x40 | TEXT), extensions=_DEFLATE),
    _both("a packed message in frames", (b"\xf2\x48\xcd", 0x40 | TEXT), (b"\xc9\xc9\x07\x00", FIN), extensions=_DEFLATE),
    _both("packed and plain messages", (b"\xf2\x48\xcd\xc9\xc9\x07\x00", FIN | 0x40 | TEXT), (b"x", FIN | TEXT), extensions=_DEFLATE),
    _both("an opcode of an extension's", (b"x", FIN | 0x3), extensions="x-odd"),
    _both("all bits of an extension's", (b"x", FIN | 0x70 | TEXT), extensions="x-odd"),
    # an invalid client frame ends the WebSocket; bytes of the server are relayed unchanged
    Exchange("a packed message without an extension", up(b"x", FIN | 0x40 | TEXT), arrives=b"", why="frames"),
    Exchange("an opcode that there isn't", up(b"x", FIN | 0x3), arrives=b"", why="frames"),
    Exchange("a client that doesn't mask", down(b"hello"), arrives=b"", why="frames"),
    Exchange("a ping of 126 bytes", up(b"x" * 126, FIN | PING), arrives=b"", why="frames"),
    Exchange("a request for a frame", b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", arrives=b"", why="frames"),
    Exchange("a server's packed message without an extension", b"", down(b"x", FIN | 0x40 | TEXT), ends_first=SERVER),
    Exchange("a server's opcode that there isn't", b"", down(b"x", FIN | 0x3), ends_first=SERVER),
]  # fmt: skip
