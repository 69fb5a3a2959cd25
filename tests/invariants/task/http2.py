"""HTTP/2 requests whose :authority, Host and SNI are not one."""

from .attempts import attempt, reason
from .wire import EVIL_NAME, connect, tls, understood


def ask2(stream, *requests):
    """Send requests as they are written, on one connection; return the answer to each."""
    import h2.config
    import h2.connection
    import h2.events

    settings = h2.config.H2Configuration(
        client_side=True, header_encoding="utf-8", validate_outbound_headers=False, normalize_outbound_headers=False
    )
    connection = h2.connection.H2Connection(settings)
    connection.initiate_connection()
    said = []
    try:
        for headers in requests:
            number = connection.get_next_available_stream_id()
            connection.send_headers(number, headers, end_stream=True)
            stream.sendall(connection.data_to_send())
            said.append(_answer(connection, stream, number, h2.events))
    except OSError as error:
        said.append({"error": reason(error)})
    return said


def _answer(connection, stream, number, events):
    fields, body = {}, b""
    while True:
        if not (data := stream.recv(65536)):
            return {"error": "eof"}
        for event in connection.receive_data(data):
            if isinstance(event, events.ConnectionTerminated):
                return {"error": f"GOAWAY {event.error_code!r}"}
            if getattr(event, "stream_id", None) != number:
                continue
            if isinstance(event, events.ResponseReceived):
                fields = dict(event.headers)
            elif isinstance(event, events.DataReceived):
                body += event.data
                connection.acknowledge_received_data(event.flow_controlled_length, number)
            elif isinstance(event, events.StreamReset):
                return {"error": f"RST_STREAM {event.error_code!r}"}
            elif isinstance(event, events.StreamEnded):
                return understood(int(fields[":status"]), fields, body)
        stream.sendall(connection.data_to_send())


def headers(authority, *more, path="/echo", scheme="https", method="GET"):
    named = [(":authority", authority)] if authority else []
    return [(":method", method), (":scheme", scheme), *named, (":path", path), *more]


def h2_to(host):
    stream = tls(host, alpn=("h2",))
    assert stream.tls.selected_alpn_protocol() == "h2"
    return stream


@attempt()
def h2_good(host):
    return ask2(h2_to(host), headers(host), headers(host))


@attempt()
def h2_another_authority(host):
    return ask2(h2_to(host), headers(EVIL_NAME))


@attempt()
def h2_another_authority_on_the_second_stream(host):
    return ask2(h2_to(host), headers(host), headers(EVIL_NAME))


@attempt()
def h2_another_host_beside_the_authority(host):
    return ask2(h2_to(host), headers(host, ("host", EVIL_NAME)))


@attempt()
def h2_another_host_and_no_authority(host):
    return ask2(h2_to(host), headers(None, ("host", EVIL_NAME)))


@attempt()
def h2_two_authorities(host):
    return ask2(h2_to(host), headers(host, (":authority", EVIL_NAME)))


@attempt()
def h2_connect(host):
    return ask2(h2_to(host), [(":method", "CONNECT"), (":authority", f"{EVIL_NAME}:443")])


@attempt()
def h2_extended_connect(host):
    return ask2(h2_to(host), headers(host, (":protocol", "websocket"), method="CONNECT"))


@attempt()
def h2_newline_in_a_field(host):
    return ask2(h2_to(host), headers(host, ("x", f"y\r\nHost: {EVIL_NAME}\r\n\r\nGET /stolen HTTP/1.1")))


@attempt()
def h2_newline_in_the_path(host):
    return ask2(h2_to(host), headers(host, path=f"/echo HTTP/1.1\r\nHost: {EVIL_NAME}\r\n\r\nGET /stolen"))


@attempt()
def h2_without_tls(host):
    return ask2(connect(host, 80), headers(host, scheme="http"))
