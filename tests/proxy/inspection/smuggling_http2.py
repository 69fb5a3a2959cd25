"""Corpus of HTTP/2 requests that the gate translates to HTTP/1 (Kettle 2021; RFC 9113 section 8).

A row has fields that replace or extend the head of `POST /`, body frames, trailers, and what may arrive at an
HTTP/1 origin, in the notation of `smuggling`. `None` removes a pseudo-header.
"""

from typing import NamedTuple

from tests.proxy.inspection.smuggling import SIZE, SMUGGLED, Forwarded, Refused, raw


class AtMost(NamedTuple):
    """Allowed by its head; at most this is sent."""

    arrives: str


class Case(NamedTuple):
    name: str
    source: str
    pseudo: dict
    fields: tuple = ()
    body: bytes = b""
    trailers: tuple = ()
    outcome: Refused | Forwarded | AtMost = Refused()


_INNER = raw(SMUGGLED, "")
_POST = "POST / HTTP/1.1\nHost: HOST\n"
_CHUNKED = _POST + "transfer-encoding: chunked\n\n"
_BREAK = "a\r\nTransfer-Encoding: chunked\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: good.example\r\n\r\n"


def _rows(source, rows, outcome=Refused()):  # noqa: B008
    return [Case(name, source, pseudo, tuple(fields), outcome=outcome) for name, pseudo, *fields in rows]


CASES = [
    Case("H2.CL, nought", "Kettle 2021; RFC 9113 8.1.1", {}, (("content-length", "0"),), _INNER, outcome=AtMost(_POST + "content-length: 0\n\n")),
    Case("H2.CL, too short", "Kettle 2021; RFC 9113 8.1.1", {}, (("content-length", "5"),), b"hello" + _INNER, outcome=AtMost(_POST + "content-length: 5\n\nhello")),
    Case("H2.CL, too long", "Kettle 2021; RFC 9113 8.1.1", {}, (("content-length", "500"),), b"hello", outcome=AtMost(_POST + "content-length: 500\n\nhello")),
    Case("H2.CL, too short, with a trailer", "RFC 9113 8.1.1", {}, (("content-length", "500"),), b"hello", (("x-sum", "7"),), AtMost(_POST + "content-length: 500\n\nhello")),
    Case("H2.CL, right", "RFC 9113 8.1.1", {}, (("content-length", str(SIZE)),), _INNER, outcome=Forwarded(f"{_POST}content-length: {SIZE}\n\n{SMUGGLED}")),
    Case("H2.0, a body without a length", "Kettle 2021", {}, (), _INNER, outcome=Forwarded(f"{_CHUNKED}{SIZE:x}\n{SMUGGLED}\n0\n\n")),
    Case("a GET with a body without a length", "Kettle 2022", {":method": "GET"}, (), b"hello", outcome=Forwarded("GET / HTTP/1.1\nHost: HOST\nConnection: close\ntransfer-encoding: chunked\n\n5\nhello\n0\n\n")),
    *_rows("RFC 9110 8.6; Kettle 2021", [
        ("two lengths", {}, ("content-length", "5"), ("content-length", "6")),
        ("two equal lengths", {}, ("content-length", "5"), ("content-length", "5")),
        ("a list of lengths", {}, ("content-length", "5, 5")),
        ("a length with a plus", {}, ("content-length", "+5")),
        ("a length with leading zeros", {}, ("content-length", "005")),
        ("a length in hex", {}, ("content-length", "0x5")),
        ("a length with an underscore in it", {}, ("content-length", "1_0")),
        ("an empty length", {}, ("content-length", "")),
        ("a length with an underscore in its name", {}, ("content_length", "5")),
    ]),
    *_rows("H2.TE, Kettle 2021; RFC 9113 8.2.2", [
        ("H2.TE", {}, ("transfer-encoding", "chunked")),
        ("H2.TE with an underscore", {}, ("transfer_encoding", "chunked")),
        ("H2.TE in upper case", {}, ("Transfer-Encoding", "chunked")),
        ("H2.TE with a space behind", {}, ("transfer-encoding ", "chunked")),
        ("H2.TE identity", {}, ("transfer-encoding", "identity")),
        ("H2.TE behind a break in a name", {}, ("x: y\r\ntransfer-encoding", "chunked")),
        ("H2.TE behind a colon in a name", {}, ("transfer-encoding: chunked\r\nx", "y")),
        ("connection", {}, ("connection", "transfer-encoding")),
        ("keep-alive", {}, ("keep-alive", "5")),
        ("proxy-connection", {}, ("proxy-connection", "keep-alive")),
        ("upgrade", {}, ("upgrade", "h2c")),
        ("te", {}, ("te", "chunked")),
    ]),
    *_rows("Kettle 2021; RFC 9113 8.2.1", [
        ("CR LF in a value", {}, ("x", _BREAK)),
        ("LF in a value", {}, ("x", "a\nTransfer-Encoding: chunked")),
        ("CR in a value", {}, ("x", "a\rTransfer-Encoding: chunked")),
        ("NUL in a value", {}, ("x", "a\0b")),
        ("DEL in a value", {}, ("x", "a\x7f")),
        ("a colon in a name", {}, ("host:evil.example", "x")),
        ("a space in a name", {}, ("x y", "a")),
        ("upper case in a name", {}, ("X", "a")),
        ("an empty name", {}, ("", "a")),
        ("a name that is no token", {}, ("x(y)", "a")),
        ("a name above ASCII", {}, ("x\xe9", "a")),
        ("another method in a header", {}, ("x-http-method-override", "DELETE")),
        ("another method in a header with dots", {}, ("x.http.method.override", "DELETE")),
        ("an odd expectation", {}, ("expect", "y 100-continue")),
    ]),
    *_rows("RFC 9110 5.5; RFC 9113 8.2.1", [
        ("a space before a value", {}, ("x", " a")),
        ("a tab behind a value", {}, ("x", "a\t")),
        ("blanks around a value", {}, ("x", " \t a \t ")),
    ], Forwarded(_POST + "x: a\n\n")),
    Case("a value of blanks", "RFC 9110 5.5", {}, (("x", " \t "),), outcome=Forwarded(_POST + "x: \n\n")),
    Case("a blank before a length", "RFC 9110 5.5", {}, (("content-length", " 5 "),), b"hello", outcome=Forwarded(_POST + "content-length: 5\n\nhello")),
    *_rows("RFC 9113 8.2.1, 8.2.2", [
        ("a blank around TE", {}, ("transfer-encoding", " chunked ")),
        ("a blank in a name", {}, ("x ", "a")),
        ("a line break at the end of a value", {}, ("x", "a\r\n")),
        ("a blank behind the path", {":path": "/ "}),
        ("a blank before the method", {":method": " POST"}),
        ("a blank behind the authority", {":authority": "HOST "}),
    ]),
    *_rows("Kettle 2021; RFC 9113 8.3.1", [
        ("a break in the path", {":path": "/ HTTP/1.1\r\nHost: evil.example\r\n\r\nGET /smuggled"}),
        ("a space in the path", {":path": "/ HTTP/1.1"}),
        ("a tab in the path", {":path": "/\tx"}),
        ("a NUL in the path", {":path": "/\0"}),
        ("a fragment in the path", {":path": "/a#b"}),
        ("an empty path", {":path": ""}),
        ("no path", {":path": None}),
        ("a path without a slash", {":path": "x"}),
        ("an asterisk for a path", {":path": "*"}),
        ("absolute form for a path", {":path": "https://evil.example/"}),
        ("a break in the method", {":method": "GET / HTTP/1.1\r\nX: y\r\n\r\nPOST"}),
        ("a space in the method", {":method": "GET /smuggled"}),
        ("a method in lower case", {":method": "post"}),
        ("an empty method", {":method": ""}),
        ("no method", {":method": None}),
        ("a break in the scheme", {":scheme": "https\r\nX: y"}),
        ("a URL for a scheme", {":scheme": "https://evil.example/?"}),
        ("http for a scheme", {":scheme": "http"}),
        ("no scheme", {":scheme": None}),
        ("a break in the authority", {":authority": "HOST\r\nX: y"}),
        ("a space in the authority", {":authority": "HOST evil.example"}),
        ("a user in the authority", {":authority": "evil@HOST"}),
        ("our name as a user in the authority", {":authority": "HOST@evil.example"}),
        ("a path in the authority", {":authority": "HOST/x"}),
        ("a list in the authority", {":authority": "HOST,evil.example"}),
        ("no authority and no host", {":authority": None}),
        ("an authority unlike the host", {}, ("host", "evil.example")),
        ("two hosts", {":authority": None}, ("host", "HOST"), ("host", "HOST")),
        ("a pseudo-header twice", {}, (":path", "/smuggled")),
        ("a pseudo-header behind a header", {":scheme": None}, ("x", "y"), (":scheme", "https")),
        ("an unknown pseudo-header", {":odd": "x"}),
        ("a status in a request", {":status": "200"}),
        ("a pseudo-header of a name alone", {":": "x"}),
    ]),
    *_rows("RFC 8441 4; RFC 9113 8.5", [
        ("CONNECT", {":method": "CONNECT"}),
        ("CONNECT as it is written", {":method": "CONNECT", ":scheme": None, ":path": None}),
        ("WebSocket by CONNECT", {":method": "CONNECT", ":protocol": "websocket"}),
        ("a protocol without CONNECT", {":protocol": "websocket"}),
    ]),
    Case("another authority", "RFC 9110 15.5.20", {":authority": "evil.example"}, outcome=Refused("name_mismatch", 421)),
    Case("cookies in crumbs", "RFC 9113 8.2.3", {":method": "GET"}, (("cookie", "a=1"), ("cookie", "b=2")), outcome=Forwarded("GET / HTTP/1.1\nHost: HOST\ncookie: a=1; b=2\n\n")),
    Case("a trailer", "RFC 9113 8.1", {}, (), b"hello", (("x-sum", "7"),), Forwarded(_CHUNKED + "5\nhello\n0\nx-sum: 7\n\n")),
    *(
        Case(f"{name} as a trailer", "RFC 9110 6.5.1", {}, (), b"hello", ((name, "5"),), Forwarded(_CHUNKED + "5\nhello\n0\n\n"))
        for name in ("content-length", "content_length", "host", "authorization", "x(y)")
    ),
    *(
        Case(f"{name!r} in a trailer", "Kettle 2021; RFC 9113 8.2.1", {}, (), b"hello", ((name, value),), AtMost(_CHUNKED + "5\nhello\n"))
        for name, value in (("x", _BREAK), ("x: y\r\nz", "z"), (":path", "/smuggled"), ("transfer-encoding", "chunked"), ("X", "y"))
    ),
]  # fmt: skip
