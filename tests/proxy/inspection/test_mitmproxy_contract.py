"""Private behavior of mitmproxy and its libraries that we depend on. A new version has to pass these tests first."""

import contextlib
import dataclasses
import importlib.metadata
import inspect
import itertools
import re
from pathlib import Path

import h2.connection
import h2.frame_buffer
import mitmproxy.proxy
import pytest
from mitmproxy import http, options
from mitmproxy.net.http import http1 as http1_messages
from mitmproxy.net.http import validate
from mitmproxy.proxy import commands, layer, server
from mitmproxy.proxy.layers.http import _http2, _http_h2
from OpenSSL import SSL

from proxy.inspection import connection_ends as ours
from proxy.inspection import http1, http2
from proxy.request import messages
from proxy.request.messages import ResponseHead, WebOrigin
from proxy.request.mitmproxy_messages import head_of, request_of, response_head_of, response_of
from proxy.request.request_head import Head
from rules.values.names import HostName

FOLDER = Path(mitmproxy.proxy.__path__[0])
USED = [FOLDER / "layer.py", *(FOLDER / "layers" / "http" / f"{name}.py" for name in ("_base", "_http2", "_http_h2"))]


def test_mitmproxy_has_the_reviewed_version():
    """12.3 adds options that load a foreign CA key; review them before the upgrade."""
    assert importlib.metadata.version("mitmproxy") == "12.2.3"


def test_every_option_that_our_layers_read_is_fixed():
    read = {name for file in USED for name in re.findall(r"\boptions\.([a-z_0-9]+)", file.read_text())}
    read.add("proxy_debug")
    fixed = {field.name for field in dataclasses.fields(ours.FixedOptions)}
    assert read - {"http3"} <= fixed
    known = options.Options()
    own = {"connection_strategy", "store_streamed_bodies", "stream_large_bodies", "body_size_limit", "keep_host_header",
           "validate_inbound_headers", "normalize_outbound_headers", "websocket", "proxy_debug"}  # fmt: skip
    assert fixed - own <= set(known.keys())


def test_reading_an_unfixed_option_raises():
    with pytest.raises(AttributeError):
        _ = ours.FixedOptions().ignore_hosts
    with pytest.raises(dataclasses.FrozenInstanceError):
        ours.FixedOptions().proxy_debug = True


def test_layers_yield_only_commands_that_our_driver_handles():
    yielded = {
        name
        for file in USED[1:]  # without layer.py, which only defines the base class
        for name in re.findall(r"yield (?:commands\.)?([A-Z]\w+)\(", file.read_text())
        if hasattr(commands, name) and name != "Log"
    }
    assert yielded == {"CloseConnection", "RequestWakeup", "SendData"}  # waking is an option's, which is off


OVERRIDDEN = {
    (_http2.Http2Connection, "handle_h2_event"): None,
    (_http2.Http2Connection, "protocol_error"): None,
    (_http2.Http2Connection, "close_connection"): "(self, msg: str)",
    (_http_h2.BufferedH2Connection, "initiate_connection"): "(self)",
    (h2.connection.H2Connection, "_receive_goaway_frame"): None,
    (h2.connection.H2Connection, "_receive_frame"): "(self, frame: 'Frame')",
    (h2.connection.H2Connection, "_prepare_for_sending"): "(self, frames: 'list[Frame]')",
    (h2.frame_buffer.FrameBuffer, "_update_header_buffer"): "(self, f: 'Frame | None')",
    (h2.frame_buffer.FrameBuffer, "__next__"): "(self)",
}


@pytest.mark.parametrize(("owner", "name"), OVERRIDDEN, ids=lambda value: getattr(value, "__name__", value))
def test_overridden_methods_exist_with_their_signature(owner, name):
    method = getattr(owner, name)
    if signature := OVERRIDDEN[owner, name]:
        assert str(inspect.signature(method)).startswith(signature)


@pytest.mark.parametrize(
    ("owner", "names"),
    [
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
def test_private_attributes_that_we_use_exist(owner, names):
    assert names <= set(dir(owner))


def test_our_connection_ends_have_every_attribute_that_layers_read():
    origin = WebOrigin(HostName("good.example"), 443, tls=True)
    client, server = ours.ClientEnd(origin), ours.ServerEnd(origin)
    context = ours.LayerContext(client, server)
    source = "".join(file.read_text() for file in USED)
    assert all(hasattr(context, name) for name in re.findall(r"\bcontext\.([a-z_]+)", source))
    for pattern, ends in ((r"\bconn\.([a-z_]+)", (client, server)), (r"\bcontext\.client\.([a-z_]+)", (client,)),
                          (r"\bcontext\.server\.([a-z_]+)", (server,))):  # fmt: skip
        for name in re.findall(pattern, source):
            assert all(hasattr(end, name) for end in ends), name


def test_our_http2_layers_extend_those_of_mitmproxy():
    assert issubclass(http2.ClientSideHttp2, _http2.Http2Server)
    assert issubclass(http2.ServerSideHttp2, _http2.Http2Client)


def test_replaced_driver_handles_the_reviewed_commands():
    """If the driver of mitmproxy handles more commands, ours may have to as well."""
    source = inspect.getsource(server.ConnectionHandler.server_event)
    handled = re.findall(r"isinstance\(\s*command, commands\.(\w+)", source)
    assert handled == ["OpenConnection", "RequestWakeup", "ConnectionCommand", "SendData", "CloseTcpConnection", "CloseConnection",
                       "StartHook", "Log"]  # fmt: skip


def test_converted_messages_equal_those_of_mitmproxy():
    fields = ((b"Host", b"good.example"), (b"X", b"1"), (b"x", b"2"), (b"Y", b"\xff"))
    head = Head(b"HTTP/2.0", b"GET", b"https", b"good.example", b"/x", fields)
    answer = ResponseHead(b"HTTP/2.0", 200, b"OK", fields)
    request = http.Request(
        "", 0, b"GET", b"https", b"good.example", b"/x", b"HTTP/2.0", http.Headers(fields), None, None, 0, None
    )
    response = http.Response(b"HTTP/2.0", 200, b"OK", http.Headers(fields), None, None, 0, None)
    for converted, theirs in ((request_of(head), request), (response_of(answer), response)):
        converted.data.timestamp_start = theirs.data.timestamp_start
        assert vars(converted.data) == vars(theirs.data)
    assert head_of(request) == head
    assert response_head_of(response) == answer


FIELDS = {
    "": (),
    "close": ((b"Connection", b"close"),),
    "keep-alive": ((b"connection", b"keep-alive"),),
    "keep-alive and length": ((b"Connection", b"Keep-Alive"), (b"Content-Length", b"2")),
    "capitalized close": ((b"Connection", b"Close"),),
    "closed, not close": ((b"Connection", b"closed"), (b"Content-Length", b"2")),
    "both": ((b"Connection", b"keep-alive, close"),),
    "twice": ((b"Connection", b"close"), (b"Connection", b"upgrade")),
    "length": ((b"Content-Length", b"2"),),
    "length and close": ((b"content-length", b"2"), (b"connection", b"close")),
    "chunked": ((b"Transfer-Encoding", b"chunked"),),
    "broken length": ((b"content-length", b"two"),),
}


def test_is_last_agrees_with_mitmproxy():
    outcomes = set()
    methods, statuses, versions = (b"GET", b"HEAD", b"DELETE"), (200, 204, 304), (b"HTTP/1.1", b"HTTP/1.0")
    for request_fields, answer, method, status, first, second in itertools.product(
        FIELDS, FIELDS, methods, statuses, versions, versions
    ):
        head = Head(first, method, b"", b"", b"/", FIELDS[request_fields])
        answered = ResponseHead(second, status, b"OK", FIELDS[answer])
        found = http1.is_last(head, answered)
        request, response = request_of(head), response_of(answered)
        outcomes.add((request_fields, answer, found))
        closes = any(
            http1_messages.connection_close(one.http_version, _lower(one.headers)) for one in (request, response)
        )
        with contextlib.suppress(ValueError):  # mitmproxy continues here as well
            closes = closes or http1_messages.expected_http_body_size(request, response) == -1
        assert found is closes
    assert {
        ("", "length", False),
        ("keep-alive", "keep-alive and length", False),
        ("", "", True),
        ("", "", False),
    } <= outcomes
    assert {
        ("close", "length", True),
        ("", "close", True),
        ("close", "chunked", True),
        ("", "capitalized close", True),
    } <= outcomes


def _lower(headers):
    """Return headers in lower case, because mitmproxy compares connection options case-sensitively."""
    return http.Headers([(name, value.lower()) for name, value in headers.fields])


def test_body_size_and_checked_length_agree_with_mitmproxy():
    names = (b"content-length", b"Content-Length", b"transfer-encoding", b"Transfer-Encoding", b"x y", b"x")
    sizes = (b"2", b"02", b"two", b"", b"2, 2", b"chunked", b"Chunked", b"gzip , chunked", b"gzip", b"identity", b"br")
    every = [(name, value) for name in names for value in sizes]
    outcomes = set()
    for fields, method, status, version in itertools.product(
        [(), *((one,) for one in every), *itertools.product(every[::3], every[::4])],
        (b"GET", b"HEAD"),
        (103, 200, 204, 304),
        (b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0"),
    ):
        ours = ResponseHead(version, status, b"OK", fields)
        theirs = response_of(ours)
        request = request_of(Head(b"HTTP/1.1", method, b"", b"", b"/", ()))
        assert outcome(messages.body_size, method, ours) == outcome(
            http1_messages.expected_http_body_size, request, theirs
        )
        wrong = outcome(validate.validate_headers, theirs) == "error"
        length, checked = outcome(messages.body_size, method, ours), outcome(messages.checked_length, method, ours)
        assert (checked == "error") is wrong
        assert wrong or status < 200 or checked == (None if length == -1 else length)
        outcomes.add(outcome(messages.body_size, method, ours))
    assert outcomes == {-1, 0, 2, None, "error"}


def outcome(function, *arguments):
    try:
        return function(*arguments)
    except ValueError:
        return "error"
