"""A request's head: what has one reading passes with that reading, all else is refused with its reason."""

import pytest

from proxy.request.http1_heads import parse_head, split_head
from proxy.request.override_headers import MOST_PARAMETERS
from proxy.request.request_head import (
    Head,
    UnclearError,
    authority,
    body_size,
    forwarded,
    may_trail,
    read,
    without_upgrade,
)
from rules.loading.cases import parse_attempt
from rules.values.addresses import parse_host
from rules.verdicts import Reason
from tests.proxy.inspection.smuggling import HOSTS, LINES, MISMATCH, TWO_ENDS, Refused, raw
from tests.rules.rule_texts import policy


def reading(raw, *, tls=True):
    return read(parse_head(raw.replace("\n", "\r\n").encode("latin-1")), tls=tls)


@pytest.mark.parametrize(
    ("head", "host", "port", "path"),
    [
        ("GET / HTTP/1.1\nHost: good.example\n\n", "good.example", 443, "/"),
        ("GET /a%2fb?q=/../ HTTP/1.1\nhOST:\tGood.Example.:443 \n\n", "good.example", 443, "/a%2fb?q=/../"),
        ("GET https://good.example/x HTTP/1.1\nHost: good.example\n\n", "good.example", 443, "/x"),
        ("GET HTTPS://GOOD.example:8443 HTTP/1.1\nHost: good.example:8443\n\n", "good.example", 8443, "/"),
        ("GET /\xc3\xa9 HTTP/1.1\nHost: good.example\n\n", "good.example", 443, "/%C3%A9"),
        ("GET / HTTP/1.0\nHost: good.example\n\n", "good.example", 443, "/"),
        ("GET / HTTP/1.1\nHost: 2130706433\n\n", "127.0.0.1", 443, "/"),
        ("GET / HTTP/1.1\nHost: [2001:DB8::1]:444\n\n", "2001:db8::1", 444, "/"),
        ("POST / HTTP/1.1\nHost: good.example\nContent-Length: 5\n\n", "good.example", 443, "/"),
        ("POST / HTTP/1.1\nHost: good.example\nTransfer-Encoding: Chunked\n\n", "good.example", 443, "/"),
        ("GET / HTTP/1.1\nHost: good.example\nX-Odd: \xff caf\xe9\n\n", "good.example", 443, "/"),
    ],
)
def test_unambiguous_heads_are_parsed(head, host, port, path):
    asked = reading(head)
    assert (asked.host, asked.port, asked.path) == (parse_host(host), port, path)


UNREADABLE = [
    case for case in [*TWO_ENDS, *LINES, *HOSTS] if isinstance(case.outcome, Refused) and case.outcome != MISMATCH
]


@pytest.mark.parametrize("case", UNREADABLE, ids=[case.name for case in UNREADABLE])
def test_ambiguous_heads_are_refused(case):
    with pytest.raises(UnclearError) as refusal:
        read(parse_head(split_head(Buffer(raw(case.sent, "good.example:8080")))), tls=False)
    assert refusal.value.reason == case.outcome.reason


@pytest.mark.parametrize("method", ["CONNECT", "connect"])
def test_connect_request_is_refused(method):
    with pytest.raises(UnclearError) as refusal:
        reading(f"{method} evil.example:443 HTTP/1.1\nHost: good.example\n\n")
    assert refusal.value.reason is Reason.PROTOCOL_MISMATCH


@pytest.mark.parametrize("method", ["GET", "get", "Get", "pATCH", "patch", "CONNECT", "connect", "PURGE", "purge"])
def test_explain_treats_methods_as_the_gate(method):
    try:
        reading(f"{method} / HTTP/1.1\nHost: good.example\n\n")
        reason = Reason.RULE
    except UnclearError as refusal:
        reason = refusal.reason
    lets_all_out = policy("- {id: a, to: good.example, action: allow}")
    assert parse_attempt(f"{method} https://good.example/").decide(lets_all_out).reason is reason


def http2(*fields, authority=b"good.example", scheme=b"https", path=b"/", method=b"GET"):
    return read(Head(b"HTTP/2.0", method, scheme, authority, path, fields), tls=True)


def test_http2_host_is_authority_or_host_header():
    assert http2().host == "good.example"
    assert http2((b"host", b"good.example"), authority=b"").host == "good.example"
    assert http2((b"host", b"good.example")).spelled == b"good.example"


@pytest.mark.parametrize(
    "made",
    [
        {"authority": b""},
        {"authority": b"user@good.example"},
        {"scheme": b"http"},
        {"path": b""},
        {"path": b"/ HTTP/1.1\r\nX: y"},
        {"method": b"GET / HTTP/1.1"},
    ],
    ids=str,
)
def test_malformed_http2_pseudo_headers_are_refused(made):
    with pytest.raises(UnclearError):
        http2(**made)


@pytest.mark.parametrize(
    "field",
    [(b"host", b"evil.example"), (b"transfer-encoding", b"chunked"), (b"x", b"a\r\nHost: evil.example"), (b"a b", b"")],
)
def test_malformed_http2_fields_are_refused(field):
    with pytest.raises(UnclearError):
        http2(field)


def test_upgrades_are_declined():
    head = (
        "GET / HTTP/1.1\nHost: good.example\nConnection: Upgrade, HTTP2-Settings\nUpgrade: h2c\nHTTP2-Settings: AA\n\n"
    )
    asked = reading(head)
    assert (asked.upgrade, asked.websocket) == (True, False)
    fields = parse_head(head.replace("\n", "\r\n").encode()).fields
    assert without_upgrade((*fields, (b"Connection", b"keep-alive, upgrade"))) == (
        (b"Host", b"good.example"),
        (b"Connection", b"keep-alive"),
    )
    assert reading("GET / HTTP/1.1\nHost: good.example\nUpgrade: h2c, WebSocket\n\n").websocket


OVERRIDES = [
    "X-HTTP-Method-Override", "x-http-method", "X-Method-Override", "X-Method", "Method-Override", "HTTP-Method-Override",
    "X-Original-Method", "X-Forwarded-Method", "X-Override-Method", "X-Rewrite-Method", "X-Request-Method", "Request-Method",
    "X-HTTP-Verb-Override", "X-HTTPMethod-Override", "X-Real-Method",
    "X-Original-URL", "X-Original-URI", "X-Rewrite-URL", "X-Override-URL", "X-Forwarded-Uri", "X-Forwarded-Path", "X-Forwarded-Prefix",
    "X-Forwarded-URL", "X-Original-Path", "X-Rewrite-Path", "X-Envoy-Original-Path", "X-WAWS-Unencoded-URL", "X-Proxy-URL", "X-Path",
    "X-Orig-URL", "X-Replaced-Path", "X-Matched-Path", "X-Invoke-Path", "X-Path-Info", "X-Vendor-HTTP-Method", "X-Vendor-HTTP-Method-Override",
    "X-Raw-URL", "X-HTTP-Path-Override", "Request-URI", "X-Original-Request-URI", "X-HTTP-DestinationURL", "X-RewriteURL",
    "X-Path-Info-Override", "X-Original-PathInfo", "X-Script-Name", "X-Forwarded-Script-Name", "Base-Url", "X-Target-Url",
    "X-Tunneled-Method", "X-REST-Method", "X-Upstream-Path", "X-MS-Original-URL",
    "X-Goog-Method-Override", "X-Method-Overwrite", "X-Forward-Uri", "X-Fwd-Path", "X-Destination-Url", "X-Original-Query",
    "X-Forwarded-Query-String", "X-Original-Pathname", "X-Ingress-Path", "X-Nextjs-Matched-Path", "X-Overwrite-URL", "X-Mapped-Path",
]  # fmt: skip


@pytest.mark.parametrize("name", OVERRIDES)
def test_method_override_header_is_found(name):
    assert reading(f"POST / HTTP/1.1\nHost: good.example\n{name}: DELETE\n\n").overrides
    assert not may_trail(name.lower().encode())
    with pytest.raises(UnclearError, match="another sign"):
        reading(f"POST / HTTP/1.1\nHost: good.example\n{name.replace('-', '_', 1)}: DELETE\n\n")
    with pytest.raises(UnclearError, match="must arrive"):
        reading(f"POST / HTTP/1.1\nHost: good.example\nConnection: {name}\n\n")


def test_connection_header_names_are_bounded():
    head = "GET / HTTP/1.1\nHost: good.example\nConnection: {}\n\n"
    assert reading(head.format(",".join(["a"] * 500)))
    with pytest.raises(UnclearError, match="more than there may be"):
        reading(head.format(",".join(["a"] * 501)))


@pytest.mark.parametrize("name", [
    "Access-Control-Request-Method", "X-Request-ID", "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Port", "X-Real-IP",
    "X-Amz-Target", "X-Goog-Request-Params", "X-Requested-With", "Referer", "Origin", "Destination", "Content-Location",
    "X-Amz-Copy-Source", "X-Github-Api-Version", "X-Stainless-Helper-Method", "X-Payment-Method", "X-Api-Url", "X-RestLi-Method", "Proxy-Connection",
    "X-Query", "X-Source-Url", "X-Redirect-Url", "X-Gateway-Route", "X-Forwarded-Scheme", "Next-Url", "X-Override-Limits",
])  # fmt: skip
def test_harmless_override_header_is_ignored(name):
    assert not reading(f"POST / HTTP/1.1\nHost: good.example\n{name}: close\n\n").overrides


NAMED_HOSTS = {
    "X-Forwarded-Host: evil.example": True, "X-Host: evil.example": True, "X-HTTP-Host-Override: evil.example": True,
    "X-Original-Host: evil.example": True, "X-Forwarded-Server: evil.example": True, "X-Rewrite-Host: evil.example": True,
    "Forwarded: for=1.2.3.4;host=evil.example": True, 'Forwarded: host="evil.example:443"': True,
    "X-Forwarded-Host: good.example, evil.example": True, "X-Forwarded-Host: good.example.evil.example": True,
    "X-Backend-Host: evil.example": True, "X-Forwarded-Authority: evil.example": True,
    "X-Forwarded-Hostname: evil.example": True, "X-Forwarded-Server-Name: evil.example": True,
    "X-Forwarded-Host: good.example:80@evil.example": True, "X-Forwarded-Host: good.example:evil": True,
    "Disguised-Host: evil.example": True, "X-WAWS-Hostname: evil.example": True, "X-Envoy-Original-Dst-Host: 10.0.0.1:80": True,
    "X-Forward-Host: evil.example": True, "X-Virtual-Host: evil.example": True, "X-Authority: evil.example": True,
    "X-Forwarded-Domain: evil.example": True, "X-MS-Original-Host: evil.example": True, "Was-Default-Hostname: evil.example": True,
    "X-Client-Host: laptop": False, "X-Server-Name: files": False, "X-Disguised-Host: good.example": False,
    "X-Forwarded-Host: Good.Example:8443": False, "X-Forwarded-Host: good.example": False, "Forwarded: for=1.2.3.4;proto=https": False,
    "Forwarded: host=good.example": False, "X-Forwarded-For: evil.example": False,
}  # fmt: skip


@pytest.mark.parametrize(("line", "seen"), NAMED_HOSTS.items(), ids=NAMED_HOSTS)
def test_forwarded_host_header_is_found(line, seen):
    assert reading(f"POST / HTTP/1.1\nHost: good.example:8443\n{line}\n\n").overrides is seen


PARAMETERS = {
    "_method=DELETE": True, "a=1&_method=DELETE": True, "a=1;_Method=DELETE": True, "%5fmethod=DELETE": True,
    "%255Fmethod=DELETE": True, "_method[]=DELETE": True, ".method=DELETE": True, "+_method=DELETE": True,
    "_method%00x=DELETE": True, "X-HTTP-Method-Override=PATCH": True, "x_http_method_override=PATCH": True,
    "$httpMethod=DELETE": True, "%24httpMethod=DELETE": True, "$httpHeaders=X-HTTP-Method-Override:DELETE": True,
    "http_method=DELETE": True, "httpMethod=DELETE": True, "__method=DELETE": True, "_http_method_override=DELETE": True,
    "http_headers=a": False, "payment.method=card": False,
    "a?_method=DELETE": True, "_method": True, "method=DELETE": False, "payment_method=card": False,
    "q=_method": False, "_methods=a": False, "": False,
}  # fmt: skip


@pytest.mark.parametrize(("query", "seen"), PARAMETERS.items(), ids=PARAMETERS)
def test_method_override_parameter_is_found(query, seen):
    assert reading(f"POST /a?{query} HTTP/1.1\nHost: good.example\n\n").overrides is seen
    assert not reading(f"POST /{query.replace('?', '')} HTTP/1.1\nHost: good.example\n\n").overrides


def test_too_many_parameters_could_override():
    many = "&".join(["a=method"] * (MOST_PARAMETERS + 1))
    assert reading(f"POST /a?{many} HTTP/1.1\nHost: good.example\n\n").overrides
    assert not reading(f"POST /a?{many.replace('method', 'b')} HTTP/1.1\nHost: good.example\n\n").overrides


@pytest.mark.parametrize(
    ("host", "port", "tls", "spelled"),
    [
        ("good.example", 443, True, b"good.example"),
        ("good.example", 443, False, b"good.example:443"),
        ("good.example", 80, False, b"good.example"),
        ("2001:db8::1", 8443, True, b"[2001:db8::1]:8443"),
        ("198.51.100.1", 443, True, b"198.51.100.1"),
    ],
)
def test_paths_are_normalised_once(host, port, tls, spelled):
    assert authority(parse_host(f"[{host}]" if ":" in host else host), port, tls=tls) == spelled


FORWARDED = [  # what was written, to where, and what leaves
    ("good.example", "good.example", 443, "good.example"),
    ("GOOD.example", "good.example", 443, "GOOD.example"),
    ("good.example.", "good.example", 443, "good.example."),
    ("good.example:443", "good.example", 443, "good.example:443"),
    ("good.example.:443", "good.example", 443, "good.example.:443"),
    ("good.example:0443", "good.example", 443, "good.example"),  # in octal it is another port
    ("Good.example:8443", "good.example", 8443, "Good.example:8443"),
    ("good.example:08443", "good.example", 8443, "good.example:8443"),
    ("127.0.0.1", "127.0.0.1", 443, "127.0.0.1"),
    ("2130706433", "127.0.0.1", 443, "127.0.0.1"),
    ("127.1", "127.0.0.1", 443, "127.0.0.1"),
    ("127.0.0.1.", "127.0.0.1", 443, "127.0.0.1"),
    ("[2001:DB8::1]:444", "[2001:db8::1]", 444, "[2001:DB8::1]:444"),
    ("[2001:db8:0::1]:444", "[2001:db8::1]", 444, "[2001:db8::1]:444"),
]


@pytest.mark.parametrize(("spelled", "host", "port", "leaves"), FORWARDED)
def test_host_is_sent_as_written_unless_ambiguous(spelled, host, port, leaves):
    assert forwarded(spelled.encode(), parse_host(host), port, tls=True) == leaves.encode()


def test_trailers_are_checked():
    assert may_trail(b"Grpc-Status")
    assert not any(map(may_trail, (b"Host", b"content-length", b"Transfer-Encoding", b"Authorization", b"cookie")))


class Buffer:
    """Bytes as a codec keeps them."""

    def __new__(cls, data):
        from proxy.request import chunked_body

        buffer = chunked_body.Buffer()
        buffer += data
        return buffer


def test_head_is_parsed_from_any_pieces():
    raw = b"\r\n\nGET / HTTP/1.1\r\nHost: good.example\r\n\r\nrest"
    buffer = Buffer(b"")
    heads = []
    for byte in raw:
        buffer += bytes([byte])
        heads += filter(None, [split_head(buffer)])
    assert heads == [raw[3:-4]]
    assert bytes(buffer) == b"rest"


def test_endless_head_is_refused():
    with pytest.raises(UnclearError):
        split_head(Buffer(b"GET / HTTP/1.1\r\nX: " + b"a" * 200_000))


def test_body_length_is_determined():
    def size(fields):
        return body_size(parse_head(f"POST / HTTP/1.1\r\nHost: x\r\n{fields}\r\n".encode()))

    assert (size(""), size("Content-Length: 7\r\n"), size("Transfer-Encoding: chunked\r\n")) == (0, 7, None)
