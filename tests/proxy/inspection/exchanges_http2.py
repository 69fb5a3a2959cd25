"""Table of HTTP/2 exchanges as fields and bodies, run through the gate and without it.

Each difference has its line in `docs/reference/clients.md`, "What the gate changes".
"""

from typing import NamedTuple

type Fields = tuple[tuple[str, str], ...]
REFUSED = "refused"  # with a page of the gate


class Exchange(NamedTuple):
    name: str
    fields: Fields = ()  # of the request, after its pseudo-headers
    body: bytes = b""
    trailers: Fields = ()
    method: str = "GET"
    path: str = "/"
    informational: tuple[Fields, ...] = ()
    answer: Fields = ((":status", "200"),)
    content: bytes = b"page"
    behind: Fields = ()  # trailers of the answer
    reset: int | None = None  # error code of a reset that ends the answer
    gets: Fields | str | None = None  # head of the answer through the gate, if different
    arrives: Fields | None = None  # fields of the request through the gate, if different
    ends: int | None = None  # error code through the gate, if different
    why: str = ""  # the line of the docs that explains the difference


def ok(*fields, status="200"):
    return ((":status", status), *fields)


EXCHANGES = [
    *(Exchange(f"the method {method}", method=method) for method in ("GET", "DELETE", "OPTIONS", "PROPFIND", "CATS")),
    *(Exchange(f"{method} with a body", method=method, body=b"hello") for method in ("POST", "PUT", "PATCH", "QUERY")),
    Exchange("HEAD", method="HEAD", answer=ok(("content-length", "40")), content=b""),
    Exchange("OPTIONS of the server", method="OPTIONS", path="*"),
    Exchange("a body with its length", (("content-length", "5"),), b"hello", method="POST"),
    Exchange("a body of 200 KB", body=b"x" * 200_000, method="POST"),
    Exchange("a body with a trailer", body=b"hello", trailers=(("x-sum", "7"),), method="POST"),
    *(Exchange(f"the path {path}", path=path) for path in ("/a/b%20c", "/a%2fb", "//a//b/", "/a;b=c", "/?q=a%26b&c=d", "/?", "/a?b?c", "/" + "a" * 4000)),
    Exchange("one field several times, in its order", (("x", "1"), ("y", "2"), ("x", "3"))),
    Exchange("an empty value", (("x", ""),)),
    Exchange("bytes above ASCII in a value", (("x", "caf\xe9"),)),
    Exchange("a hundred fields", tuple((f"x-{n}", str(n)) for n in range(100))),
    Exchange("cookies in crumbs", (("cookie", "a=1"), ("cookie", "b=2"))),
    Exchange("te: trailers", (("te", "trailers"),)),
    Exchange("a priority", (("priority", "u=1, i"),)),
    Exchange("gRPC", (("content-type", "application/grpc"), ("te", "trailers")), b"\0\0\0\0\0", method="POST", answer=ok(("content-type", "application/grpc")), behind=(("grpc-status", "0"), ("grpc-message", ""))),
    Exchange("gRPC that fails at once", (("content-type", "application/grpc"), ("te", "trailers")), b"\0\0\0\0\0", method="POST", answer=ok(("content-type", "application/grpc"), ("grpc-status", "12")), content=b""),
    *(Exchange(f"status {status}", answer=ok(status=status)) for status in ("201", "206", "301", "400", "401", "404", "429", "500", "503", "599")),
    Exchange("no content", answer=ok(status="204"), content=b""),
    Exchange("not modified", answer=ok(("etag", '"a"'), status="304"), content=b""),
    Exchange("an answer with its length", answer=ok(("content-length", "4"))),
    Exchange("an answer of nothing", content=b""),
    Exchange("an answer of 300 KB", content=b"x" * 300_000),
    Exchange("an answer with trailers", behind=(("x-sum", "7"), ("server-timing", "a;dur=1"))),
    Exchange("cookies of the server's, in their order", answer=ok(("set-cookie", "a=1"), ("x", "y"), ("set-cookie", "b=2"))),
    Exchange("bytes above ASCII in an answer", answer=ok(("x", "caf\xe9"))),
    Exchange("a value of 4 KB in an answer", answer=ok(("x", "y" * 4000))),
    Exchange("an early hint", informational=(ok(("link", "</x>"), status="103"),)),
    Exchange("two early hints", informational=(ok(("link", "</x>"), status="103"), ok(("link", "</y>"), status="103"))),
    Exchange("unsolicited 100-continue", informational=(ok(status="100"),), method="POST", body=b"hello"),
    Exchange("a stream that is reset before its answer", answer=(), reset=2, gets=((":status", "502"),), why="no answer"),
    *(Exchange(f"an answer that is reset with {code}", reset=code, ends=None if code == 2 else 2, why="" if code == 2 else "cuts") for code in (2, 11)),
    Exchange("an answer that is cancelled", reset=8),
    Exchange("not modified, with the length that it would have", answer=ok(("content-length", "40"), status="304"), content=b""),
    Exchange("an early hint with a length", informational=(ok(("content-length", "0"), status="103"),), gets=ok(), why="one length"),
    # equal lengths become one, and none where there is no body
    Exchange("no content, with a length", answer=ok(("content-length", "0"), status="204"), content=b"", gets=ok(status="204"), why="one length"),
    Exchange("one length twice", answer=ok(("content-length", "4"), ("content-length", "4")), gets=ok(("content-length", "4")), why="one length"),
    Exchange("a length with zeros before it", answer=ok(("content-length", "004")), gets=ok(("content-length", "4")), why="one length"),
    # whitespace around values is stripped, on both sides
    Exchange("blanks around a value", (("x", " \ty "),), arrives=(("x", "y"),), why="blanks"),
    Exchange("blanks around a value in an answer", answer=ok(("x", " \ty ")), gets=ok(("x", "y")), why="blanks"),
    Exchange("100-continue that is requested", (("expect", "100-continue"),), b"hello", method="POST", arrives=(), why="leave to send"),
    # a malformed message ends only its own stream
    Exchange("a field of the connection", (("connection", "close"),), gets=REFUSED, why="refused requests"),
    Exchange("upper case in a name", (("X", "y"),), gets=REFUSED, why="refused requests"),
    Exchange("a line break in a value", (("x", "a\r\nb: c"),), gets=REFUSED, why="refused requests"),
    Exchange("te: gzip", (("te", "gzip"),), gets=REFUSED, why="refused requests"),
    Exchange("another Host", (("host", "other.example"),), gets=REFUSED, why="refused requests"),
    Exchange("a path without a slash", path="a", gets=REFUSED, why="refused requests"),
    Exchange("a length that is none", (("content-length", "x"),), gets=REFUSED, why="refused requests"),
    Exchange("an answer with a field of the connection", answer=ok(("connection", "close")), gets=((":status", "502"),), why="unreadable answers"),
    Exchange("an answer with upper case in a name", answer=ok(("X", "y")), gets=((":status", "502"),), why="unreadable answers"),
    Exchange("an answer with a line break in a value", answer=ok(("x", "a\r\nb: c")), gets=((":status", "502"),), why="unreadable answers"),
    Exchange("an answer that is shorter than it says", answer=ok(("content-length", "400")), ends=2, why="cuts"),
]  # fmt: skip
