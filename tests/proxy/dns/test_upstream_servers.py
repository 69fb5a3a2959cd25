"""Asking name servers, and which answers are taken."""

import asyncio
import threading
import time

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from proxy.dns.lookup import DnsLookupError, Lookup
from proxy.dns.upstream_servers import LONGEST, MOST_ALIASES, NameServers, _UdpSocket
from rules.values.names import HostName
from tests.proxy.dns.name_servers import Server, add, asking
from tests.proxy.gate.gate_lab import run

# asking name servers


def asked_of(answer, name="good.example", kind="A"):
    """What `NameServers` makes of a server's answer: addresses and seconds, or the failure's text."""
    server = Server(answer)
    outcome = []

    async def inside():
        servers = asking(server)
        try:
            found, seconds = await servers.ask(HostName(name), kind)
            outcome.append((" ".join(map(str, found)), seconds))
        except DnsLookupError as error:
            outcome.append(str(error))

    try:
        run(inside)
    finally:
        server.close()
    return outcome[0], server.asked


def test_answer_gives_addresses_and_ttl():
    def answer(name, kind, reply, _tcp):
        add(reply, name, kind, *(["1.1.1.1", "1.0.0.1"] if kind == "A" else ["2606:4700::1"]))

    (found, seconds), asked = asked_of(answer)
    assert (set(found.split()), seconds) == ({"1.1.1.1", "1.0.0.1"}, 17.0)
    assert asked == [("good.example.", "A", False)]
    assert asked_of(answer, kind="AAAA")[0] == ("2606:4700::1", 17.0)


def test_alias_in_the_answer_is_followed():
    def answer(name, kind, reply, _tcp):
        add(reply, name, "CNAME", "real.example.", ttl=5)
        add(reply, "real.example.", kind, "1.1.1.1")

    assert asked_of(answer) == (("1.1.1.1", 5.0), [("good.example.", "A", False)])


def test_alias_without_addresses_is_queried():
    def answer(name, kind, reply, _tcp):
        if name == "good.example.":
            add(reply, name, "CNAME", "real.example.", ttl=5)
        else:
            add(reply, name, kind, "1.1.1.1")

    found, asked = asked_of(answer)
    assert found == ("1.1.1.1", 5.0)
    assert [name for name, *_ in asked] == ["good.example.", "real.example."]


def test_exeat_name_behind_an_alias_is_not_queried():
    def answer(name, kind, reply, _tcp):
        if name == "good.example.":
            add(reply, name, "CNAME", "Host.exeat.internal.", ttl=5)
        else:
            add(reply, name, kind, "127.0.0.1")

    found, asked = asked_of(answer)
    assert found == "`good.example` has no A record"
    assert [name for name, *_ in asked] == ["good.example."]


def test_endless_alias_chain_is_an_error():
    def answer(name, _kind, reply, _tcp):
        number = int(name.partition(".")[0]) if name[0].isdigit() else 0
        add(reply, name, "CNAME", f"{number + 1}.example.")

    found, asked = asked_of(answer)
    assert found == "`good.example` has too long a chain of aliases (CNAME)"
    assert len(asked) == MOST_ALIASES


def test_ipv4_mapped_address_is_normalised():
    def answer(name, _kind, reply, _tcp):
        add(reply, name, "AAAA", "::ffff:10.0.0.1")

    assert asked_of(answer, kind="AAAA")[0] == ("10.0.0.1", 17.0)


def test_truncated_answer_is_queried_again_over_tcp():
    def answer(name, kind, reply, tcp):
        if tcp:
            add(reply, name, kind, "1.1.1.1")
        else:
            reply.flags |= dns.flags.TC

    found, asked = asked_of(answer)
    assert found == ("1.1.1.1", 17.0)
    assert [tcp for *_, tcp in asked] == [False, True]


def test_answer_to_another_query_is_ignored():
    def answer(name, kind, reply, _tcp):
        forged = dns.message.from_wire(reply.to_wire())
        forged.id ^= 1
        add(forged, name, kind, "6.6.6.6")
        other = dns.message.make_response(dns.message.make_query("other.example.", kind, id=reply.id))
        add(other, "other.example.", kind, "6.6.6.6")
        add(reply, name, kind, "1.1.1.1")
        add(reply, "extra.example.", kind, "6.6.6.6")
        return [forged.to_wire(), other.to_wire(), b"junk", reply.to_wire()]

    found, _ = asked_of(answer)
    assert found == ("1.1.1.1", 17.0)


def test_errors_of_name_servers_are_described():
    def rcode(code):
        def answer(_name, _kind, reply, _tcp):
            reply.set_rcode(code)

        return answer

    assert asked_of(rcode(dns.rcode.NXDOMAIN))[0] == "`good.example` does not exist"
    assert asked_of(rcode(dns.rcode.NOERROR))[0] == "`good.example` has no A record"
    assert "no name server answered for `good.example`" in asked_of(rcode(dns.rcode.REFUSED))[0]


def test_no_search_list_is_applied(tmp_path):
    conf = tmp_path / "resolv.conf"
    conf.write_text("nameserver 127.0.0.1\nsearch corp.example\noptions ndots:5\n")

    def answer(_name, _kind, reply, _tcp):
        reply.set_rcode(dns.rcode.NXDOMAIN)

    server = Server(answer)

    async def inside():
        servers = NameServers(str(conf))
        servers._resolver.port = server.port
        with pytest.raises(DnsLookupError):
            await servers.ask(HostName("good"), "A")

    try:
        run(inside)
    finally:
        server.close()
    assert [name for name, *_ in server.asked] == ["good."]


# what is read of an answer: who has a zone puts into it what they like, and whoever asks may ask for many names at once


MANY = [f"1.1.{number >> 8}.{number & 255}" for number in range(LONGEST // 16 + 1)]  # an address takes 16 bytes


def test_oversized_tcp_answer_is_not_read():
    def answer(name, kind, reply, tcp):
        if tcp:
            add(reply, name, kind, *MANY)
        else:
            reply.flags |= dns.flags.TC

    found, asked = asked_of(answer)
    assert "an answer is longer than 8 KB" in found
    assert [tcp for *_, tcp in asked] == [False, True]


def test_oversized_datagram_is_ignored():
    def answer(name, kind, reply, _tcp):
        long = dns.message.from_wire(reply.to_wire())
        add(long, name, kind, *MANY)
        add(reply, name, kind, "1.0.0.1")
        return [long.to_wire(), reply.to_wire()]

    assert asked_of(answer)[0] == ("1.0.0.1", 17.0)


def test_endless_oversized_datagrams_do_not_keep_a_query_open():
    class Flooding:
        async def recvfrom(self, _size, timeout):  # noqa: ASYNC109  dnspython's
            assert timeout <= 0.2
            await asyncio.sleep(0.01)
            return bytes(LONGEST + 1), ("127.0.0.1", 53)

    async def ask():
        async with asyncio.timeout(20):
            await _UdpSocket(Flooding(), asyncio.Lock()).recvfrom(65535, 0.2)

    with pytest.raises(dns.exception.Timeout):
        asyncio.run(ask())


@pytest.mark.parametrize("over_tcp", [False, True])
def test_simultaneous_answers_are_parsed_one_per_turn(over_tcp, monkeypatch):
    def answer(name, kind, reply, tcp):
        if over_tcp and not tcp:
            reply.flags |= dns.flags.TC
        else:
            add(reply, name, kind, "1.1.1.1")

    many, turns, read_at, loops = 12, [0], [], threading.get_ident()
    read = dns.message.from_wire

    def reading(wire, *args, **named):
        if threading.get_ident() == loops and (over_tcp is False or not wire[2] & 2):  # TC: RFC 1035 section 4.1.1
            read_at.append(turns[0])
        return read(wire, *args, **named)

    monkeypatch.setattr(dns.message, "from_wire", reading)
    server = Server(answer)

    async def count():
        while True:
            turns[0] += 1
            if turns[0] % 50 == 0:
                time.sleep(0.1)  # noqa: ASYNC251  so that more than one is there
            await asyncio.sleep(0)

    async def inside():
        servers, counting = asking(server), asyncio.create_task(count())
        await asyncio.gather(*(servers.ask(HostName(f"n{number}.example"), "A") for number in range(many)))
        counting.cancel()

    try:
        run(inside)
    finally:
        server.close()
    assert len(read_at) == many
    assert len(set(read_at)) == many


def test_lookups_of_a_sandbox_take_turns():
    async def inside():
        lookup = Lookup()
        assert lookup.servers()._backend_with_turns._turn is lookup.servers()._backend_with_turns._turn
        assert lookup.servers()._backend_with_turns._turn is not Lookup().servers()._backend_with_turns._turn

    run(inside)
