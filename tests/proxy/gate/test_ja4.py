"""JA4 by its published example and by what its description says, and of real hellos."""

import random

import pytest

from proxy.gate.client_hello import ja4, parse_hello
from tests.proxy.gate.gate_lab import client_hello, extension, made_hello, server_name, vector


def numbers(text):
    return [int(each, 16) for each in text.split()]


# FoxIO's example, a browser
CIPHERS = numbers("1301 1302 1303 c02b c02f c02c c030 cca9 cca8 c013 c014 009c 009d 002f 0035")
EXTENSIONS = numbers("001b 0000 0033 0010 4469 0017 002d 000d 0005 0023 0012 002b ff01 000b 000a 0015")
SIGNATURES = numbers("0403 0804 0401 0503 0805 0501 0806 0601")
EXAMPLE = "t13d1516h2_8daaf6152771_e5627efa2ab1"


def packed(numbers):
    return b"".join(number.to_bytes(2) for number in numbers)


def made(version=0x0304, ciphers=CIPHERS, extensions=EXTENSIONS, signatures=SIGNATURES, alpn=b"h2"):
    return ja4(version, packed(ciphers), packed(extensions), packed(signatures), alpn)


def test_ja4_of_the_published_example():
    assert made() == EXAMPLE


def test_ja4_ignores_grease_and_the_order_of_suites_and_extensions():
    draw = random.Random(4)
    for _ in range(5):
        ciphers = draw.sample([0x0A0A, *CIPHERS], len(CIPHERS) + 1)
        extensions = draw.sample([0xFAFA, 0x1A1A, *EXTENSIONS], len(EXTENSIONS) + 2)
        assert made(ciphers=ciphers, extensions=extensions, signatures=[0x2A2A, *SIGNATURES]) == EXAMPLE


def test_ja4_depends_on_the_order_of_signatures():
    assert made(signatures=SIGNATURES[::-1]).rpartition("_")[0] == EXAMPLE.rpartition("_")[0]
    assert made(signatures=SIGNATURES[::-1]) != EXAMPLE


@pytest.mark.parametrize(
    ("what", "begins"),
    [
        ({"version": 0x0303}, "t12d1516h2_"),
        ({"version": 0x0300}, "ts3d1516h2_"),
        ({"version": 0x7F1C}, "t00d1516h2_"),
        ({"extensions": EXTENSIONS[:1]}, "t13i1501h2_"),
        ({"alpn": b""}, "t13d151600_"),
        ({"alpn": b"http/1.1"}, "t13d1516h1_"),
        ({"alpn": b"a"}, "t13d1516aa_"),
        ({"alpn": b"\xab"}, "t13d1516ab_"),
        ({"alpn": b"0\xab"}, "t13d15163b_"),
        ({"ciphers": range(200)}, "t13d9916h2_"),
        ({"extensions": range(1, 200)}, "t13i1599h2_"),
        ({"ciphers": [0x0A0A]}, "t13d0016h2_000000000000_"),
    ],
    ids=str,
)
def test_ja4_prefix_has_version_sni_counts_and_alpn(what, begins):
    assert made(**what).startswith(begins)


def test_ja4_without_extensions_or_signatures():
    assert made(extensions=[]).endswith("_000000000000")
    assert made(extensions=[0, 16]).endswith("_000000000000")
    assert made(signatures=[]) not in {EXAMPLE, made(signatures=[0])}


def test_ja4_is_the_same_for_every_host():
    first, second, bare = (parse_hello(client_hello(*how)) for how in (("a.example",), ("bee.example",), (None, ())))
    assert first.ja4 == second.ja4
    assert first.ja4[:4] == "t13d"
    assert bare.ja4[:4] == "t13i"


def test_ja4_of_a_parsed_hello_matches_its_fields():
    schemes = extension(13, vector(b"\x04\x03\x08\x04", 2))
    protocols = extension(16, vector(vector(b"h2", 1), 2))
    hello = parse_hello(made_hello(server_name(b"a.example"), schemes, protocols, extension(0x0A0A)))
    assert hello.ja4 == made(0x0303, [0x1301, 0xC02F], [0, 13, 16], [0x0403, 0x0804])


@pytest.mark.parametrize("body", [b"", b"\x00", b"\x00\x02\x04", b"\x00\x01\x04", b"\x00\x04\x04\x03"], ids=bytes.hex)
def test_malformed_signature_schemes_are_ignored(body):
    assert parse_hello(made_hello(extension(13, body))).ja4 == made(0x0303, [0x1301, 0xC02F], [13], [], b"")


def test_hello_with_thousands_of_entries_has_no_ja4():
    many = [extension(number) for number in range(1000, 5000)]
    hello = parse_hello(made_hello(server_name(b"a.example"), *many))
    assert (hello.sni, hello.ja4) == ("a.example", None)
