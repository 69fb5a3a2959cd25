"""Addresses: every spelling that a C library takes is one value, and what is public is a short list of exceptions."""

import socket
from ipaddress import IPv4Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules.values.addresses import (
    BLOCKS,
    Opening,
    find_block,
    network_opens,
    normalize,
    parse_address,
    parse_host,
    parse_network,
    why_not_public,
)
from rules.values.names import InvalidNameError

SPELLINGS = [
    ("127.0.0.1", "127.0.0.1"),
    ("2130706433", "127.0.0.1"),
    ("0x7f000001", "127.0.0.1"),
    ("0X7F.1", "127.0.0.1"),
    ("0x7f.1", "127.0.0.1"),
    ("0177.0.0.1", "127.0.0.1"),
    ("017700000001", "127.0.0.1"),
    ("127.1", "127.0.0.1"),
    ("127.0.1", "127.0.0.1"),
    ("127.0.0.1.", "127.0.0.1"),
    ("2852039166", "169.254.169.254"),
    ("0", "0.0.0.0"),
    ("[::1]", "::1"),
    ("[::ffff:127.0.0.1]", "127.0.0.1"),
    ("[::FFFF:7f00:1]", "127.0.0.1"),
    ("[0:0:0:0:0:ffff:10.0.0.1]", "10.0.0.1"),
    ("::1", "::1"),
    ("2001:DB8::0001", "2001:db8::1"),
]


@pytest.mark.parametrize(("text", "address"), SPELLINGS)
def test_every_spelling_is_one_address(text, address):
    assert parse_host(text) == ip_address(address)


@pytest.mark.parametrize(
    "text",
    ["256.0.0.1", "1.2.3.256", "1.2.65536", "1.16777216", "4294967296", "08.0.0.1", "0o17.0.0.1", "0x.1", "0x0x1.1", "1..1", "1.2.3.4.5", "-1.2.3.4", "+1.2.3.4", "1_0.0.0.1", "1.2.3.4 ", "٣.1.1.1", "1" * 5000,
     "[1.2.3.4]", "[::1", "::1]", "[]", "[fe80::1%eth0]", "fe80::1%1", "[::1]:443", "1.2.3.4:443", "::ffff:1.2.3.4%x.allowed.com", "[::ffff:0x7f.1]", ":::", "1::2::3", "::ffff:1.2.3.4.5"],
)  # fmt: skip
def test_malformed_addresses_are_refused(text):
    with pytest.raises(InvalidNameError):
        parse_host(text)


@given(st.from_regex(r"\A[0-9a-fxX.]{1,24}\Z"))
def test_spellings_agree_with_the_c_library(text):
    """glibc's inet_aton also takes white space and what follows it; that is not in the alphabet here."""
    try:
        expected = IPv4Address(socket.inet_aton(text))
    except OSError:
        assert parse_address(text) is None
    else:
        assert parse_address(text) in {expected, None}
        if not text.endswith(".") and "0x." not in text.lower() and not text.lower().endswith("0x"):
            assert parse_address(text) == expected


NOT_PUBLIC = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.127.255.255", "100.100.100.200", "127.0.0.1", "127.255.255.255",
    "169.254.0.1", "169.254.169.254", "168.63.129.16", "172.16.0.1", "172.31.255.255", "192.0.0.1", "192.0.0.9",
    "192.0.2.1", "192.88.99.1", "192.168.255.255", "198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1",
    "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::2", "::ffff:10.0.0.1", "::ffff:0:10.0.0.1", "::10.0.0.1", "::8.8.8.8", "64:ff9b::a9fe:a9fe",
    "64:ff9b::8.8.8.8", "64:ff9b:1::1", "100::1", "100:0:0:1::1", "2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2001:2::1", "2001:10::1", "2001:20::1", "2001:db8::1", "2002:a00:1::", "2002:808:808::", "3fff::1", "4000::1",
    "5f00::1", "8000::1", "fc00::1", "fd00:ec2::254", "fd20:ce::254", "fe80::1", "febf::1", "fec0::1", "ff02::1",
]  # fmt: skip
PUBLIC = ["1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255", "172.15.255.255", "172.32.0.0", "192.0.1.0", "198.17.255.255", "198.20.0.0", "223.255.255.255", "2001:200::1", "2606:4700::1111", "2a00::1", "::ffff:8.8.8.8"]  # fmt: skip


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_nonpublic_blocks_are_recognised(address):
    assert why_not_public(normalize(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_recognised(address):
    assert why_not_public(normalize(address)) is None


@given(st.ip_addresses())
def test_addresses_private_in_python_are_not_public(address):
    """Python's own registry, older and with exceptions, must never be stricter than ours."""
    address = normalize(address)
    if not address.is_global or address.is_multicast:
        assert why_not_public(address), address


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: str(block.network))
def test_address_at_block_edge_is_in_smallest_block(block):
    kind, most = type(block.network.network_address), (1 << block.network.max_prefixlen) - 1
    for edge in (int(block.network.network_address), int(block.network.broadcast_address)):
        for address in (kind(number) for number in (edge - 1, edge, edge + 1) if 0 <= number <= most):
            holding = [b for b in BLOCKS if b.network.version == address.version and address in b.network]
            assert find_block(address) is max(holding, key=lambda b: b.network.prefixlen, default=None), address


@given(st.sampled_from(BLOCKS), st.data())
def test_whole_nonpublic_block_is_closed(block, data):
    number = data.draw(st.integers(int(block.network.network_address), int(block.network.broadcast_address)))
    address = type(block.network.network_address)(number)
    assert find_block(address) is not None


OPENS = [
    # the rule lists, it opens, it does not open
    ("10.0.0.0/8", ["10.1.2.3"], ["11.0.0.1", "192.168.0.1"]),
    ("10.20.0.0/16", ["10.20.0.1"], ["10.21.0.1"]),
    ("0.0.0.0/0", ["1.1.1.1", "223.1.1.1"], ["10.0.0.1", "127.0.0.1", "169.254.169.254", "192.168.1.1", "::1", "2606:4700::1"]),
    ("8.0.0.0/6", ["8.8.8.8", "9.1.1.1", "11.1.1.1"], ["10.0.0.1"]),
    ("169.254.0.0/16", [], ["169.254.0.1", "169.254.169.254"]),
    ("169.254.169.254/31", [], ["169.254.169.254", "169.254.169.255"]),
    ("169.254.169.254", ["169.254.169.254"], ["169.254.169.253"]),
    ("100.64.0.0/10", ["100.64.0.1"], ["100.100.100.200"]),
    ("100.100.100.200", ["100.100.100.200"], []),
    ("168.63.129.0/24", ["168.63.129.1"], ["168.63.129.16"]),
    ("127.0.0.0/8", [], ["127.0.0.1", "0.0.0.0"]),  # services of the host have a name: own_names
    ("0.0.0.0", [], ["0.0.0.0"]),
    ("224.0.0.1", [], ["224.0.0.1"]),
    ("::/0", ["2606:4700::1"], ["::1", "fe80::1", "fc00::1", "64:ff9b::808:808", "1.1.1.1", "10.0.0.1"]),
    ("fc00::/7", ["fd00::1"], ["fd00:ec2::254", "fe80::1"]),
    ("fd00:ec2::254", ["fd00:ec2::254"], []),
    ("fe80::/10", [], ["fe80::1"]),
    ("64:ff9b::/96", [], ["64:ff9b::a00:1"]),
    ("2002::/16", [], ["2002:a00:1::"]),
    ("::ffff:10.0.0.0/104", ["10.1.1.1"], ["11.1.1.1"]),
]  # fmt: skip


@pytest.mark.parametrize(("listed", "opened", "closed"), OPENS, ids=[row[0] for row in OPENS])
def test_network_allows_its_addresses(listed, opened, closed):
    network = parse_network(listed)
    assert [a for a in opened if not network_opens(network, normalize(a))] == []
    assert [a for a in closed if network_opens(network, normalize(a))] == []


@given(st.ip_addresses(), st.integers(0, 128))
def test_no_network_allows_forbidden_addresses(address, length):
    address = normalize(address)
    block = find_block(address)
    if block is None or block.opening is not Opening.NEVER:
        return
    network = parse_network(str(address)).supernet(new_prefix=min(length, address.max_prefixlen))
    assert not network_opens(network, address)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("10.0.0.1/8", "write `10.0.0.0/8`"),
        ("10.1/16", "leaves parts out"),
        ("010.0.0.1", "write `8.0.0.1`"),
        ("010.0.0.0/8", "write `8.0.0.0`"),
        ("10.0.0.0/33", "more than 32 bits"),
        ("10.0.0.0/", "no prefix length"),
        ("10.0.0.0/-1", "no prefix length"),
        ("10.0.0.0/255.0.0.0", "no prefix length"),
        ("::ffff:10.0.0.0/8", "wider than"),
        ("::1%lo", "not an address"),
        ("example.com/8", "not an address"),
        ("fe80::1/10", "write `fe80::/10`"),
    ],
)
def test_malformed_network_is_an_error_with_a_correction(text, says):
    with pytest.raises(ValueError, match=r".") as error:
        parse_network(text)
    assert says in str(error.value)


def test_zone_id_is_refused_in_every_form():
    with pytest.raises(ValueError, match="zone"):
        normalize(ip_address("fe80::1%eth0"))
