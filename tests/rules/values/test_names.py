"""Host names: one normal form, and rejection of spellings that have bypassed other gates."""

# ruff: noqa: RUF001  (look-alikes are what is tested)

import copy
import pickle
from ipaddress import ip_address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rules.values.addresses import parse_address, parse_host
from rules.values.names import HostName, InvalidNameError
from rules.values.patterns import NamePattern

NORMAL = [
    ("example.com", "example.com"),
    ("EXAMPLE.com", "example.com"),
    ("example.com.", "example.com"),
    ("localhost.", "localhost"),
    ("bücher.example", "xn--bcher-kva.example"),
    ("BÜCHER.example", "xn--bcher-kva.example"),
    ("xn--bcher-kva.example", "xn--bcher-kva.example"),
    ("faß.example", "xn--fa-hia.example"),  # nontransitional: not fass.example
    ("ｅｘａｍｐｌｅ．ｃｏｍ", "example.com"),  # full width
    ("example。com", "example.com"),  # look-alike dots
    ("example｡com", "example.com"),
    ("exa\u00admple.com", "example.com"),  # a soft hyphen maps to nothing
    ("xn--n3h.example", "xn--n3h.example"),  # an emoji: no IDNA, but in DNS
    ("_acme-challenge.example.com", "_acme-challenge.example.com"),
    ("my_service", "my_service"),
    ("r1---sn-abc.example.com", "r1---sn-abc.example.com"),
    ("a" * 63 + ".example", "a" * 63 + ".example"),
    (".".join(["a" * 49] * 5) + ".aa", ".".join(["a" * 49] * 5) + ".aa"),  # 252 bytes
    ("1.example", "1.example"),
    ("0x.example", "0x.example"),
]

INVALID = [
    "",
    ".",
    "..",
    "example..com",
    ".example.com",
    "example.com..",
    "a" * 64 + ".com",
    ".".join(["a" * 49] * 5) + ".aaaa",  # 254 bytes
    "a" * 100_000,
    "evil\0.allowed",
    "evil.com\0.allowed.com",
    "a b.com",
    " example.com",
    "example.com\n",
    "a\tb.com",
    "example.com\r\nHost: evil",
    "a%b.com",
    "%2e.com",
    "::ffff:1.2.3.4%x.allowed.com",
    "fe80::1%eth0",
    "user@example.com",
    "example.com:443",
    "https://example.com",
    "example.com/x",
    "*.example.com",
    "-a.example",
    "a-.example",
    "a.b_c",  # no top-level domain has an underscore
    "1.2.3.4",
    "1.2.3.4.5",
    "256.256.256.256",
    "08.1.1.1",
    "example.1",
    "example.0x1",
    "example.0x",
    "１２７.0.0.1",
    "127。0。0。1",
    "xn--.com",
    "xn--a-.com",
    "xn--example-.com",
    "xn--EXAMPLE-9999999999999999999.com",
    "☃.net",  # not IDNA 2008; its A-label may be written
    "a\u202eb.com",
    "a\ud800b.com",
    "℀.com",  # maps to a/c
    "a\u2044b.com",
]


@pytest.mark.parametrize(("text", "name"), NORMAL)
def test_name_has_one_normal_form(text, name):
    assert HostName.parse(text) == name
    assert HostName(text) == name
    assert parse_host(text) == name


@pytest.mark.parametrize("text", INVALID)
def test_malformed_names_are_refused(text):
    with pytest.raises(InvalidNameError) as error:
        HostName.parse(text)
    assert str(error.value).isprintable(), "what a sandbox wrote reaches a terminal raw"
    assert len(str(error.value)) < 300


def test_unnormalised_name_cannot_be_constructed():
    name = HostName("Example.COM.")
    assert name == "example.com"
    assert name.labels == ("example", "com")
    assert pickle.loads(pickle.dumps(name)) == copy.deepcopy(name) == name
    assert type(copy.copy(name)) is HostName


@given(st.text(max_size=80))
@example("ẞ.com")
@example("ǅ.com")
@example("xn--a\u00b9.com")
def test_normalising_is_idempotent_and_ascii(text):
    try:
        name = HostName.parse(text)
    except InvalidNameError:
        return
    assert HostName.parse(name) == name
    assert HostName.parse(name.upper()) == name
    assert HostName.parse(name + ".") == name
    assert name.isascii()
    assert 0 < len(name) <= 253


@given(st.text(alphabet="0123456789abcdefxX.:[]%-*ÿ１。", max_size=40))
def test_text_is_a_name_or_an_address_never_both(text):
    try:
        host = parse_host(text)
    except InvalidNameError:
        return
    if isinstance(host, HostName):
        assert parse_address(text) is None
        assert parse_address(host) is None, "a resolver would take this name for an address"
    else:
        assert host == ip_address(str(host))


MATCHING = [
    # pattern, covered, not covered
    ("example.com", ["example.com"], ["www.example.com", "xample.com", "example.com.evil.net", "example.org", "com"]),
    (
        "*.example.com",
        ["a.example.com", "a.b.c.example.com"],
        ["example.com", "evilexample.com", "a.example.com.evil.net"],
    ),
    ("**.example.com", ["example.com", "a.example.com", "a.b.example.com"], ["evilexample.com", "example.com.evil"]),
    ("*", ["example.com", "localhost", "a.b.c.d"], []),
    (
        "region*.example.com",
        ["region1.example.com", "region.example.com"],
        ["a.region1.example.com", "xregion1.example.com", "region1.x.example.com"],
    ),
    (
        "*-prod.example.com",
        ["a-prod.example.com"],
        ["prod.example.com", "a-prod.b.example.com", "a-prod-b.example.com"],
    ),
    (
        "a*b*c.example.com",
        ["abc.example.com", "axxbyyc.example.com"],
        ["acb.example.com", "abcd.example.com", "ab.c.example.com"],
    ),
    ("a.*.example.com", ["a.x.example.com"], ["a.example.com", "a.x.y.example.com", "b.x.example.com"]),
    ("*.*.example.com", ["a.b.example.com", "a.b.c.example.com"], ["a.example.com", "example.com"]),
    ("**.*.example.com", ["b.example.com", "a.b.example.com"], ["example.com"]),
    ("*.r*.example.com", ["a.r1.example.com", "a.b.r.example.com"], ["r1.example.com", "a.x.example.com"]),
    ("Bücher.Example", ["xn--bcher-kva.example"], ["bcher.example"]),
    ("*.bücher.example", ["a.xn--bcher-kva.example"], ["xn--bcher-kva.example"]),
    ("*.EXAMPLE.com.", ["a.example.com"], ["example.com"]),
]


@pytest.mark.parametrize(("pattern", "covered", "others"), MATCHING, ids=[row[0] for row in MATCHING])
def test_pattern_matches_names(pattern, covered, others):
    parsed = NamePattern.parse(pattern)
    for name in covered:
        assert parsed.matches(HostName(name)), name
    for name in others:
        assert not parsed.matches(HostName(name)), name


@pytest.mark.parametrize(
    "text",
    ["**", "***", "*.", ".*", "*.*", "**.*", "**.[*]", "[*]", "*.com*", "*..com", "a.**.com", "a**.com", "**.**.com", "*.1", "a.*", "*.*.*", "*.bü*cher.com", "*.a/b", "x" * 64 + "*.com", "* .com", "*.exa mple.com"],
)  # fmt: skip
def test_pattern_never_contains_a_wider_one(text):
    with pytest.raises(InvalidNameError):
        NamePattern.parse(text)
