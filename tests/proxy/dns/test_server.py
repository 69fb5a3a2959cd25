import asyncio
from ipaddress import ip_address

import dns.edns
import dns.message
import dns.rcode
import pytest

from proxy.dns.names import MOST_DENIED
from rules.attempt import Protocol
from rules.loading.cases import parse_attempt
from rules.values.names import HostName
from tests.proxy.gate.gate_lab import OWN, GateLab, run
from tests.support.waiting import wait_until_async

RULES = (
    "id: good, to: ['*.good.example', good.example], ports: [443, 22/tcp], action: allow",
    "id: web, to: web.example, ports: [80], http: {methods: [GET], paths: [/x]}, action: flag",
    "id: bad, to: bad.example, action: deny",
    "id: person, to: person.example, action: ask",
)
SERVER = ip_address("8.8.8.8")


class Dig:
    """Asks a resolver and keeps what it says."""

    def __init__(self, world):
        self.world = world
        self.answers = []

    def ask(self, name, kind="A", **how):
        self.send(dns.message.make_query(name, kind, use_edns=0, **how).to_wire())

    def send(self, wire):
        return self.world.resolver.ask(
            wire, SERVER, Protocol.UDP, lambda a: self.answers.append(dns.message.from_wire(a))
        )

    def short(self, name, kind="A", **how):
        """The answer as one line: rcode, addresses, extended error, and what the event says."""
        self.ask(name, kind, **how)
        return self.line(self.answers[-1])

    def line(self, answer):
        found = [record.to_text() for rrset in answer.answer for record in rrset]
        errors = [f"ede={option.code}" for option in answer.options if isinstance(option, dns.edns.EDEOption)]
        soa = ["soa"] if answer.authority else []
        return " ".join([dns.rcode.to_text(answer.rcode()), *found, *soa, *errors])

    @property
    def told(self):
        return [
            (e["verdict"], e["outcome"], e["reason"], e["dns"]["question"], e["dns"]["type"])
            for e in self.world.events
            if e["kind"] == "dns.decided"
        ]


def dig(tmp_path, test, rules=RULES, **settings):
    """Run a test with a resolver and what is around it."""

    async def inside():
        async with GateLab(tmp_path, rules, **settings) as world:
            outcome = test(Dig(world))
            if asyncio.iscoroutine(outcome):
                await outcome
            assert not world.errors

    run(inside)


ANSWERS = {
    ("good.example", "A"): "NOERROR 198.18.0.1 | allow passed rule",
    ("a.b.good.example", "A"): "NOERROR 198.18.0.1 | allow passed rule",
    ("GOOD.example", "A"): "NOERROR 198.18.0.1 | allow passed rule",
    ("web.example", "A"): "NOERROR 198.18.0.1 | flag passed rule",
    ("good.example", "AAAA"): "NOERROR soa | allow passed rule",
    ("good.example", "HTTPS"): "NOERROR soa | allow passed rule",
    ("good.example", "SVCB"): "NOERROR soa | allow passed rule",
    ("good.example", "TXT"): "NOERROR soa ede=15 | deny blocked dns_type",
    ("good.example", "NULL"): "NOERROR soa ede=15 | deny blocked dns_type",
    ("good.example", "ANY"): "NOERROR soa ede=15 | deny blocked dns_type",
    ("good.example", "MX"): "NOERROR soa ede=15 | deny blocked dns_type",
    ("good.example", "CNAME"): "NOERROR soa ede=15 | deny blocked dns_type",
    ("_ssh._tcp.good.example", "SRV"): "NOERROR soa ede=15 | deny blocked dns_type",
    ("evil.example", "A"): "NOERROR 198.19.252.0 ede=15 | deny blocked dns_denied",
    ("evil.example", "AAAA"): "NOERROR soa ede=15 | deny blocked dns_denied",
    ("evil.example", "TXT"): "NOERROR soa ede=15 | deny blocked dns_denied",
    ("bad.example", "A"): "NOERROR 198.19.252.0 ede=15 | deny blocked rule",
    ("person.example", "A"): "NOERROR 198.18.0.1 | ask passed rule",
    ("secret-data.evil.example", "A"): "NOERROR 198.19.252.0 ede=15 | deny blocked dns_denied",
    ("1.2.3.4", "A"): "NXDOMAIN soa ede=15 | deny blocked invalid_name",
    ("2130706433", "A"): "NXDOMAIN soa ede=15 | deny blocked invalid_name",
    ("0x7f.1", "A"): "NXDOMAIN soa ede=15 | deny blocked invalid_name",
    (".", "NS"): "NXDOMAIN soa ede=15 | deny blocked invalid_name",
    ("a\\.good.example", "A"): "NXDOMAIN soa ede=15 | deny blocked invalid_name",
    ("good.example\\000.evil.example", "A"): "NXDOMAIN soa ede=15 | deny blocked invalid_name",
    ("1.0.18.198.in-addr.arpa", "PTR"): "NXDOMAIN soa ede=15 | deny blocked dns_type",
    ("8.8.8.8.in-addr.arpa", "PTR"): "NXDOMAIN soa ede=15 | deny blocked dns_type",
    ("1.0.0.0.ip6.arpa", "PTR"): "NXDOMAIN soa ede=15 | deny blocked dns_type",
}


@pytest.mark.parametrize(("name", "kind"), ANSWERS.keys())
def test_queries_are_answered_and_recorded_as_the_table_says(tmp_path, name, kind):
    answer, told = ANSWERS[name, kind].split(" | ")

    def test(dig):
        assert dig.short(name, kind) == answer
        assert [" ".join(line[:3]) for line in dig.told] == [told]
        assert not dig.world.servers.asked
        explained = parse_attempt(f"dns {kind} {name}").decide(dig.world.sandbox.policy)
        assert f"{explained.verdict} {explained.outcome} {explained.reason}" == told, "`explain` says what the log does"

    dig(tmp_path, test)


def test_name_that_needs_approval_is_not_looked_up_before_the_grant(tmp_path):
    def test(dig):
        assert dig.short("person.example", "A") == "NOERROR 198.18.0.1"
        assert dig.short("person.example", "AAAA") == "NOERROR soa"
        assert not dig.world.servers.asked

    dig(tmp_path, test, dns="real")


def test_event_has_the_query_the_server_and_the_answer(tmp_path):
    def test(dig):
        dig.ask("good.example")
        (event,) = dig.world.events
        assert event["dns"] == {"question": "good.example", "type": "A", "answers": ["198.18.0.1"]}
        assert event["destination"] == {"name": "good.example", "address": "8.8.8.8", "port": 53}
        assert event["protocol"] == "udp"

    dig(tmp_path, test)


@pytest.mark.parametrize(
    ("name", "kind", "answer"),
    [
        ("localhost", "A", "NOERROR 127.0.0.1"),
        ("LocalHost", "AAAA", "NOERROR ::1"),
        ("a.localhost", "A", "NOERROR 127.0.0.1"),
        ("localhost", "TXT", "NOERROR soa"),
    ],
)
def test_localhost_is_answered_without_an_event(tmp_path, name, kind, answer):
    def test(dig):
        assert dig.short(name, kind) == answer
        assert not dig.world.events

    dig(tmp_path, test)


def test_name_that_only_ends_like_localhost_is_decided(tmp_path):
    dig(tmp_path, lambda dig: dig.short("notlocalhost") == "NOERROR 198.19.252.0 ede=15")


def test_denied_names_do_not_exist_with_dns_refused(tmp_path):
    def test(dig):
        for kind in ("A", "AAAA", "TXT"):
            assert dig.short("evil.example", kind) == "NXDOMAIN soa ede=15"
        assert dig.short("good.example") == "NOERROR 198.18.0.1"

    dig(tmp_path, test, on_block="dns_refused")


def test_denied_names_do_not_exist_with_a_search_list(tmp_path):
    def test(dig):
        dig.world.sandbox.is_foreign = True
        for name, reason in (("evil.example", "dns_denied"), ("bad.example", "rule")):
            for kind in ("A", "AAAA", "TXT"):
                assert dig.short(name, kind) == "NXDOMAIN soa ede=15"
                assert dig.told[-1][:3] == ("deny", "blocked", reason)
        assert dig.short("good.example") == "NOERROR 198.18.0.1"
        assert dig.short("good.example", "TXT") == "NOERROR soa ede=15"

    dig(tmp_path, test)


def test_query_of_another_class_is_refused(tmp_path):
    def test(dig):
        assert dig.short("version.bind", "TXT", rdclass="CH") == "REFUSED ede=15"
        assert dig.told[0][:3] == ("deny", "blocked", "dns_type")

    dig(tmp_path, test)


def test_exhausted_pool_fails_allowed_and_hides_denied_names(tmp_path):
    def test(dig):
        for number in range(240):
            last = dig.short(f"n{number}.good.example")
        assert last == "SERVFAIL ede=15"
        assert dig.told[-1][:3] == ("deny", "blocked", "limit_exceeded")
        assert dig.short("n0.good.example") == "NOERROR 198.18.0.1"
        for number in range(16):
            last = dig.short(f"n{number}.evil.example")
        assert last == "NXDOMAIN soa ede=15"

    dig(tmp_path, test, dns_pool="198.18.0.0/24")


def test_flood_of_denied_names_leaves_allowed_names_addresses(tmp_path):
    def test(dig):
        for number in range(MOST_DENIED + 10):
            dig.ask(f"n{number}.evil.example")
        assert dig.line(dig.answers[-1]) == "NXDOMAIN soa ede=15"
        assert dig.short("good.example") == "NOERROR 198.18.0.1"

    dig(tmp_path, test)


def test_query_that_cannot_be_recorded_gets_servfail(tmp_path):
    def test(dig):
        dig.world.journal.full = True
        assert dig.short("good.example") == "SERVFAIL"
        assert dig.short("evil.example") == "SERVFAIL"
        assert not dig.world.events

    dig(tmp_path, test)


def test_message_that_is_no_query_is_no_attempt(tmp_path):
    def test(dig):
        assert not dig.send(b"\x12\x34\x81\x80\0\1\0\0\0\0\0\0")
        assert not dig.answers
        assert not dig.send(b"\x12\x34\x01\x00\0\0\0\0\0\0\0\0")
        assert dig.line(dig.answers[0]) == "FORMERR"
        assert not dig.send(dns.message.make_query("good.example", "A", use_edns=1).to_wire())
        assert dig.line(dig.answers[1]) == "BADVERS"
        assert not dig.world.events

    dig(tmp_path, test)


def test_audit_mode_answers_names_it_allows(tmp_path):
    def test(dig):
        assert dig.short("evil.example") == "NOERROR 198.18.0.1"
        assert dig.told[0][1] == "would_block"
        assert dig.short("bad.example") == "NOERROR 198.19.252.0 ede=15"

    dig(tmp_path, test, mode="audit")


# dns: real


def real(tmp_path, test, **settings):
    dig(tmp_path, test, dns="real", **settings)


async def settled(dig, count):
    await wait_until_async(lambda: len(dig.answers) == count)


def test_real_addresses_are_answered_and_remembered(tmp_path):
    async def test(dig):
        known = dig.world.servers.known
        known["good.example", "A"] = ["93.184.216.34", "93.184.216.35"]
        known["good.example", "AAAA"] = ["2606:2800::1"]
        dig.ask("good.example")
        await settled(dig, 1)
        assert dig.line(dig.answers[0]) == "NOERROR 93.184.216.34 93.184.216.35"
        assert dig.short("good.example", "AAAA") == "NOERROR 2606:2800::1"  # known by now
        assert dig.short("good.example", "HTTPS") == "NOERROR soa"
        assert dig.world.servers.asked == [("good.example", "A"), ("good.example", "AAAA")]
        names = dig.world.names
        assert {names.name_of(ip_address(a)) for a in ("93.184.216.34", "93.184.216.35", "2606:2800::1")} == {
            "good.example"
        }
        assert [line[:2] for line in dig.told] == [("allow", "passed")] * 3

    real(tmp_path, test)


def test_denied_name_is_never_looked_up(tmp_path):
    async def test(dig):
        assert dig.short("data.evil.example") == "NOERROR 198.19.252.0 ede=15"
        assert dig.short("bad.example", "AAAA") == "NOERROR soa ede=15"
        assert dig.short("good.example", "TXT") == "NOERROR soa ede=15"
        await asyncio.sleep(0)
        assert not dig.world.servers.asked

    real(tmp_path, test)


def test_name_without_a_public_address_gets_a_synthetic_one(tmp_path):
    async def test(dig):
        dig.world.servers.known["inside.good.example", "A"] = ["127.0.0.1", str(OWN)]
        dig.ask("inside.good.example")
        dig.ask("missing.good.example")
        await settled(dig, 2)
        assert sorted(map(dig.line, dig.answers)) == ["NOERROR 198.18.0.1", "NOERROR 198.18.0.2"]
        assert dig.world.names.name_of(ip_address("127.0.0.1")) is None

    real(tmp_path, test)


def test_name_with_only_ipv4_has_no_ipv6_answer(tmp_path):
    async def test(dig):
        dig.world.servers.known["good.example", "A"] = ["93.184.216.34"]
        dig.ask("good.example", "AAAA")
        await settled(dig, 1)
        assert dig.line(dig.answers[0]) == "NOERROR soa"

    real(tmp_path, test)


def test_many_addresses_are_cut_to_the_answer_size(tmp_path):
    async def test(dig):
        dig.world.servers.known["good.example", "A"] = [f"93.184.216.{n}" for n in range(1, 200)]
        dig.ask("good.example")
        await settled(dig, 1)
        assert 8 <= len(dig.answers[0].answer[0]) <= 28

    real(tmp_path, test)


def test_concurrent_queries_share_one_lookup(tmp_path):
    async def test(dig):
        dig.world.servers.hold = asyncio.Event()
        dig.world.servers.known["good.example", "A"] = ["93.184.216.34"]
        for _ in range(50):
            dig.ask("good.example")
        await asyncio.sleep(0.01)
        assert not dig.answers
        dig.world.servers.hold.set()
        await settled(dig, 50)
        assert len(dig.world.servers.asked) == 2
        assert dig.world.names.name_of(ip_address("93.184.216.34")) == HostName("good.example")

    real(tmp_path, test)
