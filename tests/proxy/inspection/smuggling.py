"""Request smuggling corpus: requests as raw bytes that two programs may read differently, one case per row.

Notation: the end of a line is CR LF, `␊` a bare LF, `\\r` a bare CR, `HOST` the name and port of the
origin. Each row is followed by another request, for `/next`, which the rules deny. So it shows whether the gate
finds the end of the message as RFC 9112 has it, and that nothing behind it passes undecided.

Sources: sections of RFC 9110 and 9112, and by their names the classes of public research on request smuggling: Linhart et
al. 2005 (CL.CL), Kettle 2019 (CL.TE, TE.CL, TE.TE), 2021 (HTTP/2), 2022 (CL.0, client-side) and 2025 (0.CL, Expect),
Klein 2020 (odd lengths), Jacobs and others on TE.0 (2024), Weikop 2025 (chunk extensions and terminators), and CVEs.
"""

from typing import NamedTuple


class Refused(NamedTuple):
    """Answered with a page of the gate; nothing is sent to the origin."""

    reason: str = "ambiguous_request"
    status: int = 400


class Forwarded(NamedTuple):
    """Arrives at the origin exactly like this; the next request is decided by itself."""

    arrives: str


class Broken(NamedTuple):
    """The head is allowed and sent; the body is cut here with a reset, and no more is sent."""

    arrives: str


class Unfinished(NamedTuple):
    """The client ends within the body: at most this is sent, followed by a reset."""

    arrives: str


class Case(NamedTuple):
    name: str
    source: str
    sent: str
    outcome: Refused | Forwarded | Broken | Unfinished


NEXT = "GET /next HTTP/1.1\nHost: HOST\nConnection: close\n\n"
SMUGGLED = "GET /smuggled HTTP/1.1\nHost: good.example\n\n"

MISMATCH = Refused("name_mismatch", 403)
NOT_SPOKEN = Refused("protocol_mismatch", 403)
NOT_A_NAME = Refused("invalid_name", 403)


def raw(text, host):
    """Return the bytes of a row in the notation above."""
    return text.replace("HOST", host).replace("\n", "\r\n").replace("␊", "\n").encode("latin-1")


SIZE = len(raw(SMUGGLED, ""))


def rows(source, outcome, template, rows):
    return [Case(name, source, template.replace("%", text, 1), outcome) for name, text in rows]


# --- where a message's end can be found in two ways ---

_POST = "POST / HTTP/1.1\nHost: HOST\n%\n\n"
_CHUNKS = _POST + "5\nhello\n0\n\n"
_HELLO = _POST + "hello"

TWO_ENDS = [
    Case("CL.TE", "Kettle 2019; RFC 9112 6.3", f"POST / HTTP/1.1\nHost: HOST\nContent-Length: {SIZE + 5}\nTransfer-Encoding: chunked\n\n0\n\n{SMUGGLED}", Refused()),
    Case("TE.CL", "Kettle 2019; RFC 9112 6.3", f"POST / HTTP/1.1\nHost: HOST\nTransfer-Encoding: chunked\nContent-Length: 4\n\n{SIZE:x}\n{SMUGGLED}\n0\n\n", Refused()),
    Case("CL: 0 with TE", "Kettle 2019", "POST / HTTP/1.1\nHost: HOST\nContent-Length: 0\nTransfer-Encoding: chunked\n\n0\n\n", Refused()),
    Case("CL.CL", "Linhart 2005; RFC 9112 6.3", "POST / HTTP/1.1\nHost: HOST\nContent-Length: 5\nContent-Length: 6\n\nhello!", Refused()),
    Case("CL.CL, equal", "RFC 9112 6.3", "POST / HTTP/1.1\nHost: HOST\nContent-Length: 5\nContent-Length: 5\n\nhello", Refused()),
    Case("CL.CL, in two cases", "Linhart 2005", "POST / HTTP/1.1\nHost: HOST\ncontent-length: 0\nCONTENT-LENGTH: 5\n\nhello", Refused()),
    *rows("Kettle 2019, TE.TE; RFC 9112 6.1", Refused(), _CHUNKS, [
        ("TE with a vertical tab before", "Transfer-Encoding:\x0bchunked"),
        ("TE with a vertical tab behind", "Transfer-Encoding: chunked\x0b"),
        ("TE with a form feed", "Transfer-Encoding:\x0cchunked"),
        ("TE with a NUL behind", "Transfer-Encoding: chunked\0"),
        ("TE with a bare CR before", "Transfer-Encoding: \rchunked"),
        ("TE with a bare CR behind", "Transfer-Encoding: chunked\r"),
        ("TE with a no-break space", "Transfer-Encoding:\xa0chunked"),
        ("TE with byte 0x85", "Transfer-Encoding: chunked\x85"),
        ("TE xchunked", "Transfer-Encoding: xchunked"),
        ("TE chunkedx", "Transfer-Encoding: chunkedx"),
        ("TE chunk", "Transfer-Encoding: chunk"),
        ("TE cow", "Transfer-Encoding: cow"),
        ("TE with a letter above ASCII", "Transfer-Encoding: ch\xfcnked"),
        ("TE with a long s", "Transfer-Encoding: chun\xe2\x84\xaaed"),
        ("TE empty", "Transfer-Encoding:"),
        ("TE identity", "Transfer-Encoding: identity"),
        ("TE gzip", "Transfer-Encoding: gzip"),
        ("TE gzip, chunked", "Transfer-Encoding: gzip, chunked"),
        ("TE chunked, gzip", "Transfer-Encoding: chunked, gzip"),
        ("TE chunked, identity", "Transfer-Encoding: chunked, identity"),
        ("TE identity, chunked", "Transfer-Encoding: identity, chunked"),
        ("TE chunked, chunked", "Transfer-Encoding: chunked, chunked"),
        ("TE with a comma behind", "Transfer-Encoding: chunked,"),
        ("TE with a comma before", "Transfer-Encoding: ,chunked"),
        ("TE in double quotes", 'Transfer-Encoding: "chunked"'),
        ("TE in single quotes", "Transfer-Encoding: 'chunked'"),
        ("TE with a parameter", "Transfer-Encoding: chunked;x=1"),
        ("TE with a semicolon", "Transfer-Encoding: chunked;"),
        ("TE with a colon", "Transfer-Encoding: : chunked"),
        ("TE in brackets", "Transfer-Encoding: [chunked]"),
        ("TE with a backslash", "Transfer-Encoding: chunk\\ed"),
        ("TE percent-encoded", "Transfer-Encoding: %63hunked"),
        ("TE with a space in it", "Transfer-Encoding: chu nked"),
        ("TE with an equals sign", "Transfer-Encoding=chunked"),
        ("two TEs, equal", "Transfer-Encoding: chunked\nTransfer-Encoding: chunked"),
        ("two TEs, the second odd", "Transfer-Encoding: chunked\nTransfer-Encoding: x"),
        ("two TEs, the first odd", "Transfer-Encoding: x\nTransfer-Encoding: chunked"),
        ("two TEs, in two cases", "transfer-encoding: chunked\nTRANSFER-ENCODING: identity"),
        ("two TEs, chunked last", "Transfer-Encoding: gzip\nTransfer-Encoding: chunked"),
    ]),
    *rows("Kettle 2019, TE.TE; RFC 9112 5.1, 5.2", Refused(), _POST + "0\n\n", [
        ("TE before a space", "Transfer-Encoding : chunked"),
        ("TE before a tab", "Transfer-Encoding\t: chunked"),
        ("TE before a vertical tab", "Transfer-Encoding\x0b: chunked"),
        ("TE before a NUL", "Transfer-Encoding\0: chunked"),
        ("TE before a bare CR", "Transfer-Encoding\r: chunked"),
        ("TE behind a space", " Transfer-Encoding: chunked"),
        ("TE behind a tab", "\tTransfer-Encoding: chunked"),
        ("TE behind a bare LF", "X: x␊Transfer-Encoding: chunked"),
        ("TE behind a bare CR", "X: x\rTransfer-Encoding: chunked"),
        ("TE behind LF CR", "X: x␊\rTransfer-Encoding: chunked"),
        ("TE behind CR CR LF", "X: x\r\nTransfer-Encoding: chunked"),
        ("TE behind a NUL", "X: x\0Transfer-Encoding: chunked"),
        ("TE folded", "Transfer-Encoding:\n chunked"),
        ("TE folded with a tab", "Transfer-Encoding:\n\tchunked"),
        ("TE with a fold behind", "Transfer-Encoding: chunked\n , identity"),
        ("TE in a fold", "X: x\n Transfer-Encoding: chunked"),
        ("TE split by a line", "Transfer-Encoding\n: chunked"),
        ("TE with an underscore", "Transfer_Encoding: chunked"),
        ("TE with two underscores and CL", "TRANSFER_ENCODING: chunked\nContent-Length: 5"),
        ("TE with a dot", "Transfer.Encoding: chunked"),
        ("TE with another sign", "Transfer!Encoding: chunked"),
        ("TE with a space in its name", "Transfer Encoding: chunked"),
        ("TE dropped on the way", "Transfer-Encoding: chunked\nConnection: Transfer-Encoding"),
        ("TE dropped on the way, in a list", "Transfer-Encoding: chunked\nConnection: close, transfer-encoding"),
    ]),
    Case("TE in HTTP/1.0", "RFC 9112 6.1", "POST / HTTP/1.0\nHost: HOST\nTransfer-Encoding: chunked\nConnection: keep-alive\n\n0\n\n", Refused()),
    Case("TE.0", "2024; RFC 9112 6.3", f"OPTIONS / HTTP/1.1\nHost: HOST\nTransfer-Encoding: chunked\n\n{SIZE:x}\n{SMUGGLED}\n0\n\n", Forwarded(f"OPTIONS / HTTP/1.1\nHost: HOST\nTransfer-Encoding: chunked\nConnection: close\n\n{SIZE:x}\n{SMUGGLED}\n0\n\n")),
    *rows("Klein 2020, Kettle 2025, 0.CL and CL.0; RFC 9110 8.6", Refused(), _HELLO, [
        ("CL with a plus", "Content-Length: +5"),
        ("CL with a minus", "Content-Length: -5"),
        ("CL minus nought", "Content-Length: -0"),
        ("CL in hex", "Content-Length: 0x5"),
        ("CL with leading zeros", "Content-Length: 005"),
        ("CL of two noughts", "Content-Length: 00"),
        ("CL as in octal", "Content-Length: 0o5"),
        ("CL list", "Content-Length: 5, 5"),
        ("CL list of two", "Content-Length: 5, 6"),
        ("CL with a comma behind", "Content-Length: 5,"),
        ("CL with a space in it", "Content-Length: 5 5"),
        ("CL with letters behind", "Content-Length: 5abc"),
        ("CL with letters before", "Content-Length: abc5"),
        ("CL with a point", "Content-Length: 5.0"),
        ("CL with an exponent", "Content-Length: 5e0"),
        ("CL with an underscore in it", "Content-Length: 1_0"),
        ("CL in quotes", 'Content-Length: "5"'),
        ("CL with a semicolon", "Content-Length: 5;"),
        ("CL beyond 64 bits", "Content-Length: 18446744073709551621"),
        ("CL of forty digits", "Content-Length: " + "9" * 40),
        ("CL with a vertical tab", "Content-Length:\x0b5"),
        ("CL with a NUL", "Content-Length: 5\0"),
        ("CL with a superscript", "Content-Length: \xb2"),
        ("CL in Arabic digits", "Content-Length: \xd9\xa5"),
        ("CL empty", "Content-Length:"),
        ("CL before a space", "Content-Length : 5"),
        ("CL before a tab", "Content-Length\t: 5"),
        ("CL behind a space", " Content-Length: 5"),
        ("CL folded", "Content-Length:\n 5"),
        ("CL behind a bare LF", "X: x␊Content-Length: 5"),
        ("CL behind a bare CR", "X: x\rContent-Length: 5"),
        ("CL with an underscore", "Content_Length: 5"),
        ("CL with a dot", "Content.Length: 5"),
        ("CL with a bare CR behind", "Content-Length: 5\r"),
        ("CL dropped on the way", "Content-Length: 5\nConnection: content-length"),
    ]),
]  # fmt: skip


# --- what can be read as one line or as two, or as another request altogether ---

NO_HTTP = Refused("protocol_mismatch", 403)  # nothing in its first line says HTTP
_FIELD = "GET / HTTP/1.1\nHost: HOST\n%\n\n"

LINES = [
    *rows("RFC 9112 2.2, 5, 5.2", Refused(), _FIELD, [
        ("no colon", "x"),
        ("no name", ": x"),
        ("a name that is no token", "X(y): x"),
        ("a name above ASCII", "X\xe9: x"),
        ("a name with a NUL", "X\0: x"),
        ("a fold", "X: y\n z"),
        ("a fold with nothing in it", "X: y\n "),
        ("a bare CR in a value", "X: a\rHost: evil.example"),
        ("a bare LF in a value", "X: a␊Host: evil.example"),
        ("a NUL in a value", "X: a\0b"),
        ("DEL in a value", "X: a\x7fb"),
        ("an escape in a value", "X: \x1b[2J"),
        ("CR CR LF at the end of a line", "X: a\r"),
    ]),
    Case("only bare LF", "RFC 9112 2.2", "GET / HTTP/1.1␊Host: HOST␊␊", Refused()),
    Case("a bare LF ends the head", "RFC 9112 2.2", "GET / HTTP/1.1\nHost: HOST\n␊", Refused()),
    Case("a bare LF behind the request line", "RFC 9112 2.2", "GET / HTTP/1.1␊Host: HOST\n\n", Refused()),
    Case("a head that ends with LF LF", "RFC 9112 2.2", "GET / HTTP/1.1\nHost: HOST␊␊", Refused()),
    Case("a fold at the start", "RFC 9112 2.2", "GET / HTTP/1.1\n X: y\nHost: HOST\n\n", Refused()),
    Case("a line of spaces at the start", "RFC 9112 2.2", "GET / HTTP/1.1\n  \nHost: HOST\n\n", Refused()),
    Case("spaces alone before the request", "RFC 9112 2.2", "  \nGET / HTTP/1.1\nHost: HOST\n\n", NO_HTTP),
    *rows("RFC 9112 3, 2.3", NO_HTTP, "%\nHost: HOST\n\n", [
        ("HTTP/0.9", "GET /"),
        ("another protocol's version", "GET / RTSP/1.0"),
    ]),
    *rows("RFC 9112 3, 2.3", Refused(), "%\nHost: HOST\n\n", [
        ("two spaces before the target", "GET  / HTTP/1.1"),
        ("two spaces behind the target", "GET /  HTTP/1.1"),
        ("a space before the method", " GET / HTTP/1.1"),
        ("a space behind the version", "GET / HTTP/1.1 "),
        ("tabs in the request line", "GET\t/\tHTTP/1.1"),
        ("a vertical tab in the request line", "GET\x0b/ HTTP/1.1"),
        ("a space in the target", "GET /a b HTTP/1.1"),
        ("a second version in the target", "GET / HTTP/1.1 HTTP/1.1"),
        ("a control byte in the target", "GET /a\x0bb HTTP/1.1"),
        ("a NUL in the target", "GET /a\0b HTTP/1.1"),
        ("a bare CR in the target", "GET /\rHost:evil.example HTTP/1.1"),
        ("a fragment", "GET /a#b HTTP/1.1"),
        ("asterisk form and a query", "OPTIONS *?x HTTP/1.1"),
        ("two asterisks", "OPTIONS ** HTTP/1.1"),
        ("asterisk form with POST", "POST * HTTP/1.1"),
        ("asterisk form with another method", "GET * HTTP/1.1"),
        ("no path", "GET good.example HTTP/1.1"),
        ("a backslash for a path", "GET \\ HTTP/1.1"),
        ("a query alone", "GET ?x HTTP/1.1"),
        ("a method with a space", "GE T / HTTP/1.1"),
        ("a method that is no token", "G(E)T / HTTP/1.1"),
        ("a method with a NUL", "GET\0 / HTTP/1.1"),
        ("a method above ASCII", "G\xc9T / HTTP/1.1"),
        ("a method in lower case", "get / HTTP/1.1"),
        ("a method in two cases", "Post / HTTP/1.1"),
        ("no method", "/ HTTP/1.1"),
        ("HTTP/0.9 by name", "GET / HTTP/0.9"),
        ("HTTP/1.10", "GET / HTTP/1.10"),
        ("HTTP/1.2", "GET / HTTP/1.2"),
        ("HTTP/1", "GET / HTTP/1"),
        ("HTTP/01.1", "GET / HTTP/01.1"),
        ("HTTP/2.0", "GET / HTTP/2.0"),
        ("HTTP/3", "GET / HTTP/3"),
        ("a version with a space", "GET / HTTP /1.1"),
        ("a version in lower case", "GET / http/1.1"),
        ("a response for a request", "HTTP/1.1 200 OK"),
    ]),
    Case("a head of 130 KB", "limits", "GET / HTTP/1.1\nHost: HOST\nX: " + "x" * 133_000 + "\n\n", Refused()),
    Case("HTTP/2 by prior knowledge, without what follows", "RFC 9113 3.4", "PRI * HTTP/2.0\n\nXX\n\n", Refused()),
    *rows("RFC 9110 9.3.6", NOT_SPOKEN, "%\nHost: HOST\n\n", [
        ("CONNECT", "CONNECT evil.example:443 HTTP/1.1"),
        ("CONNECT in lower case", "connect evil.example:443 HTTP/1.1"),
        ("CONNECT to where we are", "CONNECT HOST HTTP/1.1"),
        ("CONNECT of a path", "CONNECT / HTTP/1.1"),
    ]),
    Case("an empty line before", "RFC 9112 2.2", "\nGET / HTTP/1.1\nHost: HOST\n\n", Forwarded("GET / HTTP/1.1\nHost: HOST\n\n")),
    Case("asterisk form", "RFC 9112 3.2.4", "OPTIONS * HTTP/1.1\nHost: HOST\n\n", Forwarded("OPTIONS * HTTP/1.1\nHost: HOST\n\n")),
    Case("asterisk form for a proxy", "RFC 9112 3.2.4", "OPTIONS http://HOST HTTP/1.1\nHost: HOST\n\n", Forwarded("OPTIONS * HTTP/1.1\nHost: HOST\n\n")),
    Case("spaces around values", "RFC 9112 5.1", "GET / HTTP/1.1\nHost: \t HOST \nX:\t a \t\nY:\n\n", Forwarded("GET / HTTP/1.1\nHost: HOST\nX: a\nY: \n\n")),
    Case("bytes above ASCII in the target", "RFC 3986", "GET /\xc3\xa9?\xff HTTP/1.1\nHost: HOST\n\n", Forwarded("GET /%C3%A9?%FF HTTP/1.1\nHost: HOST\n\n")),
]  # fmt: skip


# --- the host of a request ---

HOSTS = [
    Case("no Host", "RFC 9112 3.2", "GET / HTTP/1.1\n\n", Refused()),
    Case("no Host in HTTP/1.0", "RFC 9112 3.2", "GET / HTTP/1.0\n\n", Refused()),
    *rows("RFC 9112 3.2", Refused(), "GET / HTTP/1.1\n%\n\n", [
        ("two Hosts", "Host: HOST\nHost: HOST"),
        ("two Hosts, the second another", "Host: HOST\nHost: evil.example"),
        ("two Hosts, the first another", "Host: evil.example\nHost: HOST"),
        ("two Hosts of another case", "Host: HOST\nhost: evil.example"),
        ("a Host before a space", "Host : HOST"),
        ("a second Host before a space", "Host: HOST\nHost : evil.example"),
        ("a second Host behind a space", "Host: HOST\n Host: evil.example"),
        ("a folded Host", "Host:\n HOST"),
        ("a Host with a fold behind", "Host: HOST\n evil.example"),
        ("a list in Host", "Host: HOST, evil.example"),
        ("two names in Host", "Host: HOST evil.example"),
        ("an empty Host", "Host:"),
        ("a user in Host", "Host: user@HOST"),
        ("a Host as a user", "Host: HOST@evil.example"),
        ("a path in Host", "Host: HOST/x"),
        ("a query in Host", "Host: HOST?x"),
        ("a fragment in Host", "Host: HOST#.evil.example"),
        ("a scheme in Host", "Host: http://HOST"),
        ("a backslash in Host", "Host: HOST\\.evil.example"),
        ("percent in Host", "Host: good%2eexample"),
        ("a tab in Host", "Host: good\t.example"),
        ("a bare CR in Host", "Host: HOST\rX: y"),
        ("a NUL in Host", "Host: evil.example\0.good.example"),
        ("two ports", "Host: HOST:444"),
        ("port 0", "Host: good.example:0"),
        ("a port too high", "Host: good.example:65979"),
        ("a port with a sign", "Host: good.example:+80"),
        ("a port of nothing", "Host: good.example:"),
        ("a port of six digits", "Host: good.example:000080"),
        ("a zone id", "Host: [fe80::1%25lo]"),
        ("half a bracket", "Host: [::1"),
        ("a Host that is dropped on the way", "Host: HOST\nConnection: close, Host"),
    ]),
    *rows("RFC 9110 4.2.1", NOT_A_NAME, "GET / HTTP/1.1\nHost: %\n\n", [
        ("an empty label in Host", "good..example"),
        ("a dot before Host", ".good.example"),
        ("a hyphen at the end of a label", "good-.example"),
    ]),
    *rows("RFC 9112 3.2.2", Refused(), "%\nHost: HOST\n\n", [
        ("absolute form unlike Host", "GET http://evil.example/ HTTP/1.1"),
        ("absolute form with another port", "GET http://good.example:444/ HTTP/1.1"),
        ("absolute form with another scheme", "GET https://HOST/ HTTP/1.1"),
        ("absolute form of another protocol", "GET ftp://HOST/ HTTP/1.1"),
        ("absolute form with a user", "GET http://HOST@evil.example/ HTTP/1.1"),
        ("absolute form with our name as a user", "GET http://user@HOST/ HTTP/1.1"),
        ("absolute form without a host", "GET http:///x HTTP/1.1"),
        ("absolute form without a path", "GET http://HOST?x HTTP/1.1"),
        ("absolute form with a fragment", "GET http://HOST/#@evil.example/ HTTP/1.1"),
        ("absolute form with one slash", "GET http:/HOST/ HTTP/1.1"),
        ("absolute form with backslashes", "GET http:\\\\HOST\\ HTTP/1.1"),
        ("authority form", "GET HOST HTTP/1.1"),
    ]),
    Case("absolute form of another, Host the same", "RFC 9112 3.2.2", "GET http://evil.example/ HTTP/1.1\nHost: evil.example\n\n", MISMATCH),
    Case("another Host", "RFC 9110 7.2", "GET / HTTP/1.1\nHost: evil.example\n\n", MISMATCH),
    Case("absolute form", "RFC 9112 3.2.2", "GET http://HOST/a HTTP/1.1\nHost: HOST\n\n", Forwarded("GET /a HTTP/1.1\nHost: HOST\n\n")),
    Case("absolute form of nothing", "RFC 9112 3.2.1", "GET HTTP://HOST HTTP/1.1\nHost: HOST\n\n", Forwarded("GET / HTTP/1.1\nHost: HOST\n\n")),
    Case("another host in a path", "RFC 9112 3.2.1", "GET //evil.example/ HTTP/1.1\nHost: HOST\n\n", Forwarded("GET //evil.example/ HTTP/1.1\nHost: HOST\n\n")),
    Case("another host behind a path", "RFC 9112 3.2.1", "GET /http://evil.example/ HTTP/1.1\nHost: HOST\n\n", Forwarded("GET /http://evil.example/ HTTP/1.1\nHost: HOST\n\n")),
]  # fmt: skip


# --- bodies, what is sent behind them, and what a request asks for beyond its answer ---

_CHUNKED = "POST / HTTP/1.1\nHost: HOST\nTransfer-Encoding: chunked\n\n"
_AS_SENT = _CHUNKED + "5\nhello\n0\n\n"
_WITH_CL = "Host: HOST\nContent-Length: 5\n"

CHUNKS = [
    *rows("Weikop 2025; RFC 9112 7.1", Broken(_CHUNKED), _CHUNKED + "%", [
        ("a chunk's size with letters", "zz\nhello\n0\n\n"),
        ("a chunk's size with a minus", "-5\nhello\n0\n\n"),
        ("a chunk's size with a plus", "+5\nhello\n0\n\n"),
        ("a chunk's size with 0x", "0x5\nhello\n0\n\n"),
        ("a chunk's size with a space before", " 5\nhello\n0\n\n"),
        ("a chunk's size with a space in it", "5 5\nhello\n0\n\n"),
        ("a chunk's size with an underscore", "0_5\nhello\n0\n\n"),
        ("a chunk's size with a NUL", "5\0\nhello\n0\n\n"),
        ("a chunk's size of forty digits", "0" * 39 + "5\nhello\n0\n\n"),
        ("a chunk's size beyond 64 bits", "10000000000000005\nhello\n0\n\n"),
        ("no chunk's size", "\nhello\n0\n\n"),
        ("no size but an extension", ";x=1\nhello\n0\n\n"),
        ("a bare LF behind a size", "5␊hello\n0\n\n"),
        ("a bare CR behind a size", "5\rhello\n0\n\n"),
        ("CR CR LF behind a size", "5\r\nhello\n0\n\n"),
        ("a bare LF in an extension, TERM.EXT", f"5;␊x\nhello\n0\n\n{SMUGGLED}"),
        ("a bare CR in an extension, EXT.TERM", f"5;\rx\nhello\n0\n\n{SMUGGLED}"),
        ("a NUL in an extension", "5;\0x\nhello\n0\n\n"),
        ("CR CR LF behind an extension", "5;x\r\nhello\n0\n\n"),
        ("a bare LF behind an extension", "5;x␊hello\n0\n\n"),
        ("an extension of 100 KB", "5;" + "x" * 100_000 + "\nhello\n0\n\n"),
    ]),
    *rows("Weikop 2025; CVE-2025-43859, CVE-2025-22871; RFC 9112 7.1", Broken(_CHUNKED + "5\nhello\n"), _CHUNKED + "5\nhello%", [
        ("a bare LF behind a chunk", "␊0\n\n"),
        ("a bare CR behind a chunk", "\r0\n\n"),
        ("LF CR behind a chunk", "␊\r0\n\n"),
        ("CR CR LF behind a chunk", "\r\n0\n\n"),
        ("nothing behind a chunk", "0\n\n"),
        ("two other bytes behind a chunk, TERM.SPILL", "xx0\n\n"),
        ("one other byte behind a chunk, SPILL.TERM", "x\n0\n\n"),
        ("a chunk longer than it says", " and more\n0\n\n"),
        ("a last chunk with a minus", "\n-0\n\n"),
        ("a last chunk with a bare LF", "\n0␊\n"),
        ("a last chunk and a bare LF", "\n0\n␊"),
    ]),
    *rows("RFC 9112 7.1.2, 5.2", Broken(_CHUNKED + "5\nhello\n"), _CHUNKED + "5\nhello\n0\n%\n\n", [
        ("a trailer without a colon", "x"),
        ("a trailer without a name", ": x"),
        ("a trailer before a space", "X : y"),
        ("a folded trailer", "X: y\n z"),
        ("a trailer behind a space", " X: y"),
        ("a bare CR in a trailer", "X: y\rZ: z"),
        ("a bare LF in a trailer", "X: y␊Z: z"),
        ("a NUL in a trailer", "X: y\0"),
        ("a request for a trailer", "GET /smuggled HTTP/1.1"),
    ]),
    *rows("RFC 9112 7.1", Forwarded(_AS_SENT), _CHUNKED + "%", [
        ("chunks", "5\nhello\n0\n\n"),
        ("leading zeros in a chunk's size", "0005\nhello\n0\n\n"),
        ("leading zeros in the last chunk's size", "5\nhello\n0000\n\n"),
        ("an extension", "5;x=1\nhello\n0\n\n"),
        ("an extension in quotes", '5;x="a b"\nhello\n0\n\n'),
        ("an extension that looks like a chunk", "5;0\nhello\n0\n\n"),
        ("an extension of the last chunk", "5\nhello\n0;x=1\n\n"),
    ]),
    Case("a chunk's size in upper case", "RFC 9112 7.1", _CHUNKED + "A\nhellohello\n0\n\n", Forwarded(_CHUNKED + "a\nhellohello\n0\n\n")),
    Case("a request in a chunk", "Kettle 2019", f"{_CHUNKED}{SIZE:x}\n{SMUGGLED}\n0\n\n", Forwarded(f"{_CHUNKED}{SIZE:x}\n{SMUGGLED}\n0\n\n")),
    *rows("RFC 9110 6.5.1", Forwarded(_CHUNKED + "5\nhello\n0\n\n"), _CHUNKED + "5\nhello\n0\n%: 5\n\n", [
        ("Content-Length as a trailer", "Content-Length"),
        ("Transfer-Encoding as a trailer", "Transfer-Encoding"),
        ("Host as a trailer", "host"),
        ("Connection as a trailer", "Connection"),
        ("Upgrade as a trailer", "Upgrade"),
        ("Authorization as a trailer", "Authorization"),
        ("Cookie as a trailer", "cookie"),
        ("Content-Type as a trailer", "Content-Type"),
        ("a method as a trailer", "X-HTTP-Method-Override"),
        ("Content_Length as a trailer", "Content_Length"),
        ("Content.Length as a trailer", "Content.Length"),
        ("Expect as a trailer", "Expect"),
    ]),
    Case("a trailer", "RFC 9112 7.1.2", _CHUNKED + "5\nhello\n0\nX-Sum:  7 \n\n", Forwarded(_CHUNKED + "5\nhello\n0\nX-Sum: 7\n\n")),
    *rows("RFC 9112 7", Forwarded(_AS_SENT), "POST / HTTP/1.1\nHost: HOST\nTransfer-Encoding:%\n\n5\nhello\n0\n\n", [
        ("TE in another case", " cHuNkEd"),
        ("TE with a tab for a space", "\tchunked"),
        ("TE without a space", "chunked"),
        ("TE between spaces", "  chunked\t "),
    ]),
    Case("a body that breaks off", "RFC 9112 8", _CHUNKED + "50\nhello", Unfinished(_CHUNKED + "5\nhello\n")),
]  # fmt: skip


ASKS = [
    *(
        Case(f"{method} with a body, CL.0", "Kettle 2022; RFC 9110 9.3", f"{method} / HTTP/1.1\n{_WITH_CL}\nhello", Forwarded(f"{method} / HTTP/1.1\n{_WITH_CL}Connection: close\n\nhello"))
        for method in ("GET", "HEAD", "DELETE", "OPTIONS", "TRACE")
    ),
    Case("a GET with a body that would go on, CL.0", "Kettle 2022", f"GET / HTTP/1.1\n{_WITH_CL}Connection: keep-alive\nKeep-Alive: timeout=5\n\nhello", Forwarded(f"GET / HTTP/1.1\n{_WITH_CL}Connection: close\n\nhello")),
    Case("an unknown method with a body", "RFC 9110 9.1", f"CATS / HTTP/1.1\n{_WITH_CL}\nhello", Forwarded(f"CATS / HTTP/1.1\n{_WITH_CL}\nhello")),
    Case("a request in a body, CL.0", "Kettle 2022", f"GET / HTTP/1.1\nHost: HOST\nContent-Length: {SIZE}\n\n{SMUGGLED}", Forwarded(f"GET / HTTP/1.1\nHost: HOST\nContent-Length: {SIZE}\nConnection: close\n\n{SMUGGLED}")),
    Case("a body shorter than it says, 0.CL", "Kettle 2025", "POST / HTTP/1.1\nHost: HOST\nContent-Length: 500\n\nhello", Unfinished("POST / HTTP/1.1\nHost: HOST\nContent-Length: 500\n\nhello")),
    *rows("Kettle 2025, Expect; RFC 9110 10.1.1", Refused(), "POST / HTTP/1.1\n" + _WITH_CL + "%\n\nhello", [
        ("Expect with a word before", "Expect: y 100-continue"),
        ("Expect of another thing", "Expect: 200-ok"),
        ("Expect twice in one", "Expect: 100-continue, 100-continue"),
        ("Expect twice", "Expect: 100-continue\nExpect: 100-continue"),
        ("Expect with a parameter", "Expect: 100-continue;x=1"),
        ("Expect with a comma", "Expect: 100-continue,"),
        ("Expect empty", "Expect:"),
        ("Expect in quotes", 'Expect: "100-continue"'),
        ("Expect folded", "Expect:\n 100-continue"),
        ("Expect before a space", "Expect : 100-continue"),
        ("Expect with a vertical tab", "Expect:\x0b100-continue"),
    ]),
    *rows("RFC 9110 10.1.1", Forwarded("POST / HTTP/1.1\n" + _WITH_CL + "\nhello"), "POST / HTTP/1.1\n" + _WITH_CL + "%\n\nhello", [
        ("Expect", "Expect: 100-continue"),
        ("Expect in another case", "EXPECT: 100-Continue"),
    ]),
    Case("Expect without a body", "Kettle 2025", "GET / HTTP/1.1\nHost: HOST\nExpect: 100-continue\n\n", Forwarded("GET / HTTP/1.1\nHost: HOST\n\n")),
    *rows("h2c smuggling, 2020; RFC 9110 7.8", Forwarded("GET / HTTP/1.1\nHost: HOST\n\n"), "GET / HTTP/1.1\nHost: HOST\n%\n\n", [
        ("h2c", "Connection: Upgrade, HTTP2-Settings\nUpgrade: h2c\nHTTP2-Settings: AAMAAABkAAQAAP__"),
        ("h2c without its settings", "Connection: Upgrade\nUpgrade: h2c"),
        ("h2c that Connection doesn't name", "Upgrade: h2c"),
        ("h2c in another case", "Connection: uPGRADE\nUpgrade: H2C"),
        ("two upgrades", "Connection: Upgrade\nUpgrade: h2c\nUpgrade: foo/2"),
        ("TLS", "Connection: Upgrade\nUpgrade: TLS/1.0"),
    ]),
    *rows("WebSocket smuggling, 2019; RFC 6455 4.1", Refused("protocol_mismatch", 403), "GET / HTTP/1.1\nHost: HOST\nConnection: Upgrade\n%\n\n", [
        ("WebSocket without a key", "Upgrade: websocket\nSec-WebSocket-Version: 13"),
        ("WebSocket of a wrong version", "Upgrade: websocket\nSec-WebSocket-Version: 777\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="),
        ("WebSocket or h2c", "Upgrade: websocket, h2c\nSec-WebSocket-Version: 13\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="),
        ("WebSocket with something behind", "Upgrade: websocketx\nSec-WebSocket-Version: 13\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="),
        ("WebSocket with a body", "Upgrade: websocket\nSec-WebSocket-Version: 13\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\nContent-Length: 5"),
    ]),
    *rows("2015 and since; docs/reference/rules.md", Refused(), "POST / HTTP/1.1\nHost: HOST\n%\n\n", [
        ("another method in a header", "X-HTTP-Method-Override: DELETE"),
        ("another method in a header with underscores", "X_HTTP_Method_Override: DELETE"),
        ("another method in a header with dots", "X.HTTP.Method.Override: DELETE"),
        ("another method in a header with other signs", "X-HTTP~Method'Override: DELETE"),
        ("the same method in a header", "X-Method-Override: POST"),
        ("another method in a header that is dropped on the way", "X-HTTP-Method: DELETE\nConnection: X-HTTP-Method"),
    ]),
    Case("an empty body and a request behind it", "RFC 9112 6.3", "POST / HTTP/1.1\nHost: HOST\nContent-Length: 0\n\n", Forwarded("POST / HTTP/1.1\nHost: HOST\nContent-Length: 0\n\n")),
    Case("a POST that says no length", "RFC 9112 6.3", "POST / HTTP/1.1\nHost: HOST\n\n", Forwarded("POST / HTTP/1.1\nHost: HOST\n\n")),
    Case("a body and CR LF behind it", "RFC 9112 2.2", "POST / HTTP/1.1\n" + _WITH_CL + "\nhello\n", Forwarded("POST / HTTP/1.1\n" + _WITH_CL + "\nhello")),
    Case("a body in HTTP/1.0", "RFC 9112 9.3", "POST / HTTP/1.0\nHost: HOST\nConnection: keep-alive\nContent-Length: 5\n\nhello", Forwarded("POST / HTTP/1.0\nHost: HOST\nConnection: keep-alive\nContent-Length: 5\n\nhello")),
    Case("a packed body, as it is", "RFC 9110 8.4", "POST / HTTP/1.1\n" + _WITH_CL + "Content-Encoding: gzip\n\n\x1f\x8b\x08\0\xff", Forwarded("POST / HTTP/1.1\n" + _WITH_CL + "Content-Encoding: gzip\n\n\x1f\x8b\x08\0\xff")),
]  # fmt: skip
