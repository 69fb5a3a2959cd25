"""What we lean on in mitmproxy and its libraries, none of which promise it. A new version has to pass here first."""

import contextlib
import dataclasses
import importlib.metadata
import inspect
import itertools
import re
from pathlib import Path

import h2.connection
import h2.frame_buffer
import h11._readers
import h11._receivebuffer
import mitmproxy.proxy
import pytest
from mitmproxy import connection, http, options
from mitmproxy.net.http import http1 as http1_messages
from mitmproxy.net.http import validate
from mitmproxy.proxy import commands, context, layer, server
from mitmproxy.proxy.layers.http import _http2, _http_h2
from OpenSSL import SSL

from proxy.inspection import context as ours
from proxy.inspection import http1, http2, judging
from proxy.inspection.messages import QuickHeaders, request_of, response_with
from proxy.request.request_head import Head
from rules.names import HostName

FOLDER = Path(mitmproxy.proxy.__path__[0])
USED = [FOLDER / "layer.py", *(FOLDER / "layers" / "http" / f"{name}.py" for name in ("_base", "_http2", "_http_h2"))]


def test_the_version():
    """12.3 has a CA key of somebody else's behind two options: not without reading it first."""
    assert importlib.metadata.version("mitmproxy") == "12.2.3"


def test_every_option_that_a_used_layer_reads_is_fixed():
    read = {name for file in USED for name in re.findall(r"\boptions\.([a-z_0-9]+)", file.read_text())}
    read.add("proxy_debug")
    fixed = {field.name for field in dataclasses.fields(ours.FixedOptions)}
    assert read - {"http3"} <= fixed
    known = options.Options()
    own = {"connection_strategy", "store_streamed_bodies", "stream_large_bodies", "body_size_limit", "keep_host_header",
           "validate_inbound_headers", "normalize_outbound_headers", "websocket", "proxy_debug"}  # fmt: skip
    assert fixed - own <= set(known.keys())


def test_an_option_that_is_not_fixed_raises():
    with pytest.raises(AttributeError):
        _ = ours.FixedOptions().ignore_hosts
    with pytest.raises(dataclasses.FrozenInstanceError):
        ours.FixedOptions().websocket = True


def test_the_layers_command_nothing_that_the_driver_doesn_t_know():
    made = {
        name
        for file in USED[1:]  # the first is about layers, and what they may wait for
        for name in re.findall(r"yield (?:commands\.)?([A-Z]\w+)\(", file.read_text())
        if hasattr(commands, name) and name != "Log"
    }
    assert made == {"CloseConnection", "RequestWakeup", "SendData"}  # waking is an option's, which is off


OVERRIDDEN = {
    (context.Context, "fork"): "(self) -> 'Context'",
    (_http2.Http2Connection, "handle_h2_event"): None,
    (_http2.Http2Connection, "protocol_error"): None,
    (_http2.Http2Connection, "close_connection"): "(self, msg: str)",
    (_http_h2.BufferedH2Connection, "initiate_connection"): "(self)",
    (h2.connection.H2Connection, "_receive_goaway_frame"): None,
    (h2.connection.H2Connection, "_receive_frame"): "(self, frame: 'Frame')",
    (h2.connection.H2Connection, "_prepare_for_sending"): "(self, frames: 'list[Frame]')",
    (h2.frame_buffer.FrameBuffer, "_update_header_buffer"): "(self, f: 'Frame | None')",
    (h2.frame_buffer.FrameBuffer, "__next__"): "(self)",
    (h11._receivebuffer.ReceiveBuffer, "_extract"): "(self, count: int) -> bytearray",
}


@pytest.mark.parametrize(("owner", "name"), OVERRIDDEN, ids=lambda value: getattr(value, "__name__", value))
def test_what_we_override_or_call_is_there(owner, name):
    method = getattr(owner, name)
    if wanted := OVERRIDDEN[owner, name]:
        assert str(inspect.signature(method)).startswith(wanted)


@pytest.mark.parametrize(
    ("owner", "names"),
    [
        (h11._receivebuffer.ReceiveBuffer(), {"_data", "_multiple_lines_search"}),
        (h2.frame_buffer.FrameBuffer(), {"_data", "_headers_buffer", "max_frame_size"}),
        (SSL, {"_lib", "_ffi"}),
        (SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD)), {"_ssl", "_into_ssl", "_from_ssl", "_raise_ssl_error"}),
        (layer.Layer, {"_handle_event"}),
        (SSL.Context(SSL.TLS_CLIENT_METHOD), {"_context"}),
        (SSL._lib, {"SSL_get0_param", "X509_VERIFY_PARAM_set1_host", "X509_VERIFY_PARAM_set1_ip",
                    "X509_VERIFY_PARAM_set_hostflags", "SSL_CTX_set1_curves_list", "SSL_set1_curves_list", "SSL_get_verify_result",
                    "X509_CHECK_FLAG_NEVER_CHECK_SUBJECT", "X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS",
                    "SSL_do_handshake", "SSL_read", "SSL_write", "SSL_get_error", "SSL_ERROR_WANT_READ",
                    "BIO_read", "BIO_write"}),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_we_reach_into_is_there(owner, names):
    assert names <= set(dir(owner))


def test_what_is_made_without_a_constructor_is_like_mitmproxy_s():
    place = judging.Place(HostName("good.example"), 443, tls=True)
    client, server = ours.near(("127.0.0.1", 1), place), ours.far(place)
    theirs = connection.Client(peername=("127.0.0.1", 1), sockname=(), state=connection.ConnectionState.OPEN)
    for made, like in ((client, theirs), (server, connection.Server(address=None))):
        names = [field.name for field in dataclasses.fields(like)]
        assert {type(getattr(made, name)) for name in names if name in ("id", "state", "tls")} == {
            str, connection.ConnectionState, bool,
        }  # fmt: skip
        own = {"id", "state", "tls", "address", "sockname", "proxy_mode", "timestamp_start"}
        assert {n: getattr(made, n) for n in names if n not in own} == {
            n: getattr(like, n) for n in names if n not in own
        }
    assert client == client  # noqa: PLR0124
    assert len({client, server, ours.far(place)}) == 3


def test_our_layers_are_mitmproxy_s():
    assert issubclass(http2.FrontHttp2, _http2.Http2Server)
    assert issubclass(http2.BackHttp2, _http2.Http2Client)


def test_what_the_replaced_driver_did():
    """If mitmproxy's own begins to do more between layers and sockets, ours may have to as well."""
    source = inspect.getsource(server.ConnectionHandler.server_event)
    handled = re.findall(r"isinstance\(\s*command, commands\.(\w+)", source)
    assert handled == ["OpenConnection", "RequestWakeup", "ConnectionCommand", "SendData", "CloseTcpConnection", "CloseConnection",
                       "StartHook", "Log"]  # fmt: skip


def test_quick_messages_are_like_mitmproxy_s():
    fields = ((b"Host", b"good.example"), (b"X", b"1"), (b"x", b"2"), (b"Y", b"\xff"))
    theirs, quick = http.Headers(fields), QuickHeaders(fields)
    for name in ("host", "HOST", b"x", "y", "missing"):
        assert quick.get_all(name) == theirs.get_all(name)
        assert quick.get(name, "no") == theirs.get(name, "no")
        assert (name in quick) == (name in theirs)
    assert (bytes(quick), quick["x"], list(quick.items(multi=True))) == (
        bytes(theirs), theirs["x"], list(theirs.items(multi=True)),
    )  # fmt: skip
    for headers in (theirs, quick):
        headers["x"] = "3"
        del headers["host"]
        headers.insert(0, "New", "yes")
    assert quick.fields == theirs.fields
    assert quick.get("new") == "yes"
    assert "host" not in quick
    with pytest.raises(KeyError):
        _ = quick["host"]
    response = response_with(b"HTTP/1.1", 200, b"OK", fields)
    validate.validate_headers(response)
    assert vars(response.data).keys() == {field.name for field in dataclasses.fields(http.ResponseData)}
    assert vars(request_of(http1.parse_head(b"GET / HTTP/1.1\r\n\r\n")).data).keys() == {
        field.name for field in dataclasses.fields(http.RequestData)
    }


FIELDS = {
    "": (),
    "close": ((b"Connection", b"close"),),
    "kept": ((b"connection", b"keep-alive"),),
    "kept length": ((b"Connection", b"Keep-Alive"), (b"Content-Length", b"2")),
    "loud": ((b"Connection", b"Close"),),
    "named so": ((b"Connection", b"closed"), (b"Content-Length", b"2")),
    "both": ((b"Connection", b"keep-alive, close"),),
    "twice": ((b"Connection", b"close"), (b"Connection", b"upgrade")),
    "length": ((b"Content-Length", b"2"),),
    "closed length": ((b"content-length", b"2"), (b"connection", b"close")),
    "chunked": ((b"Transfer-Encoding", b"chunked"),),
    "broken length": ((b"content-length", b"two"),),
}


def test_whether_a_connection_ends_with_a_response_is_what_mitmproxy_finds():
    said = set()
    methods, statuses, versions = (b"GET", b"HEAD", b"DELETE"), (200, 204, 304), (b"HTTP/1.1", b"HTTP/1.0")
    for asked, answer, method, status, first, second in itertools.product(
        FIELDS, FIELDS, methods, statuses, versions, versions
    ):
        request = request_of(Head(first, method, b"", b"", b"/", FIELDS[asked]))
        response = response_with(second, status, b"OK", FIELDS[answer])
        found = http1.is_last(request, response)
        said.add((asked, answer, found))
        closes = any(
            http1_messages.connection_close(one.http_version, _lower(one.headers)) for one in (request, response)
        )
        with contextlib.suppress(ValueError):  # mitmproxy goes on then, too
            closes = closes or http1_messages.expected_http_body_size(request, response) == -1
        assert found is closes
    assert {("", "length", False), ("kept", "kept length", False), ("", "", True), ("", "", False)} <= said
    assert {("close", "length", True), ("", "close", True), ("close", "chunked", True), ("", "loud", True)} <= said


def _lower(headers):
    """What mitmproxy understands: it knows options in lower case alone."""
    return http.Headers([(name, value.lower()) for name, value in headers.fields])
