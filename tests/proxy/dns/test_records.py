"""Records that are no addresses: asked for only where a rule's `dns_types` lists their type, and answered as they are."""

import asyncio
from ipaddress import ip_address

import dns.message
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import pytest

from proxy.dns.lookup import DnsLookupError
from proxy.dns.records import MOST_AT_ONCE, MOST_RECORDS, MOST_WAITING, RecordLookup, Records
from proxy.dns.wire import MOST_OVER_TCP, Type, build_records, parse_query
from rules.attempt import Protocol
from rules.loading.fields import RECORD_TYPES
from rules.values.names import HostName
from tests.proxy.dns.name_servers import Server, add, asking
from tests.proxy.gate.gate_lab import GateLab, run
from tests.support.waiting import wait_until_async

RULES = (
    "id: mail, to: ['*.mail.example', mail.example], dns_types: [TXT, MX, SRV], action: allow",
    "id: web, to: ['*.mail.example', other.example], action: allow",
    "id: no, to: no.mail.example, action: deny",
    "id: who, to: who.mail.example, action: ask",
)


def wire(kind, *texts):
    found = [dns.rdata.from_text(dns.rdataclass.IN, dns.rdatatype.from_text(kind), text) for text in texts]
    return tuple(record.to_wire() for record in found)


def records(kind, *texts, seconds=60.0):
    return Records(wire(kind, *texts), texts, seconds)


class Resolving:
    """One question after another to a gate's resolver."""

    def __init__(self, world):
        self.world = world

    async def ask(self, name, kind, protocol=Protocol.UDP, **how):
        answers = []
        query = dns.message.make_query(name, kind, **{"use_edns": 0, "payload": 1232, **how})
        self.world.resolver.ask(query.to_wire(), ip_address("8.8.8.8"), protocol, answers.append)
        await wait_until_async(lambda: answers)
        return dns.message.from_wire(answers[0])

    @property
    def told(self):
        return [(e["outcome"], e["reason"], e["dns"].get("answers", [])) for e in self.world.events]


def resolving(tmp_path, test, **settings):
    async def inside():
        async with GateLab(tmp_path, RULES, **settings) as world:
            await test(Resolving(world))
            assert not world.errors

    run(inside)


ANSWERED = {
    "TXT": ("mail.example", "TXT", ['"v=spf1 -all"', '"two" "parts"']),
    "MX": ("mail.example", "MX", ["10 mx.mail.example."]),
    "SRV": ("_imap._tcp.mail.example", "SRV", ["0 0 143 in.mail.example."]),
}  # fmt: skip


@pytest.mark.parametrize(("name", "kind", "texts"), ANSWERED.values(), ids=ANSWERED)
@pytest.mark.parametrize("dns", ["synthetic", "real"])
def test_listed_record_types_are_answered(tmp_path, name, kind, texts, dns):
    async def test(resolver):
        resolver.world.servers.known[name, kind] = records(kind, *texts)
        answer = await resolver.ask(name, kind)
        (rrset,) = answer.answer
        assert sorted(record.to_text() for record in rrset) == sorted(texts)
        assert (rrset.ttl, rrset.name.to_text()) == (60, f"{name}.")
        assert resolver.told == [("passed", "rule", texts)]
        assert resolver.world.servers.asked == [(name, kind)]

    resolving(tmp_path, test, dns=dns)


NOT_ASKED = {
    "not listed": ("mail.example", "NULL", "blocked dns_type"),
    "not listed at this name": ("other.example", "TXT", "blocked dns_type"),
    "a name that is denied": ("no.mail.example", "TXT", "blocked rule"),
    "a name that is asked about": ("who.mail.example", "TXT", "blocked dns_type"),
    "a name that nobody lets out": ("c2VjcmV0.evil.example", "TXT", "blocked dns_denied"),
    "no name": ("a\\.b.mail.example", "TXT", "blocked invalid_name"),
    "every type": ("mail.example", "ANY", "blocked dns_type"),
    "an address": ("mail.example", "A", "passed rule"),
}


@pytest.mark.parametrize(("name", "kind", "told"), NOT_ASKED.values(), ids=NOT_ASKED)
def test_unlisted_record_types_are_not_queried(tmp_path, name, kind, told):
    async def test(resolver):
        await resolver.ask(name, kind)
        assert [" ".join(line[:2]) for line in resolver.told] == [told]
        assert resolver.world.servers.asked == []

    resolving(tmp_path, test)


def test_query_of_another_class_is_not_sent(tmp_path):
    async def test(resolver):
        answer = await resolver.ask("mail.example", "TXT", rdclass="CH")
        assert answer.rcode() == dns.rcode.REFUSED
        assert resolver.world.servers.asked == []

    resolving(tmp_path, test)


def test_every_type_that_rules_can_list_has_a_name():
    assert {kind: Type[kind].value for kind in RECORD_TYPES} == {
        kind: dns.rdatatype.from_text(kind).value for kind in RECORD_TYPES
    }


def test_missing_records_and_failures_have_their_rcode(tmp_path):
    async def test(resolver):
        known = resolver.world.servers.known
        known["a.mail.example", "TXT"] = Records()
        known["b.mail.example", "TXT"] = Records(exists=False)
        known["c.mail.example", "TXT"] = DnsLookupError("no name server answered")
        codes = [dns.rcode.to_text((await resolver.ask(f"{at}.mail.example", "TXT")).rcode()) for at in "abc"]
        assert codes == ["NOERROR", "NXDOMAIN", "SERVFAIL"]
        assert resolver.told == [("passed", "rule", []), ("passed", "rule", []), ("failed", "unresolved", [])]

    resolving(tmp_path, test)


def test_answer_too_long_for_udp_is_truncated(tmp_path):
    async def test(resolver):
        long = [f'"{at}{"x" * 250}"' for at in range(10)]
        resolver.world.servers.known["mail.example", "TXT"] = records("TXT", *long)
        answer = await resolver.ask("mail.example", "TXT")
        assert (bool(answer.flags & dns.flags.TC), answer.answer) == (True, [])
        answer = await resolver.ask("mail.example", "TXT", Protocol.TCP)
        assert (bool(answer.flags & dns.flags.TC), len(answer.answer[0])) == (False, 10)
        short = records("TXT", f'"{"x" * 250}"', f'"{"y" * 250}"')
        resolver.world.servers.known["mail.example", "TXT"] = short
        assert len((await resolver.ask("mail.example", "TXT")).answer[0]) == 2
        without = await resolver.ask("mail.example", "TXT", use_edns=False)
        assert without.flags & dns.flags.TC

    resolving(tmp_path, test)


def test_answer_over_tcp_is_bounded():
    query = parse_query(dns.message.make_query("mail.example", "TXT").to_wire())
    answer = dns.message.from_wire(build_records(query, [b"\xff" + b"x" * 255] * 100, ttl=1, over_tcp=True))
    assert answer.rcode() == dns.rcode.SERVFAIL
    assert len(build_records(query, [b"\xff" + b"x" * 255] * 60, ttl=1, over_tcp=True)) <= MOST_OVER_TCP


def test_pending_record_queries_are_bounded():
    class Slow:
        asked = 0
        go_on = None

        async def records(self, _name, _kind):
            self.asked += 1
            await self.go_on.wait()
            return Records()

    async def inside():
        slow = Slow()
        slow.go_on = asyncio.Event()
        lookup, found = RecordLookup(lambda: slow, lambda: room), []
        room = False
        lookup.ask(HostName("n.example"), "TXT", found.append)
        await wait_until_async(lambda: found)
        assert (found.pop().problem, len(lookup.tasks)) == ("0 queries are pending already", 0)
        room = True
        for at in range(MOST_WAITING + 5):
            lookup.ask(HostName(f"n{at}.example"), "TXT", found.append)
        await wait_until_async(lambda: len(found) == 5)
        assert [one.problem for one in found] == [f"{MOST_WAITING} queries are pending already"] * 5
        assert (slow.asked, len(lookup.tasks)) == (MOST_AT_ONCE, MOST_WAITING)
        slow.go_on.set()
        await wait_until_async(lambda: len(found) == MOST_WAITING + 5)

    run(inside)


def found_by(answer, name="good.example", kind="TXT"):
    """What `NameServers` makes of a server's answer."""
    server, found = Server(answer), []

    async def inside():
        servers = asking(server)
        try:
            found.append(await servers.records(HostName(name), kind))
        except DnsLookupError as error:
            found.append(str(error))

    try:
        run(inside)
    finally:
        server.close()
    return found[0]


def test_only_records_of_the_answer_are_used():
    def answer(name, kind, reply, _tcp):
        add(reply, name, "CNAME", "real.example.", ttl=5)
        add(reply, "real.example.", kind, '"a"')
        add(reply, "extra.example.", kind, '"b"')

    assert found_by(answer) == Records(wire("TXT", '"a"'), ('"a"',), 5.0)


def test_names_in_records_are_not_compressed():
    def answer(name, kind, reply, _tcp):
        add(reply, name, kind, "10 good.example.")

    assert found_by(answer, kind="MX").data == (b"\0\x0a\4good\7example\0",)


def test_negative_answers_and_failures_of_name_servers():
    def rcode(code):
        def answer(_name, _kind, reply, _tcp):
            reply.set_rcode(code)

        return answer

    assert found_by(rcode(dns.rcode.NXDOMAIN)) == Records(exists=False)
    assert found_by(rcode(dns.rcode.NOERROR)).data == ()
    assert "no name server answered for" in found_by(rcode(dns.rcode.REFUSED))


def test_records_of_an_answer_are_bounded():
    def answer(name, kind, reply, tcp):
        if not tcp:
            reply.flags |= dns.flags.TC
            return
        add(reply, name, kind, *(f'"{at}"' for at in range(MOST_RECORDS + 10)), ttl=100_000)

    found = found_by(answer)
    assert (len(found.data), found.seconds) == (MOST_RECORDS, 300.0)
