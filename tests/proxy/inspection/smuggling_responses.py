"""Corpus of HTTP/1 responses of hostile or broken servers, and what the client receives of each.

In the notation of `smuggling`. The client requests `/` and then `/next` on the same connection, which is answered with
`next`. So it shows whether gate and client find the same end. Sources: RFC 9110 and 9112; response splitting (Klein 2004),
response queue poisoning (Kettle 2021), floods of informational responses.
"""

from typing import NamedTuple


class Passed(NamedTuple):
    """The client receives this, then the next response."""

    gets: str


class PassedAndEnded(NamedTuple):
    """The client receives this, and the end of the connection ends the body."""

    gets: str


class Failed(NamedTuple):
    """The client receives a 502 page of the gate, and nothing of the response."""


class Cut(NamedTuple):
    """The client receives at most this, then a reset."""

    gets: str


class Case(NamedTuple):
    name: str
    source: str
    answer: str
    outcome: Passed | PassedAndEnded | Failed | Cut
    method: str = "GET"


_OK = "HTTP/1.1 200 OK\n"
_PAGE = _OK + "Content-Length: 4\n\n"
_CHUNKED = _OK + "Transfer-Encoding: chunked\n\n"
_LEAVE = "HTTP/1.1 100 Continue\n\n"
_HINTS = "HTTP/1.1 102 Processing\n\nHTTP/1.1 103 Early Hints\nLink: </x>\n\n"
_OTHER = "HTTP/1.1 200 OK\nContent-Length: 5\n\nother"


def _rows(source, outcome, template, rows):
    return [Case(name, source, template.replace("%", text, 1), outcome) for name, text in rows]


CASES = [
    Case("a body with a length", "RFC 9112 6.3", _PAGE + "page", Passed(_PAGE + "page")),
    Case("a body in chunks", "RFC 9112 7.1", _CHUNKED + "4\npage\n0\n\n", Passed(_CHUNKED + "4\npage\n0\n\n")),
    Case("a body until the end", "RFC 9112 6.3", _OK + "\npage", PassedAndEnded(_OK + "\npage")),
    Case("a body until the end, HTTP/1.0", "RFC 9112 6.3", "HTTP/1.0 200 OK\n\npage", PassedAndEnded("HTTP/1.0 200 OK\n\npage")),
    Case("no reason", "RFC 9112 4", "HTTP/1.1 200\nContent-Length: 4\n\npage", Passed("HTTP/1.1 200 \nContent-Length: 4\n\npage")),
    Case("lines with bare LF", "RFC 9112 2.2", "HTTP/1.1 200 OK␊Content-Length: 4␊␊page", Passed(_PAGE + "page")),
    # what the gate normalizes, so that the client has one reading
    *_rows("RFC 9112 6.3, 5.1, 5.2", Passed(_CHUNKED + "4\npage\n0\n\n"), _OK + "%\n\n4\npage\n0\n\n", [
        ("CL and TE", "Content-Length: 4\nTransfer-Encoding: chunked"),
        ("TE and CL", "Transfer-Encoding: chunked\nContent-Length: 4"),
        ("two CLs and TE", "Content-Length: 4\nContent-Length: 4\nTransfer-Encoding: chunked"),
        ("TE before a space", "Transfer-Encoding : chunked"),
        ("TE before a space, and CL", "Transfer-Encoding : chunked\nContent-Length: 4"),
        ("TE folded", "Transfer-Encoding:\n chunked"),
    ]),
    *_rows("RFC 9112 6.3, 5.1, 5.2; RFC 9110 8.6", Passed(_PAGE + "page"), _OK + "%\n\npage", [
        ("two CLs, equal", "Content-Length: 4\nContent-Length: 4"),
        ("two CLs, equal but for a zero", "Content-Length: 04\nContent-Length: 4"),
        ("three CLs, equal, in two cases", "Content-Length: 4\nCONTENT-LENGTH: 4\ncontent-length: 4"),
        ("CL list", "Content-Length: 4, 4"),
        ("CL list without blanks", "Content-Length: 4,4"),
        ("CL with leading zeros", "Content-Length: 004"),
        ("CL with many leading zeros", "Content-Length: " + "0" * 100 + "4"),
        ("CL before a space", "Content-Length : 4"),
        ("CL before a tab", "Content-Length\t: 4"),
        ("CL folded", "Content-Length:\n 4"),
    ]),
    Case("a field before a space", "RFC 9112 5.1", _OK + "Content-Length: 4\nX : y\n\npage", Passed(_PAGE[:-1] + "X: y\n\npage")),
    Case("a fold", "RFC 9112 5.2", _OK + "Content-Length: 4\nX: y\n  z\n\tz\n\npage", Passed(_PAGE[:-1] + "X: y z z\n\npage")),
    *_rows("RFC 9112 2.2, 7.1", Passed(_CHUNKED + "4\npage\n0\n\n"), _CHUNKED + "%", [
        ("a bare LF behind a chunk's size", "4␊page\n0\n\n"),
        ("a bare LF behind a chunk", "4\npage␊0\n\n"),
        ("a bare LF behind the last chunk's size", "4\npage\n0␊\n"),
        ("a bare LF at the end", "4\npage\n0\n␊"),
        ("bare LF alone", "4␊page␊0␊␊"),
    ]),
    Case("204 in chunks", "RFC 9112 6.3", "HTTP/1.1 204 No Content\nTransfer-Encoding: chunked\n\n0\n\n", Passed("HTTP/1.1 204 No Content\n\n")),
    *_rows("RFC 9112 6.3", Failed(), _OK + "%\n\n4\npage\n0\n\n", [
        ("two CLs", "Content-Length: 4\nContent-Length: 5"),
        ("two TEs", "Transfer-Encoding: chunked\nTransfer-Encoding: chunked"),
        ("two CLs and TE, unlike", "Content-Length: 4\nContent-Length: 5\nTransfer-Encoding: chunked"),
        ("CL list of two", "Content-Length: 4, 5"),
        ("CL with a comma behind", "Content-Length: 4,"),
        ("CL with a fold in it", "Content-Length: 4\n 4"),
        ("CL of twenty digits", "Content-Length: 18446744073709551620"),
        ("CL with a plus", "Content-Length: +4"),
        ("CL with a minus", "Content-Length: -4"),
        ("CL in hex", "Content-Length: 0x4"),
        ("CL with letters", "Content-Length: 4x"),
        ("CL with a vertical tab", "Content-Length: 4\x0b"),
        ("TE xchunked", "Transfer-Encoding: xchunked"),
        ("TE chunked, identity", "Transfer-Encoding: chunked, identity"),
        ("TE chunked, chunked", "Transfer-Encoding: chunked, chunked"),
        ("TE with a vertical tab", "Transfer-Encoding:\x0bchunked"),
        ("TE behind a bare CR", "X: x\rTransfer-Encoding: chunked"),
        ("a space before a name", " X: y"),
        ("a name that is no token", "X(y): x"),
        ("no colon", "x"),
        ("no name", ": x"),
        ("a bare CR in a value", "X: a\rSet-Cookie: b"),
        ("a NUL in a value", "X: a\0b"),
    ]),
    *_rows("RFC 9112 4", Failed(), "%\nContent-Length: 4\n\npage", [
        ("two spaces in the status line", "HTTP/1.1  200 OK"),
        ("a status of four digits", "HTTP/1.1 2000 OK"),
        ("a status of two digits", "HTTP/1.1 20 OK"),
        ("a status with a sign", "HTTP/1.1 +20 OK"),
        ("no status", "HTTP/1.1 OK"),
        ("HTTP/2 in the clear", "HTTP/2 200 OK"),
        ("HTTP/1.10", "HTTP/1.10 200 OK"),
        ("another protocol", "ICY 200 OK"),
        ("a reason with a bare CR", "HTTP/1.1 200 O\rK"),
        ("a reason with a NUL", "HTTP/1.1 200 O\0K"),
        ("a space before it", " HTTP/1.1 200 OK"),
    ]),
    Case("TE in HTTP/1.0", "RFC 9112 6.1", "HTTP/1.0 200 OK\nTransfer-Encoding: chunked\n\n4\npage\n0\n\n", Failed()),
    Case("a request for a response", "RFC 9112 4", "GET / HTTP/1.1\nHost: x\n\n", Failed()),
    Case("nothing", "RFC 9112 8", "", Failed()),
    Case("half a head", "RFC 9112 8", _OK + "X: y\n", Failed()),
    Case("a head of 200 KB", "limits", _OK + "X: " + "a" * 200_000 + "\n\n", Failed()),
    *_rows("RFC 9112 7.1", Cut(_CHUNKED + "4\npage\n"), _CHUNKED + "%", [
        ("a chunk's size with letters", "zz\npage\n0\n\n"),
        ("a chunk's size with a minus", "-4\npage\n0\n\n"),
        ("a chunk's size beyond 64 bits", "10000000000000004\npage\n0\n\n"),
        ("a bare LF in an extension", "4;␊x\npage\n0\n\n"),
        ("a bare LF behind an extension", "4;x␊page\n0\n\n"),
        ("LF CR behind a chunk", "4\npage␊\r0\n\n"),
        ("a fold for a trailer", "4\npage\n0\n X: z\n\n"),
        ("a chunk longer than it says", "4\npages\n0\n\n"),
        ("chunks that break off", "4\npage\n"),
        ("a chunk that breaks off", "40\npage"),
        ("a last chunk that breaks off", "4\npage\n0\n"),
        ("a bare CR in a trailer", "4\npage\n0\nX: y\rSet-Cookie: z\n\n"),
    ]),
    Case("a body that breaks off", "RFC 9112 8", _OK + "Content-Length: 40\n\npage", Cut(_OK + "Content-Length: 40\n\npage")),
    Case("a trailer", "RFC 9110 6.5", _CHUNKED + "4\npage\n0\nX-Sum: 7\n\n", Passed(_CHUNKED + "4\npage\n0\nX-Sum: 7\n\n")),
    *_rows("RFC 9110 6.5.1", Passed(_CHUNKED + "4\npage\n0\n\n"), _CHUNKED + "4\npage\n0\n%: 4\n\n", [
        ("Content-Length as a trailer", "Content-Length"),
        ("Transfer-Encoding as a trailer", "Transfer-Encoding"),
        ("Connection as a trailer", "Connection"),
    ]),
    # responses without a body
    Case("204", "RFC 9112 6.3", "HTTP/1.1 204 No Content\n\n", Passed("HTTP/1.1 204 No Content\n\n")),
    Case("204 with a length", "RFC 9110 8.6", "HTTP/1.1 204 No Content\nContent-Length: 0\n\n", Passed("HTTP/1.1 204 No Content\n\n")),
    Case("204 with a body", "RFC 9112 6.3", "HTTP/1.1 204 No Content\nContent-Length: 42\n\n" + _OTHER, Passed("HTTP/1.1 204 No Content\n\n")),
    Case("304 with a length", "RFC 9110 8.6", "HTTP/1.1 304 Not Modified\nContent-Length: 40\n\n", Passed("HTTP/1.1 304 Not Modified\nContent-Length: 40\n\n")),
    Case("304 that would be in chunks", "RFC 9112 6.1", "HTTP/1.1 304 Not Modified\nTransfer-Encoding: chunked\n\n", Passed("HTTP/1.1 304 Not Modified\nTransfer-Encoding: chunked\n\n")),
    Case("304 with a response for a body", "Kettle 2021", "HTTP/1.1 304 Not Modified\nContent-Length: 42\n\n" + _OTHER, Passed("HTTP/1.1 304 Not Modified\nContent-Length: 42\n\n")),
    Case("HEAD", "RFC 9112 6.3", _OK + "Content-Length: 40\n\n", Passed(_OK + "Content-Length: 40\n\n"), "HEAD"),
    Case("HEAD that would be in chunks", "RFC 9112 6.3", _CHUNKED, Passed(_CHUNKED), "HEAD"),
    Case("HEAD with a response for a body", "Kettle 2021", _OK + "Content-Length: 42\n\n" + _OTHER, Passed(_OK + "Content-Length: 42\n\n"), "HEAD"),
    # informational responses, and bytes behind a response
    Case("102 and 103 before", "RFC 9110 15.2", _HINTS + _PAGE + "page", Passed(_HINTS + _PAGE + "page")),
    Case("a 100 with a length", "RFC 9110 8.6", "HTTP/1.1 100 Continue\nContent-Length: 4\n\n" + _PAGE + "page", Passed(_LEAVE + _PAGE + "page")),
    Case("a 103 in chunks", "RFC 9112 6.1", "HTTP/1.1 103 Early Hints\nTransfer-Encoding: chunked\nLink: </x>\n\n" + _PAGE + "page", Passed("HTTP/1.1 103 Early Hints\nLink: </x>\n\n" + _PAGE + "page")),
    Case("a 103 with a bare CR in a value", "RFC 9110 5.5", "HTTP/1.1 103 Early Hints\nLink: a\rSet-Cookie: b\n\n" + _PAGE + "page", Failed()),
    Case("unsolicited 100", "RFC 9110 15.2.1", _LEAVE * 100 + _PAGE + "page", Passed(_LEAVE * 100 + _PAGE + "page")),
    Case("a status below 100", "RFC 9110 15", "HTTP/1.1 042 What\n\n" + _PAGE + "page", Failed()),
    Case("no end of 100s", "limits", "HTTP/1.1 100 Continue\n\n" * 101 + _PAGE + "page", Failed()),
    Case("no end of empty lines", "limits", "\n" * 500 + _PAGE + "page", Failed()),
    Case("unsolicited 101", "RFC 9110 15.2.2", "HTTP/1.1 101 Switching Protocols\nConnection: Upgrade\nUpgrade: x\n\n" + _OTHER, Failed()),
    Case("a second response behind it", "Klein 2004", _PAGE + "page" + _OTHER, Passed(_PAGE + "page")),
    Case("a second response behind chunks", "Klein 2004", _CHUNKED + "4\npage\n0\n\n" + _OTHER, Passed(_CHUNKED + "4\npage\n0\n\n")),
]  # fmt: skip
