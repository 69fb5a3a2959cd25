"""All flows of one sandbox: what is refused, how many there may be, limits, and other rules coming into force."""

import asyncio
import errno
from datetime import UTC, datetime
from ipaddress import ip_address

import pytest

from proxy.udp import flow, listener
from proxy.udp.listener import IDLE_BEFORE_EVICTION, REMEMBERED
from proxy.udp.sockets import blocks_datagrams
from tests.proxy.udp.udp_lab import CLIENT, ELSEWHERE, HOST, UDP, reasons, tried
from tests.support.waiting import wait_until_async

REFUSED = [
    ("an address no rule lists", (), ip_address("93.184.216.34"), 123, "udp"),
    ("another port of a name", (UDP,), HOST, 9, "udp"),
    ("a rule about TCP alone", (f"id: t, to: {HOST}, ports: PORT/tcp, action: allow",), HOST, None, "udp"),
    ("QUIC", (UDP,), HOST, 443, "quic"),
    ("a deny", (UDP, f"id: d, to: {HOST}, action: deny"), HOST, None, "rule"),
    ("an ask", (UDP, f"id: q, to: {HOST}, ports: PORT/udp, action: ask"), HOST, None, "approval_unavailable"),
    ("a deny of requests that nobody sees", (UDP, "id: d, to: '*', http: {methods: [PUT]}, action: deny"), HOST, None, "rule"),
    ("a metadata service", ("id: w, to: 0.0.0.0/0, ports: 80/udp, action: allow",), ip_address("169.254.169.254"), 80, "non_public_address"),
    ("an address of the pool that stands for nothing", (UDP,), ip_address("198.18.77.77"), 123, "unresolved"),
    ("the sandbox itself", (UDP,), CLIENT, 15001, "non_public_address"),
    ("the loopback", (UDP,), ip_address("127.0.0.1"), 15001, "non_public_address"),
    ("a group", (UDP,), ip_address("224.0.0.251"), 5353, "non_public_address"),
    ("a link", (UDP,), ip_address("fe80::1%1"), 123, "non_public_address"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("rules", "to", "port", "reason"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_denied_flow_is_recorded_once_and_answered_each_time(tmp_path, rules, to, port, reason):
    async def test(world, udp, server):
        for _ in range(3):
            udp.send(to, port or server.port, b"12345")
        assert reasons(world.decisions) == [("blocked", reason)]
        assert [size for *_, size in udp.answers.refused] == [5] * 3
        assert (udp.gate.flows, world.metrics.datagrams_refused) == (0, 3)
        udp.now += REMEMBERED
        udp.send(to, port or server.port)
        assert reasons(world.decisions) == [("blocked", reason)] * 2
        assert server.take() is None

    tried(test, tmp_path, ELSEWHERE, *rules)


def test_audit_mode_allows_no_unlisted_flow(tmp_path):
    async def test(world, udp, server):
        udp.send(ip_address("93.184.216.34"), 123)
        assert reasons(world.decisions) == [("blocked", "udp")]

    tried(test, tmp_path, ELSEWHERE, mode="audit")


def test_flow_to_a_private_address_is_denied(tmp_path):
    async def test(world, udp, server):
        udp.send("inward.example", 123)
        assert reasons(world.decisions) == [("blocked", "non_public_address")]
        assert len(udp.answers.refused) == 1

    tried(test, tmp_path, "id: i, to: inward.example, ports: 123/udp, action: allow", hosts="10.0.0.1 inward.example\n")


def test_full_journal_denies_flows(tmp_path):
    async def test(world, udp, server):
        world.journal.full = True
        udp.send(HOST, server.port)
        assert (server.take(), udp.gate.flows, len(udp.answers.refused)) == (None, 0, 1)
        world.journal.full = False
        udp.send(HOST, server.port)
        assert (await server.hear())[0] == b"question"
        assert reasons(world.decisions) == [("passed", "rule")]

    tried(test, tmp_path, UDP)


def test_flood_of_denied_flows_is_rate_limited_and_counted(tmp_path):
    async def test(world, udp, server):
        for client in range(5000):
            udp.send(ip_address("93.184.216.34"), 1 + client % 400, b"x", 1 + client)
        assert len(world.decisions) == 100
        assert world.metrics.datagrams_refused == len(udp.answers.refused) == 5000
        assert len(udp.gate._refused) <= 1024
        udp.now += 1
        for client in range(100):
            udp.send(ip_address("93.184.216.34"), 402, b"x", 1 + client)
        assert len(world.decisions) == 120

    tried(test, tmp_path, ELSEWHERE)


def test_flows_beyond_the_maximum_are_denied(tmp_path):
    async def test(world, udp, server):
        for client in range(1, 6):
            udp.send(HOST, server.port, b"x", client)
        assert udp.gate.flows == 4
        assert reasons(world.decisions) == [("passed", "rule")] * 4 + [("blocked", "limit_exceeded")]
        udp.now += REMEMBERED
        udp.send(HOST, server.port, b"still here", 1)
        udp.send(HOST, server.port, b"x", 5)  # the second has been quiet longest, and makes way
        assert udp.gate.flows == 4
        assert reasons(world.closings) == [("passed", "limit_exceeded")]
        assert world.closings[0]["cause"] == world.decisions[1]["id"]
        udp.now += IDLE_BEFORE_EVICTION / 2
        udp.send(HOST, server.port, b"x", 6)
        assert world.closings[1]["cause"] == world.decisions[2]["id"]

    tried(test, tmp_path, UDP, most=4)


LIMITED = UDP.replace("action", "limits: {LIMIT}, action")


def test_rule_limits_bound_flows_and_sent_bytes(tmp_path):
    async def test(world, udp, server):
        udp.send(HOST, server.port, bytes(600), 1)
        await server.hear()
        udp.send(HOST, server.port, bytes(401), 1)
        assert reasons(world.closings) == [("blocked", "limit_exceeded")]
        assert world.closings[0]["bytes"] == {"up": 600, "down": 0}
        assert len(udp.answers.refused) == 1
        assert server.take() is None
        udp.send(HOST, server.port, bytes(401), 1)  # what is left would not hold it either
        await wait_until_async(lambda: len(world.closings) == 2)
        assert server.take() is None

    tried(test, tmp_path, LIMITED.replace("LIMIT", "bytes_up: 1000B"))


def test_rule_limits_bound_received_bytes(tmp_path):
    async def test(world, udp, server):
        udp.send(HOST, server.port)
        _, peer = await server.hear()
        for size in (600, 401):
            server.sock.sendto(bytes(size), peer)
        await wait_until_async(lambda: world.closings)
        assert [len(data) for *_, data in udp.answers.replies] == [600]
        assert world.closings[0]["bytes"] == {"up": 8, "down": 600}
        assert reasons(world.closings) == [("blocked", "limit_exceeded")]

    tried(test, tmp_path, LIMITED.replace("LIMIT", "bytes_down: 1000B"))


def test_flow_counts_as_a_connection(tmp_path):
    async def test(world, udp, server):
        for client in (1, 2):
            udp.send(HOST, server.port, b"x", client)
        assert reasons(world.decisions) == [("passed", "rule"), ("blocked", "limit_exceeded")]
        udp.now += 200
        udp.gate.periodic_tasks.go()
        udp.send(HOST, server.port, b"x", 2)
        assert reasons(world.decisions[2:]) == [("passed", "rule")]

    tried(test, tmp_path, LIMITED.replace("LIMIT", "connections: 1"))


# other rules come into force


def test_socket_is_blocked_unless_a_rule_allows_udp(tmp_path):
    async def test(world, udp, server):
        assert blocks_datagrams(udp.door)
        udp.reload(tmp_path, ELSEWHERE)
        assert not blocks_datagrams(udp.door)
        udp.reload(tmp_path, "id: a, to: x.example, action: allow")
        assert blocks_datagrams(udp.door)

    tried(test, tmp_path, "id: a, to: x.example, action: allow")


def test_socket_that_cannot_be_blocked_is_closed(tmp_path, monkeypatch):
    def cannot(*_):
        raise OSError(errno.EPERM, "not now")

    async def test(world, udp, server):
        monkeypatch.setattr(listener, "block_datagrams", cannot)
        udp.reload(tmp_path, "id: a, to: x.example, action: allow")
        assert udp.door.fileno() < 0
        (error,) = world.errors
        assert "not now" in error["fault"]["detail"]
        world.journal.events.remove(error)
        udp.reload(tmp_path, ELSEWHERE)
        world.journal.events = [event for event in world.events if event["kind"] != "gate.error"]

    tried(test, tmp_path, ELSEWHERE)


def test_open_flows_end_when_new_rules_deny_them(tmp_path):
    async def test(world, udp, server):
        for client in (1, 2):
            udp.send(HOST, server.port, b"x", client)
        keeps = UDP.replace("PORT", str(server.port))
        udp.reload(tmp_path, keeps, ELSEWHERE)
        assert (udp.gate.flows, world.closings) == (2, [])
        udp.reload(tmp_path, keeps, f"id: d, to: {HOST}, action: deny")
        assert udp.gate.flows == 0
        assert reasons(world.closings) == [("blocked", "rule")] * 2
        assert [closing["rules"] for closing in world.closings] == [["r:d"]] * 2
        assert len(udp.answers.refused) == 2

    tried(test, tmp_path, UDP)


def test_denied_flows_end_though_their_end_raises(tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("on purpose")

    async def test(world, udp, server):
        udp.send(HOST, server.port, b"x")
        await server.hear()
        (one,) = udp.gate.open_flows.values()
        with monkeypatch.context() as patch:
            patch.setattr("proxy.sandbox.rule_limits.Quota.end", broken)
            udp.reload(tmp_path, ELSEWHERE)
        assert one._server.fileno() == -1
        assert reasons(world.closings) == [("blocked", "non_public_address")]
        (error,) = world.errors
        assert "on purpose" in error["fault"]["detail"]
        world.journal.events.remove(error)

    tried(test, tmp_path, UDP)


def test_flow_in_lookup_is_decided_by_new_rules(tmp_path):
    async def test(world, udp, server):
        world.servers.hold = asyncio.Event()
        udp.send("elsewhere.example", 123)
        udp.reload(tmp_path, ELSEWHERE, "id: d, to: '*', action: deny")
        assert reasons(world.decisions) == [("blocked", "rule")]
        assert (udp.gate.flows, udp.gate.queued_bytes) == (0, 0)

    tried(test, tmp_path, ELSEWHERE)


def test_open_flow_continues_under_new_limits(tmp_path):
    async def test(world, udp, server):
        udp.send(HOST, server.port, bytes(5000), 1)
        await server.hear()
        udp.reload(tmp_path, LIMITED.replace("LIMIT", "bytes_up: 1000B").replace("PORT", str(server.port)))
        udp.send(HOST, server.port, bytes(1000), 1)
        assert len((await server.hear())[0]) == 1000
        udp.send(HOST, server.port, b"x", 1)
        assert reasons(world.closings) == [("blocked", "limit_exceeded")]
        assert world.closings[0]["bytes"] == {"up": 6000, "down": 0}
        assert server.take() is None

    tried(test, tmp_path, UDP)


def test_flow_that_exceeds_a_new_limit_ends(tmp_path):
    async def test(world, udp, server):
        udp.send(HOST, server.port, bytes(5000), 1)
        await server.hear()
        udp.reload(tmp_path, LIMITED.replace("LIMIT", "bytes_up: 1000B").replace("PORT", str(server.port)))
        assert reasons(world.closings) == [("blocked", "limit_exceeded")]
        assert world.closings[0]["rules"] == world.decisions[0]["rules"] != []
        assert len(udp.answers.refused) == 1

    tried(test, tmp_path, LIMITED.replace("LIMIT", "bytes_up: 1MB"))


def test_denial_is_not_remembered_over_a_reload(tmp_path):
    async def test(world, udp, server):
        udp.send(HOST, server.port)
        udp.reload(tmp_path, UDP.replace("PORT", str(server.port)))
        udp.send(HOST, server.port)
        assert (await server.hear())[0] == b"question"
        assert reasons(world.decisions) == [("blocked", "non_public_address"), ("passed", "rule")]

    tried(test, tmp_path, ELSEWHERE)


def test_flows_end_with_the_until_date_of_their_rule(tmp_path):
    last = datetime(2096, 1, 31, tzinfo=UTC).timestamp()

    async def test(world, udp, server):
        world.sandbox.calendar._clock = lambda: last
        udp.gate.review()
        udp.send(HOST, server.port)
        await server.hear()
        world.sandbox.calendar._clock = lambda: last + 86_400
        udp.gate.periodic_tasks.go()
        assert reasons(world.closings) == [("blocked", "expired")]

    tried(test, tmp_path, UDP.replace("action", "until: 2096-01-31, action"))


# the end, and what breaks


@pytest.mark.parametrize("where", ["known", "connect", "tell", "send"])
def test_exception_denies_its_flow_and_the_next_is_relayed(tmp_path, monkeypatch, where):
    def broken(*_, **__):
        raise RuntimeError("broken on purpose")

    async def test(world, udp, server):
        owner, name = {
            "known": (type(world.dialer), "known"),
            "connect": (flow, "connect_first_reachable"),
            "tell": (flow.Flow, "_send"),
            "send": (flow.Flow, "_queue"),
        }[where]
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, broken)
            udp.send(HOST, server.port, b"x", 1)
        assert (udp.gate.flows, server.take(), len(udp.answers.refused)) == (0, None, 1)
        assert "broken on purpose" in world.errors[0]["fault"]["detail"]
        assert {event["reason"] for event in (*world.decisions, *world.closings)} <= {"gate_error", "rule"}
        world.journal.events = [event for event in world.events if event["kind"] != "gate.error"]
        udp.send(HOST, server.port, b"next", 2)
        assert (await server.hear())[0] == b"next"

    tried(test, tmp_path, UDP)


def test_exception_ends_its_flow_and_the_others_continue(tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("broken on purpose")

    async def test(world, udp, server):
        for client in (1, 2):
            udp.send(HOST, server.port, b"x", client)
            await server.hear()
        with monkeypatch.context() as patched:
            patched.setattr(flow.Flow, "_send", broken)
            udp.send(HOST, server.port, b"y", 1)
        assert reasons(world.closings) == [("failed", "gate_error")]
        assert (udp.gate.flows, len(udp.answers.refused)) == (1, 1)
        world.journal.events = [event for event in world.events if event["kind"] != "gate.error"]
        udp.send(HOST, server.port, b"z", 2)
        assert (await server.hear())[0] == b"z"

    tried(test, tmp_path, UDP)


def test_malformed_destinations_break_nothing(tmp_path):
    async def test(world, udp, server):
        for sockaddr in (b"", b"\0" * 15, b"\0" * 40):
            with pytest.raises(ValueError, match="destination of"):
                udp.gate._handle_datagram(b"x", sockaddr, ("::1", 1, 0, 0))
        assert udp.gate.flows == 0

    tried(test, tmp_path, UDP)
