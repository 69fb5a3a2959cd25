"""Cuts: what is torn off must look torn off."""

from .attempts import attempt
from .wire import answer, connect, request, tls, until_the_end


def _torn(stream, host, path):
    stream.sendall(request(host, path))
    return answer(stream)


@attempt()
def reset_in_the_body(host):
    return _torn(tls(host), host, "/reset/100000")


@attempt("spliced")
def reset_in_the_body_spliced(host):
    return _torn(tls(host), host, "/reset/100000")


@attempt()
def reset_in_the_body_in_the_clear(host):
    return _torn(connect(host, 80), host, "/reset/100000")


@attempt("raw")
def end_of_a_raw_connection(host):
    """An ordinary end stays an ordinary end."""
    sock = connect(host, 22)
    sock.shutdown(1)
    return until_the_end(sock)
