from ipaddress import IPv4Network, ip_address

import pytest

from proxy.dns import names as remembered
from proxy.dns.names import KEPT, MOST_DENIED, MOST_NAMES, NameTable
from rules.settings import DEFAULT_DNS_POOL
from rules.values.names import HostName
from tests.proxy.gate.gate_lab import OWN

A, B, C = (HostName(f"{letter}.example") for letter in "abc")


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def table(pool, clock, own=()):
    return NameTable(IPv4Network(pool), own, clock)


def names(count):
    return (HostName(f"n{number}.example") for number in range(count))


def test_each_name_has_one_synthetic_address(clock):
    made = table("198.18.0.0/15", clock)
    a, b = made.address_for(A, denied=False), made.address_for(B, denied=False)
    assert a != b
    assert made.address_for(A, denied=False) == a
    assert (made.name_of(a), made.name_of(b), made.names_of(a)) == (A, B, (A,))
    assert made.covers(a)


def test_denied_names_use_their_own_part_of_the_pool(clock):
    made = table("198.18.0.0/15", clock)
    denied = {made.address_for(name, denied=True) for name in names(MOST_DENIED)}
    assert None in denied  # the last of the pool is nobody's
    assert made.address_for(A, denied=True) is None
    a = made.address_for(A, denied=False)
    assert a not in denied
    assert made.name_of(a) == A
    assert all(made.name_of(address) for address in denied - {None})


def test_address_of_another_sandbox_has_no_name(clock):
    mine, other = table("198.18.0.0/15", clock), table("198.18.0.0/15", clock)
    a = mine.address_for(A, denied=False)
    assert other.name_of(a) is None
    assert other.address_for(B, denied=False) == a
    assert mine.name_of(a) == A


@pytest.mark.parametrize("pool", ["198.18.0.0/24", "198.18.0.0/28", "10.9.8.0/30"])
def test_address_is_of_the_pool_and_not_the_sandboxs_own(clock, pool):
    network = IPv4Network(pool)
    own = [network[1], network[-2], ip_address("fd00::2")]
    made = table(pool, clock, own)
    given = [made.address_for(name, denied=denied) for denied in (False, True) for name in names(300)]
    addresses = [address for address in given if address is not None]
    assert len(set(addresses)) == len(addresses)
    assert all(address in network for address in addresses)
    assert not {network[0], network[-1], *own} & set(addresses)


def test_exhausted_pool_takes_no_address_away(clock):
    made = table("198.18.0.0/28", clock)
    given = [made.address_for(name, denied=False) for name in names(40)]
    there = [address for address in given if address]
    assert len(there) == 14
    assert given[14:] == [None] * 26
    assert [made.name_of(address) for address in there] == list(names(14))


def test_address_is_reused_only_an_hour_after_its_last_answer(clock):
    made = table("198.18.0.0/28", clock)
    given = [made.address_for(name, denied=False) for name in names(14)]
    first, second = list(names(2))
    clock.now += KEPT
    assert made.address_for(first, denied=False) == given[0]  # asked for again: it begins anew
    assert made.name_of(given[1]) == second
    assert made.address_for(A, denied=False) is None
    clock.now += 1
    assert made.name_of(given[1]) is None  # means nothing any more, and not yet something else
    assert made.address_for(A, denied=False) == given[1]
    assert (made.name_of(given[1]), made.name_of(given[0])) == (A, first)


def test_pool_part_in_use_gives_no_address_until_it_is_free(clock):
    made = NameTable(DEFAULT_DNS_POOL, (OWN,), clock, before=8, wait=60.0)
    assert made.address_for(A, denied=False) is None
    assert made.address_for(B, denied=True) is not None
    clock.now += 60
    assert made.address_for(A, denied=False) == NameTable(DEFAULT_DNS_POOL, (OWN,), clock, before=0).address_for(
        A, denied=False
    )


def test_name_table_is_bounded(clock):
    made = NameTable(DEFAULT_DNS_POOL, (OWN,), clock)
    given = [made.address_for(name, denied=False) for name in names(MOST_NAMES + 10)]
    assert given[MOST_NAMES - 1] is not None
    assert given[MOST_NAMES:] == [None] * 10


def test_address_that_was_never_leased_has_no_name(clock):
    made = table("198.18.0.0/15", clock)
    for text in ("198.18.3.4", "198.19.255.255", "8.8.8.8", "::1", "::c612:1"):
        assert made.name_of(ip_address(text)) is None
        assert made.names_of(ip_address(text)) == ()
    assert [made.covers(ip_address(text)) for text in ("198.19.1.1", "198.20.0.1", "::c612:1")] == [True, False, False]


def test_real_address_has_every_name_it_was_answered_for(clock):
    made = table("198.18.0.0/15", clock)
    one, two = ip_address("93.184.216.34"), ip_address("2606:2800::1")
    made.remember(A, [one, two])
    made.remember(B, [one])
    assert (made.names_of(one), made.names_of(two), made.name_of(one)) == ((A, B), (A,), B)
    made.remember(A, [one])
    assert made.names_of(one) == (B, A)
    clock.now += KEPT + 1
    assert made.names_of(one) == ()


def test_real_addresses_and_their_names_are_bounded(clock, monkeypatch):
    monkeypatch.setattr(remembered, "MOST_ADDRESSES", 3)
    monkeypatch.setattr(remembered, "MOST_NAMES_EACH", 2)
    made = table("198.18.0.0/15", clock)
    address = ip_address("93.184.216.34")
    for name in (A, B, C):
        made.remember(name, [address])
    assert made.names_of(address) == (B, C)
    for number in range(3):
        made.remember(A, [ip_address(f"10.0.0.{number}")])
    assert made.names_of(address) == ()


def test_names_of_all_real_addresses_are_bounded(clock, monkeypatch):
    # Who has a zone has as many names at as many addresses as they like: 16384 times 64 of them took 150 MB.
    monkeypatch.setattr(remembered, "MOST", 5)
    names = table("198.18.0.0/24", clock)
    first, second, third = (ip_address(f"1.1.1.{number}") for number in (1, 2, 3))
    for name in (A, B):
        names.remember(name, [first, second])
    names.remember(A, [first, second])  # the same again is no more
    names.remember(C, [third])
    assert [names.names_of(address) for address in (first, second, third)] == [(B, A), (B, A), (C,)]
    names.remember(B, [third])
    assert [names.names_of(address) for address in (first, second, third)] == [(), (B, A), (C, B)]
    names.remember(C, [first])
    assert [names.names_of(address) for address in (first, second, third)] == [(C,), (B, A), (C, B)]
