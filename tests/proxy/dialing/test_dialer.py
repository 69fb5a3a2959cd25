import asyncio
import errno
import socket
from ipaddress import ip_address
from types import SimpleNamespace

import pytest

from proxy.dialing import connect_race
from proxy.dialing.address_check import DialError
from tests.proxy.dialing.dialer_lab import OTHER, PUBLIC, RULES, attempt, dial, setting
from tests.proxy.gate.gate_lab import Origin, open_descriptors, policy_of
from tests.support.ports import free_port

BAD = (
    "127.0.0.1", "10.0.0.1", "169.254.169.254", "100.64.0.1", "192.168.1.1", "0.0.0.0", "224.0.0.1", "255.255.255.255",
    "::1", "::", "::ffff:10.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::a00:1", "2002:a00:1::", "fd00::1", "fe80::1",
)  # fmt: skip


@pytest.mark.parametrize("address", BAD)
def test_name_with_a_non_public_address_is_not_dialed(tmp_path, address):
    async def test(it):
        it.servers.known["good.example", "A"] = [address]
        assert await it.found("good.example") == "non_public_address"
        assert it.known("good.example") == "non_public_address"

    setting(tmp_path, test)


def test_non_public_addresses_among_public_ones_are_skipped(tmp_path):
    async def test(it):
        it.servers.known["good.example", "A"] = ["10.0.0.1", str(PUBLIC), "127.0.0.1", str(OTHER)]
        assert it.known("good.example") is None
        assert set((await it.found("good.example")).split()) == {str(PUBLIC), str(OTHER)}

    setting(tmp_path, test)


def test_moved_name_is_checked_at_each_lookup(tmp_path):
    async def test(it):
        it.servers.known["good.example", "A"] = [str(PUBLIC)]
        assert await it.found("good.example") == str(PUBLIC)
        it.servers.known["good.example", "A"] = ["127.0.0.1"]
        assert it.known("good.example") == str(PUBLIC)  # what was checked is what is kept
        assert await it.found("good.example") == "non_public_address"

    setting(tmp_path, test)


def test_new_policy_checks_addresses_again(tmp_path):
    async def test(it):
        it.servers.known["inside.example", "A"] = ["127.0.0.1"]
        assert await it.found("inside.example") == "127.0.0.1"
        it.policy = policy_of(tmp_path, ("id: inside, to: inside.example, ports: [443], action: allow",))
        assert it.known("inside.example") == "non_public_address"
        it.policy = policy_of(tmp_path, ("id: no, to: 127.0.0.1, action: deny", RULES[1]))
        assert it.known("inside.example") == "rule"

    setting(tmp_path, test)


def test_each_port_and_protocol_is_checked_separately(tmp_path):
    async def test(it):
        it.policy = policy_of(tmp_path, ("id: one, to: good.example, ports: [443], action: allow",))
        it.servers.known["good.example", "A"] = [str(PUBLIC)]
        assert await it.found("good.example") == str(PUBLIC)
        assert it.known("good.example", 444) == "no_rule"

    setting(tmp_path, test)


def test_unknown_name_is_unresolved(tmp_path):
    async def test(it):
        assert await it.found("good.example") == "unresolved"
        with pytest.raises(DialError, match="has no A record") as caught:
            await dial(it.dialer, it.policy, attempt("good.example"))
        assert caught.value.reason.value == "unresolved"

    setting(tmp_path, test)


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("93.184.216.34", "93.184.216.34"),
        ("93.184.216.35", "address_not_listed"),
        ("8.8.8.8", "rule"),
        ("10.0.0.1", "address_not_listed"),
        ("::1", "address_not_listed"),
    ],
)
def test_literal_address_is_dialed_only_if_a_rule_names_it(tmp_path, address, says):
    async def test(it):
        assert it.known(ip_address(address)) == says

    setting(tmp_path, test)


def test_name_with_this_hosts_public_address_is_not_dialed(tmp_path, monkeypatch):
    monkeypatch.setattr("proxy.dns.lookup.source_for", lambda _address: PUBLIC)

    async def test(it):
        it.servers.known["good.example", "A"] = [str(PUBLIC)]
        assert await it.found("good.example") == "non_public_address"
        with pytest.raises(DialError, match=f"`good.example` is {PUBLIC}, which is this host's own") as failed:
            it.dialer.known(it.policy, attempt("good.example"))
        assert failed.value.advice.startswith(
            "no `resolves_to` opens this host's own public address: a service of this"
        )
        it.servers.known["good.example", "A"] = [str(PUBLIC), str(OTHER)]
        assert await it.found("good.example") == str(OTHER)
        assert it.known(PUBLIC) == str(PUBLIC)  # named as such

    setting(tmp_path, test)


def test_own_address_needs_no_approval_request(tmp_path, monkeypatch):
    monkeypatch.setattr("proxy.dns.lookup.source_for", lambda _address: PUBLIC)
    asked = f"id: asked, to: {PUBLIC}, ports: [443/tls], action: ask"

    async def test(it):
        it.policy = policy_of(tmp_path, (RULES[0], asked))
        it.servers.known["good.example", "A"] = [str(PUBLIC)]
        assert await it.found("good.example") == "non_public_address"
        with pytest.raises(DialError, match="this host's own") as failed:
            it.dialer.known(it.policy, attempt("good.example"))
        assert failed.value.pending_decision is None
        it.servers.known["good.example", "A"] = [str(OTHER)]  # control: another address is not asked about
        assert await it.found("good.example") == str(OTHER)

    setting(tmp_path, test)


@pytest.mark.parametrize("listening", ["127.0.0.1", "0.0.0.0", "::"])
def test_listeners_of_exeat_are_never_dialed(tmp_path, listening):
    async def test(it):
        assert it.known("inside.example", 9464) == "non_public_address"
        assert it.known("inside.example", 9465) == "127.0.0.1"
        assert it.known(ip_address("127.0.0.1"), 9464) == "non_public_address"
        assert it.known(ip_address("127.0.0.1"), 9465) == "127.0.0.1"

    setting(tmp_path, test, hosts="127.0.0.1 inside.example\n", forbidden={(ip_address(listening), 9464)})


# connecting


def test_name_is_dialed(tmp_path):
    async def test(it):
        origin = Origin()
        await origin.start()
        sock, address = await dial(it.dialer, it.policy, attempt("inside.example", origin.port))
        with sock:
            assert (str(address), sock.getpeername(), sock.gettimeout()) == (
                "127.0.0.1",
                ("127.0.0.1", origin.port),
                0.0,
            )
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE)
        await origin.take()
        assert [*it.metrics.dial_seconds] == ["connected"]
        await origin.stop()

    setting(tmp_path, test, hosts="127.0.0.1 inside.example\n")


def test_next_address_is_tried_after_a_refusal(tmp_path):
    async def test(it):
        origin = Origin()
        await origin.start()
        sock, address = await dial(it.dialer, it.policy, attempt("inside.example", origin.port))
        sock.close()
        assert str(address) == "127.0.0.1"
        await origin.stop()

    setting(tmp_path, test, hosts="127.0.0.9 inside.example\n::1 inside.example\n127.0.0.1 inside.example\n")


def test_error_of_the_last_address_is_reported(tmp_path):
    async def test(it):
        with pytest.raises(DialError, match=r"connection refused") as caught:
            await dial(it.dialer, it.policy, attempt("inside.example", free_port()))
        assert caught.value.reason.value == "upstream_failed"
        assert [*it.metrics.dial_seconds] == ["upstream_failed"]

    setting(tmp_path, test, hosts="127.0.0.1 inside.example\n127.0.0.2 inside.example\n")


class Deaf:
    """A listener whose queue is full: connecting to it neither works nor fails."""

    def __init__(self, host="127.0.0.3", port=0):
        self.listener = socket.create_server((host, port), backlog=0)
        self.port = self.listener.getsockname()[1]
        self.clients = []
        for _ in range(3):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex((host, self.port))
            self.clients.append(sock)

    def close(self):
        for sock in (*self.clients, self.listener):
            sock.close()


def test_silent_address_is_overtaken_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(connect_race, "ATTEMPT_DELAY", 0.01)

    async def test(it):
        deaf = Deaf(port=free_port("127.0.0.3", "127.0.0.1"))
        with socket.create_server(("127.0.0.1", deaf.port)):
            sock, address = await dial(it.dialer, it.policy, attempt("inside.example", deaf.port))
        assert str(address) == "127.0.0.1"
        sock.close()
        deaf.close()

    before = open_descriptors()
    setting(tmp_path, test, hosts="127.0.0.3 inside.example\n127.0.0.1 inside.example\n")
    assert open_descriptors() == before


@pytest.mark.parametrize("room", [0, 2, 9])
def test_concurrent_attempts_are_bounded_by_the_descriptor_quota(tmp_path, monkeypatch, room):
    monkeypatch.setattr(connect_race, "ATTEMPT_DELAY", 0.001)

    async def test(it):
        hosts = [f"127.0.0.{number}" for number in range(3, 9)]
        port = free_port(*hosts)
        deaf = [Deaf(host, port) for host in hosts]
        quota = it.dialer.descriptors
        quota.has_room = lambda: quota.extra < room
        before = open_descriptors()
        race = it.dialer.connect(tuple(map(ip_address, hosts)), port, pytest.fail)
        await asyncio.sleep(0.1)
        assert len(open_descriptors() - before) == 1 + min(room, 5)
        assert quota.extra == min(room, 5)
        race.cancel()
        assert (open_descriptors(), quota.extra) == (before, 0)
        for each in deaf:
            each.close()

    setting(tmp_path, test)


def test_exhausted_quota_tries_one_address_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(connect_race, "ATTEMPT_DELAY", 0.001)

    async def test(it):
        it.dialer.descriptors.has_room = lambda: False
        with socket.create_server(("127.0.0.1", 0)) as server:
            sock, address = await dial(it.dialer, it.policy, attempt("inside.example", server.getsockname()[1]))
        assert (str(address), it.dialer.descriptors.extra) == ("127.0.0.1", 0)
        sock.close()

    setting(tmp_path, test, hosts="127.0.0.3 inside.example\n127.0.0.4 inside.example\n127.0.0.1 inside.example\n")


def test_cancelled_race_leaves_no_socket_open(tmp_path):
    async def test(it):
        deaf = Deaf()
        origin = Origin()
        await origin.start()
        for port, turns in ((deaf.port, 3), *((origin.port, turns) for turns in range(6))):
            got = []
            hops = it.dialer.known(it.policy, attempt("inside.example", port))
            race = it.dialer.connect(hops, port, lambda sock, _address, got=got: got.append(sock))
            for _ in range(turns):
                await asyncio.sleep(0)
            race.cancel()
            told = len(got)
            await asyncio.sleep(0.01)
            assert len(got) == told
            for sock in got:
                sock.close()  # too late
        await asyncio.sleep(0.01)
        await origin.stop()
        deaf.close()

    before = open_descriptors()
    setting(tmp_path, test, hosts="127.0.0.3 inside.example\n127.0.0.1 inside.example\n")
    assert open_descriptors() == before


def test_dial_without_descriptors_fails_with_the_error(tmp_path, monkeypatch):
    def no_socket(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(connect_race, "socket", SimpleNamespace(**{**vars(socket), "socket": no_socket}))

    async def test(it):
        with pytest.raises(DialError, match="too many open files"):
            await dial(it.dialer, it.policy, attempt("inside.example", 1))

    setting(tmp_path, test, hosts="127.0.0.1 inside.example\n")


def test_done_is_never_called_from_the_constructor(tmp_path):
    async def test(it):
        heard = []
        it.dialer.connect((), 443, lambda *what: heard.append(what))
        it.dialer.connect((ip_address("255.255.255.255"),), 443, lambda *what: heard.append(what))
        assert not heard
        await asyncio.sleep(0.01)
        assert [result.reason.value for result, _ in heard] == ["upstream_failed"] * 2

    setting(tmp_path, test)


def test_cancelled_race_never_calls_done(tmp_path):
    async def test(it):
        heard = []
        origin = Origin()
        await origin.start()
        for addresses in ((), (ip_address("127.0.0.1"),), (ip_address("255.255.255.255"),)):
            it.dialer.connect(addresses, origin.port, lambda *what: heard.append(what)).cancel()
        await asyncio.sleep(0.02)
        assert not heard
        await origin.stop()

    setting(tmp_path, test)


def test_immediate_connection_is_taken_without_calling_done(tmp_path):
    async def test(it):
        heard = []
        origin = Origin()
        await origin.start()
        nearby = ip_address("127.0.0.1")
        race = it.dialer.connect((nearby,), origin.port, lambda *what: heard.append(what), at_once=True)
        sock, address = race.take()
        with sock:
            assert (sock.getpeername(), address) == (("127.0.0.1", origin.port), nearby)
        assert race.take() is None
        await asyncio.sleep(0.02)
        assert (heard, [*it.metrics.dial_seconds]) == ([], ["connected"])
        await origin.take()
        await origin.stop()

    before = open_descriptors()
    setting(tmp_path, test)
    assert open_descriptors() == before


def test_later_connection_calls_done(tmp_path):
    async def test(it):
        heard = []
        deaf, nearby = Deaf(), ip_address("127.0.0.1")
        for addresses, port in (((nearby,), free_port()), ((), 443)):
            race = it.dialer.connect(addresses, port, lambda *what: heard.append(what), at_once=True)
            assert race.take() is None
        silent = it.dialer.connect(
            (ip_address("127.0.0.3"),), deaf.port, lambda *what: heard.append(what), at_once=True
        )
        assert silent.take() is None
        await asyncio.sleep(0.05)
        assert sorted(result.reason.value for result, _ in heard) == ["upstream_failed"] * 2
        silent.cancel()
        deaf.close()

    before = open_descriptors()
    setting(tmp_path, test)
    assert open_descriptors() == before
