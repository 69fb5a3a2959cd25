"""Table of HTTP/1.1 exchanges as raw bytes, run through the gate and without it.

In the notation of `smuggling`; also `PORT`, the port of the origin, and `SCHEME`, http or https. Without the gate
the client receives `answer` and the server `request`, byte for byte. With it they receive the same, or what `gets` and
`arrives` have, and then `why` names the reason: a line of `docs/reference/clients.md`, "What the gate changes".
"""

from typing import NamedTuple

END, RESET, CUT = "end", "reset", "cut"  # how a connection ends: CUT is TLS without its close_notify


class Page(NamedTuple):
    """A page that the gate generates."""

    status: int


class Exchange(NamedTuple):
    name: str
    request: str
    answer: str
    gets: str | Page | None = None  # what the client receives through the gate, if different
    arrives: str | None = None  # what the server receives through the gate, if different
    why: str = ""  # the line of the docs that explains the difference
    server: str = ""  # how the server ends after its answer; empty: it waits for another request
    ends: str = END  # how the connection of the client ends through the gate
    half: bool = False  # the client half-closes after the request


GET = "GET / HTTP/1.1\nHost: HOST\n\n"
HEAD = "HEAD / HTTP/1.1\nHost: HOST\n\n"
OK = "HTTP/1.1 200 OK\nContent-Length: 4\n\npage"
CHUNKED = "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n4\npage\n0\n\n"
POST = "POST / HTTP/1.1\nHost: HOST\n"
FORM = POST + "Content-Length: 5\n\nhello"
CHUNKS = POST + "Transfer-Encoding: chunked\n\n5\nhello\n0\n\n"
EARLY = "HTTP/1.1 200 OK\nContent-Length: 40\n\npage"


def _get(*lines):
    return "GET / HTTP/1.1\nHost: HOST\n" + "".join(f"{line}\n" for line in lines) + "\n"


def _path(path):
    return f"GET {path} HTTP/1.1\nHost: HOST\n\n"


def _ok(*lines, status="200 OK"):
    return f"HTTP/1.1 {status}\n" + "".join(f"{line}\n" for line in lines) + "Content-Length: 4\n\npage"


REQUESTS = [
    *(Exchange(f"the method {method}", f"{method} / HTTP/1.1\nHost: HOST\n\n", OK) for method in ("GET", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "CATS")),
    *(Exchange(f"{method} with a body", f"{method} / HTTP/1.1\nHost: HOST\nContent-Length: 5\n\nhello", OK) for method in ("POST", "PUT", "PATCH", "QUERY", "CATS")),
    *(
        Exchange(f"{method} with a body", f"{method} / HTTP/1.1\nHost: HOST\nContent-Length: 5\n\nhello", OK, arrives=f"{method} / HTTP/1.1\nHost: HOST\nContent-Length: 5\nConnection: close\n\nhello", why="body where none is expected")
        for method in ("GET", "DELETE", "OPTIONS")
    ),
    Exchange("OPTIONS of the server", "OPTIONS * HTTP/1.1\nHost: HOST\n\n", OK),
    Exchange("POST without a length", POST + "\n", OK),
    Exchange("POST of nothing", POST + "Content-Length: 0\n\n", OK),
    Exchange("POST of 100 KB", POST + "Content-Length: 100000\n\n" + "x" * 100_000, OK),
    Exchange("POST of binary data", POST + "Content-Length: 256\n\n" + "".join(chr(b) for b in range(256) if b not in (10, 0x4E)) + "\n", OK),
    Exchange("POST in chunks", CHUNKS, OK),
    Exchange("POST in chunks, with a trailer", CHUNKS[:-1] + "X-Sum: 7\n\n", OK),
    Exchange("POST in chunks, sizes written otherwise", POST + "Transfer-Encoding: chunked\n\n000A\nhellohello\n00\n\n", OK, arrives=POST + "Transfer-Encoding: chunked\n\na\nhellohello\n0\n\n", why="chunks"),
    Exchange("POST in chunks, with an extension", POST + 'Transfer-Encoding: chunked\n\n5;x="y"\nhello\n0\n\n', OK, arrives=CHUNKS, why="chunks"),
    Exchange("POST in chunks, in another case", POST + "Transfer-Encoding: Chunked\n\n5\nhello\n0\n\n", OK, arrives=CHUNKS, why="one spelling"),
    Exchange("HTTP/1.0", "GET / HTTP/1.0\nHost: HOST\n\n", "HTTP/1.0 200 OK\nContent-Length: 4\n\npage", server=END),
    Exchange("HTTP/1.0 that keeps its connection", "GET / HTTP/1.0\nHost: HOST\nConnection: keep-alive\n\n", "HTTP/1.0 200 OK\nConnection: keep-alive\nContent-Length: 4\n\npage"),
    Exchange("HTTP/1.0 that keeps its connection, in another case", "GET / HTTP/1.0\nHost: HOST\nConnection: Keep-Alive\n\n", "HTTP/1.0 200 OK\nConnection: Keep-Alive\nContent-Length: 4\n\npage"),
    *(Exchange(f"the last request of a connection, {option}", _get(f"Connection: {option}"), OK, server=END) for option in ("close", "Close", "close, TE")),
    Exchange("a request with an empty line before it", "\n" + GET, OK, arrives=GET, why="empty lines"),
    Exchange("a request in absolute form", "GET SCHEME://HOST/a?b HTTP/1.1\nHost: HOST\n\n", OK, arrives=_path("/a?b"), why="absolute form"),
    Exchange("a half-closed request", GET, OK, server=END, half=True),
    Exchange("a half-closed upload", FORM, OK, server=END, half=True),
    Exchange("a half-closed request, answered until the end", GET, "HTTP/1.1 200 OK\n\npage", server=END, half=True),
    *(Exchange(f"the path {path}", _path(path), OK) for path in ("/a/b%20c", "/a%2fb", "//a//b/", "/a;b=c/d", "/a:b@c!$&'()*+,=", "/?q=a%26b&c=%F0%9F%98%80", "/?", "/a?b?c", "/~a/%7Eb", "/" + "a" * 4000)),
    Exchange("bytes above ASCII in the path", _path("/\xc3\xa9"), OK, arrives=_path("/%C3%A9"), why="one spelling"),
    Exchange("a Host in upper case", "GET / HTTP/1.1\nHost: GOOD.EXAMPLE:PORT\n\n", OK),
    Exchange("a Host with a dot at its end", "GET / HTTP/1.1\nHost: good.example.:PORT\n\n", OK),
    Exchange("Host as the last field", "GET / HTTP/1.1\nX: y\nHost: HOST\n\n", OK),
    Exchange("blanks around a value", _get("X:\t y \t"), OK, arrives=_get("X: y"), why="blanks"),
    Exchange("no blank before a value", _get("X:y"), OK, arrives=_get("X: y"), why="blanks"),
    Exchange("an empty value", _get("X: "), OK),
    Exchange("bytes above ASCII in a value", _get("X: caf\xc3\xa9 \xff"), OK),
    Exchange("one field several times, in its order", _get("X: 1", "Y: 2", "x: 3", "X: 1"), OK),
    Exchange("names in any case", _get("uSER-aGENT: a", "ACCEPT: */*"), OK),
    Exchange("a hundred fields", _get(*(f"X-{n}: {n}" for n in range(100))), OK),
    Exchange("a value of 8 KB", _get("X: " + "y" * 8192), OK),
    Exchange("what a browser sends", _get("User-Agent: Mozilla/5.0 (X11; Linux)", "Accept: text/html,*/*;q=0.8", "Accept-Encoding: gzip, deflate, br, zstd", "Cookie: a=1; b=2", "Sec-Fetch-Mode: navigate", "Upgrade-Insecure-Requests: 1", "Priority: u=0, i"), OK),
    Exchange("conditions and ranges", _get("Range: bytes=0-3, 6-", 'If-None-Match: W/"a", "b"', "If-Modified-Since: Sat, 29 Oct 1994 19:43:31 GMT"), OK),
    Exchange("a credential", _get("Authorization: Basic dXNlcjpwYXNz", "Cookie: a=b"), OK),
    Exchange("what proxies add", _get("Via: 1.1 a", "X-Forwarded-For: 192.0.2.1", "Forwarded: for=192.0.2.1", "Max-Forwards: 3"), OK),
    Exchange("fields of the connection", _get("Connection: keep-alive, TE", "Keep-Alive: timeout=5", "TE: trailers"), OK),
    Exchange("100-continue that is requested", POST + "Content-Length: 5\nExpect: 100-continue\n\nhello", OK, gets="HTTP/1.1 100 Continue\n\n" + OK, arrives=FORM, why="leave to send"),
    Exchange("an upgrade to HTTP/2", _get("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"), OK, arrives=GET, why="upgrades"),
    # refused because it can be read in two ways
    Exchange("a blank before a colon", _get("X : y"), OK, gets=Page(400), arrives="", why="refused requests"),
    Exchange("a folded line", _get("X: y", " z"), OK, gets=Page(400), arrives="", why="refused requests"),
    Exchange("lines with bare LF", "GET / HTTP/1.1␊Host: HOST␊␊", OK, gets=Page(400), arrives="", why="refused requests"),
    Exchange("a length and chunks", POST + "Content-Length: 5\nTransfer-Encoding: chunked\n\n5\nhello\n0\n\n", OK, gets=Page(400), arrives="", why="refused requests"),
    Exchange("one length twice", POST + "Content-Length: 5\nContent-Length: 5\n\nhello", OK, gets=Page(400), arrives="", why="refused requests"),
    Exchange("a length with zeros before it", POST + "Content-Length: 005\n\nhello", OK, gets=Page(400), arrives="", why="refused requests"),
    Exchange("no Host", "GET / HTTP/1.0\n\n", OK, gets=Page(400), arrives="", why="refused requests"),
    Exchange("a method in lower case", "get / HTTP/1.1\nHost: HOST\n\n", OK, gets=Page(400), arrives="", why="refused requests"),
    Exchange("a name that is no token", _get("X(y): z"), OK, gets=Page(400), arrives="", why="refused requests"),
    Exchange("a control character in a value", _get("X: a\x01b"), OK, gets=Page(400), arrives="", why="refused requests"),
    Exchange("an expectation that there isn't", _get("Expect: 200-ok"), OK, gets=Page(400), arrives="", why="refused requests"),
    Exchange("a coding that is none", POST + "Transfer-Encoding: identity\nContent-Length: 5\n\nhello", OK, gets=Page(400), arrives="", why="refused requests"),
    Exchange("a fragment", _path("/a#b"), OK, gets=Page(400), arrives="", why="refused requests"),
]  # fmt: skip

_HINT = "HTTP/1.1 103 Early Hints\nLink: </x>; rel=preload\n\n"
_LEAVE = "HTTP/1.1 100 Continue\n\n"

ANSWERS = [
    *(Exchange(f"status {status}", GET, _ok(status=status)) for status in ("200 OK", "201 Created", "206 Partial Content", "301 Moved Permanently", "400 Bad Request", "401 Unauthorized", "404 Not Found", "407 Proxy Authentication Required", "418 I'm a teapot", "429 Too Many Requests", "500 Internal Server Error", "503 Service Unavailable", "299 Odd", "599 Odd", "999 Odd")),
    Exchange("a reason of other words", GET, _ok(status="200 \xc3\xa9t\xc3\xa9  fini\t!")),
    Exchange("no reason", GET, _ok(status="200 ")),
    Exchange("no reason and no blank before it", GET, _ok(status="200"), gets=_ok(status="200 "), why="blanks"),
    Exchange("a body in chunks", GET, CHUNKED),
    Exchange("a body in chunks, with a trailer", GET, CHUNKED[:-1] + "X-Sum: 7\n\n"),
    Exchange("a body in chunks, with an extension", GET, CHUNKED.replace("\n4\n", "\n4;a=b\n"), gets=CHUNKED, why="chunks"),
    Exchange("a body in chunks, sizes written otherwise", GET, CHUNKED.replace("\n4\n", "\n0004 \n"), gets=CHUNKED, why="chunks"),
    Exchange("a body in many chunks in one piece", GET, "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n" + "1\np\n" * 9 + "0\n\n", gets="HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n9\nppppppppp\n0\n\n", why="chunks"),
    Exchange("a body in chunks, in another case", GET, CHUNKED.replace("chunked", "Chunked")),
    Exchange("a body until the end", GET, "HTTP/1.1 200 OK\n\npage", server=END),
    Exchange("a body until the end, HTTP/1.0", GET, "HTTP/1.0 200 OK\n\npage", server=END),
    Exchange("a body of 300 KB", GET, "HTTP/1.1 200 OK\nContent-Length: 300000\n\n" + "x" * 300_000),
    Exchange("a body of nothing", GET, "HTTP/1.1 200 OK\nContent-Length: 0\n\n"),
    Exchange("a packed body", GET, "HTTP/1.1 200 OK\nContent-Encoding: gzip\nContent-Length: 5\n\n\x1f\x8b\x08\0\xff"),
    Exchange("no content", GET, "HTTP/1.1 204 No Content\nX: y\n\n"),
    Exchange("no content, with a length", GET, "HTTP/1.1 204 No Content\nContent-Length: 0\n\n", gets="HTTP/1.1 204 No Content\n\n", why="one length"),
    Exchange("not modified", GET, 'HTTP/1.1 304 Not Modified\nETag: "a"\nContent-Length: 40\n\n'),
    Exchange("HEAD, with a length", HEAD, "HTTP/1.1 200 OK\nContent-Length: 40\n\n"),
    Exchange("HEAD, in chunks", HEAD, "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n"),
    Exchange("HEAD, without a length", HEAD, "HTTP/1.1 200 OK\nX: y\n\n"),
    Exchange("cookies, in their order", GET, _ok("Set-Cookie: a=1; Path=/", "X: y", "set-cookie: b=2", "Set-Cookie: a=1; Path=/")),
    Exchange("what servers say about themselves", GET, _ok("Server: a", "Date: Sun, 06 Nov 1994 08:49:37 GMT", 'Alt-Svc: h3=":443"', "Strict-Transport-Security: max-age=1", "Via: 1.1 a")),
    Exchange("names in any case", GET, _ok("x-A: b", "X-a: c")),
    Exchange("an empty value", GET, _ok("X: ")),
    Exchange("bytes above ASCII in a value", GET, _ok("X: caf\xc3\xa9 \xff")),
    Exchange("blanks around a value", GET, _ok("X:\ty \t"), gets=_ok("X: y"), why="blanks"),
    Exchange("a hundred fields", GET, _ok(*(f"X-{n}: {n}" for n in range(100)))),
    Exchange("a value of 60 KB", GET, _ok("X: " + "y" * 60_000)),
    Exchange("a challenge", GET, _ok('WWW-Authenticate: Basic realm="a", Bearer', status="401 Unauthorized")),
    Exchange("an early hint", GET, _HINT + OK),
    Exchange("two early hints", GET, _HINT + _HINT + OK),
    Exchange("102 Processing", GET, "HTTP/1.1 102 Processing\n\n" + OK),
    Exchange("unsolicited 100-continue", GET, _LEAVE + OK),
    Exchange("100-continue with a body", FORM, _LEAVE + OK),
    Exchange("an early hint with a length", GET, _HINT[:-1] + "Content-Length: 0\n\n" + OK, gets=_HINT + OK, why="one length"),
    Exchange("an early hint to a client of HTTP/1.0", "GET / HTTP/1.0\nHost: HOST\n\n", _HINT + OK, gets=OK, why="informational responses", server=END),
    Exchange("an early hint before an error", GET, _HINT + _ok(status="500 Internal Server Error")),
    *(Exchange(f"the server's last answer, {option}", GET, _ok(f"Connection: {option}"), server=END) for option in ("close", "Close", "close, TE")),
    Exchange("fields of the connection", GET, _ok("Connection: keep-alive", "Keep-Alive: timeout=5, max=100")),
    Exchange("an answer before its request is whole", POST + "Content-Length: 4000\n\nhello", _ok("Connection: close", status="413 Content Too Large"), server=END),
    # what the gate normalizes
    Exchange("an empty line before an answer", GET, "\n" + OK, gets=OK, why="empty lines"),
    Exchange("lines with bare LF", GET, "HTTP/1.1 200 OK␊Content-Length: 4␊␊page", gets=OK, why="line ends"),
    Exchange("chunks with bare LF", GET, CHUNKED[: CHUNKED.index("\n\n") + 2] + "4␊page␊0␊␊", gets=CHUNKED, why="line ends"),
    Exchange("a blank before a colon", GET, _ok("X : y"), gets=_ok("X: y"), why="blanks"),
    Exchange("a blank before the colon of a length", GET, OK.replace(":", " :"), gets=OK, why="blanks"),
    Exchange("a folded line", GET, _ok("X: y", "   z"), gets=_ok("X: y z"), why="folded lines"),
    Exchange("a length with zeros before it", GET, OK.replace("4", "004"), gets=OK, why="one length"),
    Exchange("one length twice", GET, OK.replace("Content", "Content-Length: 4\nContent"), gets=OK, why="one length"),
    Exchange("one length twice in one field", GET, OK.replace(": 4", ": 4, 4"), gets=OK, why="one length"),
    Exchange("a length and chunks", GET, CHUNKED.replace("Transfer", "Content-Length: 9\nTransfer"), gets=CHUNKED, why="one length"),
    Exchange("a length, and a coding that is none", GET, OK.replace("Content", "Transfer-Encoding: Identity\nContent"), gets=OK, why="one length"),
    Exchange("a coding that is none in HTTP/1.0", GET, "HTTP/1.0 200 OK\nTransfer-Encoding: identity\n\npage", gets="HTTP/1.0 200 OK\n\npage", why="one length", server=END),
    Exchange("a blank before the colon of a trailer", GET, CHUNKED[:-1] + "X : y\n\n", gets=CHUNKED[:-1] + "X: y\n\n", why="blanks"),
    Exchange("a folded trailer", GET, CHUNKED[:-1] + "X: y\n\t z\n\n", gets=CHUNKED[:-1] + "X: y z\n\n", why="folded lines"),
    Exchange("a trailer that frames", GET, CHUNKED[:-1] + "Content-Length: 7\nX: y\n\n", gets=CHUNKED[:-1] + "X: y\n\n", why="chunks"),
    Exchange("an empty line behind a body", GET, OK + "\n", gets=OK, why="empty lines"),
    # what the gate answers with 502
    Exchange("a field's name with a blank in it", GET, _ok("X y: z"), gets=Page(502), why="unreadable answers", server=END),
    Exchange("a field's name with other signs", GET, _ok("X[y]: z"), gets=Page(502), why="unreadable answers", server=END),
    Exchange("chunks twice", GET, CHUNKED.replace("chunked", "chunked, chunked"), gets=Page(502), why="unreadable answers", server=END),
    Exchange("a size with an extension and a bare LF", GET, CHUNKED.replace("\n4\n", "\n4;a␊"), gets=CHUNKED[: CHUNKED.index("\n\n") + 2], why="cuts", ends=RESET),
    Exchange("the last chunk without its end", GET, CHUNKED[:-1], gets=CHUNKED[: -len("0\n\n")], why="cuts", server=END, ends=RESET),
    Exchange("two lengths", GET, OK.replace("Content", "Content-Length: 5\nContent"), gets=Page(502), why="unreadable answers", server=END),
    Exchange("chunks in HTTP/1.0", GET, CHUNKED.replace("1.1", "1.0"), gets=Page(502), why="unreadable answers", server=END),
    Exchange("another protocol", GET, "SSH-2.0-OpenSSH_9.6\n", gets=Page(502), why="unreadable answers"),
    Exchange("a line without a colon", GET, _ok("what"), gets=Page(502), why="unreadable answers", server=END),
    Exchange("a NUL in a value", GET, _ok("X: a\0b"), gets=Page(502), why="unreadable answers", server=END),
    Exchange("no end of a size", GET, CHUNKED[: CHUNKED.index("\n\n") + 2] + "4\npage\nzz", gets=CHUNKED[:-3], why="cuts", ends=RESET),
    Exchange("no answer", GET, "", gets=Page(502), why="no answer", server=END),
    Exchange("no answer but a reset", GET, "", gets=Page(502), why="no answer", server=RESET),
    Exchange("half a head", GET, "HTTP/1.1 200 OK\nX: y\n", gets=Page(502), why="no answer", server=END),
    # bodies that break off
    Exchange("a body that ends early", GET, EARLY, why="cuts", server=END, ends=RESET),
    Exchange("a body that is reset", GET, EARLY, server=RESET, ends=RESET),
    Exchange("a body of 100 KB that ends early", GET, "HTTP/1.1 200 OK\nContent-Length: 200000\n\n" + "x" * 100_000, why="cuts", server=END, ends=RESET),
    Exchange("chunks that end early", GET, CHUNKED[: -len("0\n\n")], why="cuts", server=END, ends=RESET),
    Exchange("a body until a reset", GET, "HTTP/1.1 200 OK\n\npage", server=RESET, ends=RESET),
]  # fmt: skip

EXCHANGES = [
    *(each._replace(name=f"request: {each.name}") for each in REQUESTS),
    *(each._replace(name=f"answer: {each.name}") for each in ANSWERS),
]
