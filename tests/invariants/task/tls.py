"""ClientHellos that hide their name, and bytes on port 443 that are no TLS."""

import socket

from . import hellos
from .attempts import attempt
from .wire import EVIL_NAME, Tls, ask, connect, request, tls, until_the_end


@attempt()
def no_sni(host):
    return ask(tls(host, None), request(host))


@attempt("spliced")
def no_sni_spliced(host):
    return ask(tls(host, None), request(host))


@attempt()
def one_byte_segments(host):
    return ask(tls(host, rewrite=hellos.one_byte_segments), request(host))


@attempt("spliced")
def one_byte_segments_spliced(host):
    return ask(tls(host, rewrite=hellos.one_byte_segments), request(host))


@attempt()
def one_byte_segments_of_a_denied_sni(host):
    return ask(tls(host, EVIL_NAME, rewrite=hellos.one_byte_segments), request(host))


@attempt()
def several_records(host):
    return ask(tls(host, rewrite=hellos.several_records), request(host))


@attempt("spliced")
def several_records_of_a_denied_sni(host):
    return ask(tls(host, EVIL_NAME, rewrite=hellos.several_records), request(host))


@attempt("spliced")
def encrypted_client_hello(host):
    return ask(tls(host, rewrite=hellos.with_encrypted_client_hello), request(host))


@attempt()
def sni_2130706433(host):
    return ask(tls(host, "2130706433"), request(host))


@attempt()
def sni_0x7f_1(host):
    return ask(tls(host, "0x7f.1"), request(host))


@attempt()
def sni_localhost_with_a_dot(host):
    return ask(tls(host, "localhost."), request(host))


@attempt("spliced")
def half_a_hello_and_the_end(host):
    sock = connect(host, 443)
    sock.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03")
    sock.shutdown(socket.SHUT_WR)
    return until_the_end(sock)


@attempt()
def no_tls_on_443(host):
    sock = connect(host, 443)
    sock.sendall(b"SSH-2.0-smuggler\r\n")
    return until_the_end(sock)


@attempt("spliced")
def no_tls_on_443_spliced(host):
    return no_tls_on_443(host)


@attempt()
def http_on_443(host):
    return ask(connect(host, 443), request(host))


@attempt("spliced")
def a_record_that_is_no_hello(host):
    sock = connect(host, 443)
    sock.sendall(b"\x16\x03\x01\x00\x04\x02\x00\x00\x00" + request(EVIL_NAME))
    return until_the_end(sock)


class _Inside:
    """The socket of a second TLS inside the first."""

    def __init__(self, outer):
        self.sendall, self.recv, self.close = outer.sendall, outer.recv, outer.close


@attempt()
def tls_in_tls(host):
    return ask(Tls(_Inside(tls(host)), EVIL_NAME), request(EVIL_NAME))


@attempt()
def tls_in_tls_for_the_same_name(host):
    return ask(Tls(_Inside(tls(host)), host), request(host))


@attempt()
def tls_in_the_clear_port(host):
    return ask(Tls(connect(host, 80), host), request(host))


@attempt()
def not_http_inside_tls(host):
    stream = tls(host)
    stream.sendall(b"SSH-2.0-smuggler\r\n")
    return until_the_end(stream)


@attempt()
def another_application_by_alpn(host):
    return ask(tls(host, alpn=("ssh",)), b"SSH-2.0-smuggler\r\n")


@attempt()
def urgent_data_first(host):
    sock = connect(host, 443)
    sock.send(b"!", socket.MSG_OOB)
    sock.shutdown(socket.SHUT_WR)
    return until_the_end(sock)


@attempt("raw")
def urgent_data_passed_on(host):
    """The echo behind a spliced connection gives everything back, in order, the urgent byte at its place."""
    sock = connect(host, 22)
    got = sock.recv(1000)
    sock.sendall(b"before ")
    sock.send(b"!", socket.MSG_OOB)
    sock.sendall(b" after")
    sock.shutdown(socket.SHUT_WR)
    while data := sock.recv(1000):
        got += data
    return {"got": got.decode()}
