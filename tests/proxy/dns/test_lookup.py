import asyncio
import os
from ipaddress import ip_address

import pytest

from proxy.dns import lookup as lookups
from proxy.dns.lookup import DnsLookupError, HostsFile, Lookup
from proxy.dns.upstream_servers import NameServers
from rules.values.names import HostName
from tests.proxy.gate.gate_lab import Names, run
from tests.support.waiting import wait_until_async

GOOD = HostName("good.example")


def addresses(*texts):
    return tuple(ip_address(text) for text in texts)


# the hosts file


@pytest.fixture
def hosts(tmp_path):
    path = tmp_path / "hosts"

    def write(text):
        path.write_text(text)
        return HostsFile(str(path))

    write.path = path
    return write


def test_hosts_file_is_read_as_getaddrinfo_reads_it(hosts):
    file = hosts(
        "# good.example 9.9.9.9\n127.0.0.1\tlocalhost  Good.Example. # one\n\n::1 good.example\n"
        "10.0.0.1 good.example alias.example\nfe80::1%eth0 good.example\nnonsense good.example\n1.2.3.4\n"
    )
    assert file.refresh()
    assert file.addresses_of(GOOD) == addresses("127.0.0.1", "::1", "10.0.0.1")
    assert file.addresses_of(HostName("alias.example")) == addresses("10.0.0.1")
    assert file.addresses_of(HostName("other.example")) == ()


def test_hosts_file_is_reread_only_after_a_change(hosts):
    file = hosts("1.2.3.4 good.example\n")
    assert [file.refresh(), file.refresh()] == [True, False]
    replaced = hosts.path.with_name("new")
    replaced.write_text("4.3.2.1 good.example\n")
    os.utime(replaced, ns=(0, hosts.path.stat().st_mtime_ns))  # the same time and length, another file
    replaced.rename(hosts.path)
    assert file.refresh()
    assert file.addresses_of(GOOD) == addresses("4.3.2.1")
    hosts.path.unlink()
    assert [file.refresh(), file.refresh()] == [True, False]
    assert file.addresses_of(GOOD) == ()


def test_undecodable_bytes_affect_only_their_line(hosts):
    hosts("")
    hosts.path.write_bytes(b"\xff\xfe bad\n1.2.3.4 good.example\n")
    file = HostsFile(str(hosts.path))
    file.refresh()
    assert file.addresses_of(GOOD) == addresses("1.2.3.4")


# looking up


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Asked:
    """A lookup with everything around it told by hand."""

    def __init__(self, tmp_path, text=""):
        self.hosts = tmp_path / "hosts"
        self.hosts.write_text(text)
        self.servers, self.clock = Names(), Clock()
        self.lookup = Lookup(HostsFile(str(self.hosts)), lambda: self.servers, self.clock)

    async def find(self, name=GOOD):
        found = asyncio.get_running_loop().create_future()
        self.lookup.ask(name, found.set_result)
        return await asyncio.wait_for(found, 10)


def looked_up(tmp_path, test, text=""):
    async def inside():
        asked = Asked(tmp_path, text)
        await test(asked)
        asked.lookup.close()

    run(inside)


def test_both_families_are_queried_at_once_and_cached(tmp_path):
    async def test(asked):
        asked.servers.known = {("good.example", "A"): ["1.1.1.1"], ("good.example", "AAAA"): ["2606:4700::1"]}
        assert asked.lookup.known(GOOD) is None
        found = await asked.find()
        assert set(found.addresses) == set(addresses("1.1.1.1", "2606:4700::1"))
        assert asked.lookup.known(GOOD) is found
        asked.clock.now += 29.9
        assert asked.lookup.known(GOOD) is found
        asked.clock.now += 0.2
        assert asked.lookup.known(GOOD) is None

    looked_up(tmp_path, test)


@pytest.mark.parametrize(("ttl", "kept"), [(5.0, 5.0), (0.0, 0.0), (86400.0, 30.0)])
def test_result_is_cached_for_its_ttl_and_at_most_30_seconds(tmp_path, ttl, kept):
    async def test(asked):
        async def ask(_name, kind):
            return addresses("1.1.1.1" if kind == "A" else "2606:4700::1"), ttl if kind == "A" else 99999.0

        asked.servers.ask = ask
        found = await asked.find()
        assert found.addresses
        asked.clock.now += max(kept - 0.01, 0.0)
        assert (asked.lookup.known(GOOD) is found) == (kept > 0)
        asked.clock.now += 0.02
        assert asked.lookup.known(GOOD) is None

    looked_up(tmp_path, test)


def test_failure_has_a_reason_and_is_cached_briefly(tmp_path):
    async def test(asked):
        found = await asked.find()
        assert (found.addresses, found.problem) == (
            (),
            "`good.example` has no A record; `good.example` has no AAAA record",
        )
        asked.clock.now += lookups.FAILURE_KEPT + 0.01
        asked.servers.known["good.example", "A"] = ["1.1.1.1"]
        assert asked.lookup.known(GOOD) is None
        assert (await asked.find()).addresses == addresses("1.1.1.1")

    looked_up(tmp_path, test)


@pytest.mark.parametrize("error", [OSError("no route"), RuntimeError("a bug"), DnsLookupError("no")])
def test_caller_gets_a_result_whatever_the_servers_do(tmp_path, error):
    async def test(asked):
        async def ask(*_):
            raise error

        asked.servers.ask = ask
        found = await asked.find()
        assert (found.addresses, found.problem) == ((), str(error))

    looked_up(tmp_path, test)


def test_caller_gets_a_result_without_servers(tmp_path):
    async def test(asked):
        asked.lookup._servers = lambda: NameServers(str(tmp_path / "missing"))
        assert "names no usable name server" in (await asked.find()).problem

    looked_up(tmp_path, test)


def test_silent_family_delays_the_other_only_briefly(tmp_path):
    async def test(asked):
        async def ask(_name, kind):
            if kind == "AAAA":
                await asyncio.Event().wait()
            return addresses("1.1.1.1"), 30.0

        asked.servers.ask = ask
        assert (await asked.find()).addresses == addresses("1.1.1.1")

    looked_up(tmp_path, test)


def test_negative_answer_of_one_family_leaves_the_other_time(tmp_path):
    async def test(asked):
        answer = asyncio.Event()

        async def ask(_name, kind):
            if kind == "A":
                raise DnsLookupError("none")
            await answer.wait()
            return addresses("2606:4700::1"), 30.0

        asked.servers.ask = ask
        asyncio.get_running_loop().call_later(lookups._SECOND_FAMILY_WAIT * 3, answer.set)
        assert (await asked.find()).addresses == addresses("2606:4700::1")

    looked_up(tmp_path, test)


def test_hosts_file_takes_precedence_and_is_reread(tmp_path):
    async def test(asked):
        asked.servers.known["good.example", "A"] = ["1.1.1.1"]
        assert asked.lookup.known(GOOD).addresses == addresses("10.0.0.1")
        asked.hosts.write_text("10.0.0.22 good.example\n")
        asked.clock.now += 2
        assert asked.lookup.known(GOOD).addresses == addresses("10.0.0.22")
        asked.hosts.write_text("")
        asked.clock.now += 2
        assert asked.lookup.known(GOOD) is None
        assert (await asked.find()).addresses == addresses("1.1.1.1")

    looked_up(tmp_path, test, "10.0.0.1 good.example\n")


def test_cache_and_pending_lookups_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(lookups, "MOST_KEPT", 3)
    monkeypatch.setattr(lookups, "MOST_WAITING", 5)

    async def test(asked):
        asked.servers.hold = asyncio.Event()
        heard = []
        for number in range(8):
            asked.lookup.ask(HostName(f"n{number}.example"), heard.append)
        await asyncio.sleep(0.01)
        assert [found.problem for found in heard] == ["5 names are being looked up already"] * 3
        asked.servers.hold.set()
        await wait_until_async(lambda: len(heard) == 8)
        assert len(asked.lookup._cache) == 3

    looked_up(tmp_path, test)


def test_thousands_of_waiting_callers_yield_to_other_work(tmp_path):
    """Each has a connection to dial or a request to tell then: all at once would keep a worker for seconds."""

    async def test(asked):
        asked.servers.known = {("good.example", "A"): ["1.1.1.1"], ("good.example", "AAAA"): ["2606:4700::1"]}
        loop, turns, told = asyncio.get_running_loop(), 0, []

        def another():
            nonlocal turns
            turns += 1
            if len(told) < 1000:
                loop.call_soon(another)

        for _ in range(1000):
            asked.lookup.ask(GOOD, lambda found: told.append((turns, found)))
        loop.call_soon(another)
        await wait_until_async(lambda: len(told) == 1000)
        each = [sum(1 for turn, _ in told if turn == at) for at in {turn for turn, _ in told}]
        assert max(each) == lookups.TOLD_AT_ONCE
        assert {found.problem for _, found in told} == {""}
        assert asked.lookup._waiter_count == 0

    looked_up(tmp_path, test)


def test_waiting_callers_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(lookups, "MOST_ASKERS", 5)

    async def test(asked):
        asked.servers.known = {("good.example", "A"): ["1.1.1.1"]}
        asked.servers.hold = asyncio.Event()
        heard = []
        for name in (GOOD, GOOD, GOOD, GOOD, HostName("b.example"), GOOD, HostName("c.example")):
            asked.lookup.ask(name, heard.append)
        await asyncio.sleep(0.01)
        said = "5 connections, requests and lookups wait for names already"
        assert [found.problem for found in heard] == [said, said]
        asked.servers.hold.set()
        await wait_until_async(lambda: len(heard) == 7)
        assert [bool(found.addresses) for found in heard[2:]].count(True) == 4
        assert (await asked.find()).addresses

    looked_up(tmp_path, test)


def test_callers_get_no_result_after_close(tmp_path):
    async def test(asked):
        asked.servers.known = {("good.example", "A"): ["1.1.1.1"], ("good.example", "AAAA"): ["2606:4700::1"]}
        heard = []
        for _ in range(100):
            asked.lookup.ask(GOOD, lambda found: heard.append(found) or asked.lookup.close())
        await wait_until_async(lambda: heard)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(heard) == lookups.TOLD_AT_ONCE

    looked_up(tmp_path, test)


def test_concurrent_lookups_are_bounded(tmp_path):
    async def test(asked):
        asked.servers.hold = asyncio.Event()
        heard = []
        for number in range(lookups.MOST_AT_ONCE + 10):
            asked.lookup.ask(HostName(f"n{number}.example"), heard.append)
        await asyncio.sleep(0.02)
        assert len(asked.servers.asked) == 2 * lookups.MOST_AT_ONCE
        asked.servers.hold.set()
        await wait_until_async(lambda: len(heard) == lookups.MOST_AT_ONCE + 10)

    looked_up(tmp_path, test)


def test_addresses_of_a_name_are_bounded(tmp_path):
    async def test(asked):
        asked.servers.known["good.example", "A"] = [f"1.1.1.{n}" for n in range(200)]
        assert len((await asked.find()).addresses) == lookups.MOST_ADDRESSES

    looked_up(tmp_path, test)


# reaching


def test_addresses_of_this_host_are_recognised():
    ordered, own = lookups.in_order(addresses("127.0.0.1", "127.3.2.1", "::1"))
    assert own == frozenset(addresses("127.0.0.1", "::1"))
    assert set(ordered) == set(addresses("127.0.0.1", "127.3.2.1", "::1"))


@pytest.mark.parametrize(
    ("sources", "order"),
    [
        ({4: "1.0.0.1", 6: "2606::1"}, "2607::1 9.9.9.9 2607::2 8.8.8.8"),
        ({4: "1.0.0.1", 6: None}, "9.9.9.9 8.8.8.8 2607::1 2607::2"),
        ({4: "1.0.0.1", 6: "fd00::5"}, "9.9.9.9 8.8.8.8 2607::1 2607::2"),
        ({4: "10.0.0.1", 6: "2606::1"}, "2607::1 9.9.9.9 2607::2 8.8.8.8"),
        ({4: None, 6: "2606::1"}, "2607::1 2607::2 9.9.9.9 8.8.8.8"),
    ],
)
def test_reachable_addresses_come_first_and_families_alternate(monkeypatch, sources, order):
    def source_for(address):
        text = sources[address.version]
        return None if text is None else ip_address(text)

    monkeypatch.setattr(lookups, "source_for", source_for)
    ordered, own = lookups.in_order(addresses("9.9.9.9", "8.8.8.8", "2607::1", "2607::2"))
    assert " ".join(map(str, ordered)) == order
    assert not own
