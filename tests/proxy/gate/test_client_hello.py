import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.gate.client_hello import MOST_BYTES, MOST_RECORDS, ClientHello, NeedMore, NotTls, parse_hello
from tests.proxy.gate.gate_lab import (
    client_hello,
    ech_hello,
    extension,
    hello_message,
    made_hello,
    records,
    server_name,
    vector,
)

REAL = client_hello()


def test_client_hello_of_openssl_is_parsed():
    hello = parse_hello(REAL)
    assert (hello.sni, hello.alpn, hello.ech, hello.version) == (
        "good.example", ("h2", "http/1.1"), False, "TLSv1.3",
    )  # fmt: skip
    assert hello.ja4.startswith("t13d")


def test_client_hello_without_a_name_has_no_sni():
    assert parse_hello(client_hello(None, ())).sni is None


def test_partial_hello_asks_for_more_bytes_than_there_are():
    for size in range(len(REAL)):
        more = parse_hello(REAL[:size])
        assert isinstance(more, NeedMore), size
        assert size < more.bytes <= len(REAL), size


def test_hello_read_as_asked_takes_three_reads():
    looks, have = 0, 0
    while isinstance(more := parse_hello(REAL[:have]), NeedMore):
        looks, have = looks + 1, more.bytes
    assert looks == 2
    assert have == len(REAL)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 50, 516])
def test_hello_split_into_records_anywhere_is_parsed(size):
    message = hello_message([server_name(b"good.example")])
    assert parse_hello(records(message, size)) == parse_hello(records(message))


def test_hello_split_into_records_at_every_byte_is_parsed():
    message = hello_message([server_name(b"good.example"), extension(16, vector(vector(b"h2", 1), 2))])
    whole = parse_hello(records(message))
    for size in range(1, len(message)):
        split = records(message, size)
        assert parse_hello(split) == whole
        for cut in (5, 6, len(split) - 1):
            assert isinstance(parse_hello(split[:cut]), NeedMore)


def test_hello_of_too_many_records_is_not_tls():
    message = hello_message([server_name(b"good.example"), extension(21, bytes(300))])
    assert parse_hello(records(message, *[1] * (MOST_RECORDS - 1))).sni == "good.example"
    assert parse_hello(records(message, *[1] * MOST_RECORDS)) is NotTls.NOT_TLS


def test_bytes_after_the_hello_are_ignored():
    assert parse_hello(REAL + b"\x17\x03\x03\x00\x05early") == parse_hello(REAL)


ODD = {
    "http": b"GET / HTTP/1.1\r\n\r\n",
    "ssh": b"SSH-2.0-OpenSSH_9.9\r\n",
    "alert": b"\x15\x03\x03\x00\x02\x02\x28",
    "sslv2": b"\x80\x2e\x01\x03\x01",
    "another major version": b"\x16\x04\x01" + REAL[3:],
    "an empty record": b"\x16\x03\x01\x00\x00" + REAL,
    "a record that is too long": b"\x16\x03\x01\x40\x01\x01",
    "a server hello": b"\x16\x03\x01\x00\x04\x02\x00\x00\x00",
    "more in the record than the hello": records(hello_message([server_name(b"good.example")]) + b"\x01\0\0\0"),
    "a name that says it is longer": made_hello(extension(0, b"\0\x0f\0\0\x0dgood.example")),
    "a name that says it is shorter": made_hello(extension(0, b"\0\x0f\0\0\x0bgood.example")),
    "two names": made_hello(extension(0, vector(b"\0" + vector(b"good.example", 2) + b"\0" + vector(b"evil.example", 2), 2))),
    "two names in two extensions": made_hello(server_name(b"good.example"), server_name(b"evil.example")),
    "an empty name": made_hello(server_name(b"")),
    "an empty list of names": made_hello(extension(0, b"\0\0")),
    "a server's empty answer": made_hello(extension(0)),
    "another type of name": made_hello(extension(0, vector(b"\1" + vector(b"good.example", 2), 2))),
    "any extension twice": made_hello(extension(0x1234), extension(0x1234)),
    "no suites": made_hello(suites=b""),
    "half a suite": made_hello(suites=b"\x13\x01\xc0"),
    "no compression": made_hello(compression=b""),
    "an empty protocol": made_hello(extension(16, vector(b"\0", 2))),
    "protocols that run over": made_hello(extension(16, vector(b"\x05h2", 2))),
    "no protocols": made_hello(extension(16, vector(b"", 2))),
    "half a version": made_hello(extension(43, vector(b"\x03\x04\x03", 1))),
    "extensions that run over": records(b"\x01" + vector(hello_message([server_name(b"a.example")])[4:-1], 3)),
    "a byte after the extensions": records(b"\x01" + vector(hello_message([server_name(b"a.example")])[4:] + b"\0", 3)),
}  # fmt: skip


@pytest.mark.parametrize("data", ODD.values(), ids=ODD.keys())
def test_malformed_hellos_are_not_tls(data):
    assert parse_hello(data) is NotTls.NOT_TLS


def test_hello_without_extensions_is_parsed():
    hello = parse_hello(records(hello_message(None, version=b"\x03\x01")))
    assert (hello.sni, hello.version, hello.ja4[:6]) == (None, "TLSv1", "t10i02")


@pytest.mark.parametrize(
    "name", [b"good.example\0.evil.example", b"xn--\xff", b"a b", b"1.2.3.4", b"::1", b"good.example."]
)
def test_sni_outside_ascii_is_escaped(name):
    assert parse_hello(made_hello(server_name(name))).sni == name.decode("ascii", "backslashreplace")


@pytest.mark.parametrize("number", [0xFE0D, 0xFE0A, 0xFE08, 0xFFCE])
def test_encrypted_client_hello_is_recognised(number):
    assert parse_hello(made_hello(server_name(b"good.example"), extension(number, b"\0" * 8))).ech


def test_grease_version_is_ignored():
    versions = vector(b"\x7a\x7a\x03\x04\x03\x03", 1)
    hello = parse_hello(made_hello(extension(0x2A2A), extension(43, versions), extension(0xDADA, b"\0")))
    assert hello.version == "TLSv1.3"
    assert not hello.ech
    assert parse_hello(ech_hello()).ech


def test_hello_beyond_the_maximum_size_is_not_tls():
    assert parse_hello(b"\x16\x03\x01\x40\x00\x01\xff\xff\xff" + bytes(MOST_BYTES)) is NotTls.NOT_TLS
    assert isinstance(parse_hello(b"\x16\x03\x01\x40\x00\x01\xff\xff\xff"), NeedMore)


@given(st.binary(max_size=300))
def test_random_bytes_raise_nothing(data):
    assert isinstance(parse_hello(data), ClientHello | NeedMore | NotTls)
    assert isinstance(
        parse_hello(b"\x16\x03\x01" + vector(b"\x01" + vector(data, 3), 2)), ClientHello | NeedMore | NotTls
    )


@given(st.integers(0, len(REAL) - 1), st.integers(0, 255), st.integers(0, len(REAL)))
def test_damaged_hello_raises_nothing_and_asks_only_for_more(at, byte, size):
    damaged = bytearray(REAL)
    damaged[at] = byte
    found = parse_hello(bytes(damaged[:size]))
    assert not isinstance(found, NeedMore) or found.bytes > size


@given(st.lists(st.integers(1, 60), max_size=20))
def test_fragmented_hello_parses_like_a_whole_one(sizes):
    message = hello_message([server_name(b"good.example"), extension(0x3A3A), extension(35, b"ticket")])
    assert parse_hello(records(message, *sizes)) == parse_hello(records(message))
