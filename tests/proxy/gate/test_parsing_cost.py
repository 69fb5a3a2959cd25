"""What costs most of what a task can send before anything is decided: each is read in one step, which takes little."""

import contextlib
import struct
from time import thread_time

import pytest

from proxy.dns.wire import MalformedQueryError, parse_query
from proxy.gate.client_hello import ClientHello, NotTls, parse_hello
from tests.support.processor_time import check, measured_again


def _extension(number, data):
    return struct.pack(">HH", number, len(data)) + data


def _hello(extensions, ciphers=b"\x13\x01", piece=16384):
    body = b"\x03\x03" + bytes(32) + b"\0" + struct.pack(">H", len(ciphers)) + ciphers + b"\1\0"
    body += struct.pack(">H", len(extensions)) + extensions
    message = b"\1" + len(body).to_bytes(3) + body
    pieces = [message[at : at + piece] for at in range(0, len(message), piece)]
    return b"".join(b"\x16\x03\x01" + struct.pack(">H", len(one)) + one for one in pieces)


HELLOS = {
    "extensions": (_hello(b"".join(_extension(100 + number, b"") for number in range(3500))), ClientHello),
    "protocols": (_hello(_extension(16, struct.pack(">H", 15000) + b"\1a" * 7500)), ClientHello),
    "more than there may be": (_hello(b"".join(_extension(number, b"") for number in range(15000))), NotTls),
    "records of one byte": (_hello(_extension(16, b"\0\3\2h2") * 800, piece=1), NotTls),
}
QUESTION = b"\0\1\1\0\0\1\0\0\0\0\0\1\1a\0\0\1\0\1"
QUERIES = {
    "options": QUESTION + b"\0\0\x29\4\0\0\0\0\0" + struct.pack(">H", 4000) + b"\0\1\0\0" * 1000,
    "records": QUESTION[:10] + b"\1\x60" + QUESTION[12:] + b"\0\0\x29\4\0\0\0\0\0\0\0" * 350,
    "labels": QUESTION[:12] + b"\1a" * 2000 + b"\0\0\1\0\1",
}


@pytest.mark.parametrize(("data", "kind"), HELLOS.values(), ids=HELLOS)
@measured_again
def test_costly_client_hellos_are_parsed_in_bounded_time(data, kind):
    before = thread_time()
    read = parse_hello(data)
    check(thread_time() - before)
    assert isinstance(read, kind)


@pytest.mark.parametrize("data", QUERIES.values(), ids=QUERIES)
@measured_again
def test_costly_dns_queries_are_parsed_in_bounded_time(data):
    before = thread_time()
    with contextlib.suppress(MalformedQueryError):
        parse_query(data)
    check(thread_time() - before)
