"""Connections that compiled code knows again, from accept to their end; and all that isn't as it was, and isn't known."""

import asyncio
import contextlib
import socket
import time
from datetime import date
from ipaddress import ip_address

import pytest
from gate_harness import (
    SPLICED,
    TIMEOUT,
    Client,
    Origin,
    World,
    client_hello,
    ech_hello,
    extension,
    hello_message,
    made_hello,
    open_descriptors,
    policy_of,
    records,
    run,
    server_name,
)  # fmt: skip

from proxy import regular, regulars
from proxy.rounds import EVERY
from rules.names import HostName
from tests import harness

HERE, THERE, ELSEWHERE = "127.0.0.1", "127.0.0.2", "127.0.0.3"
DENIED = "id: good, to: good.example, action: deny"


@pytest.fixture(autouse=True)
def there():
    if regulars.COMPILED is None:
        harness.missing("a C compiler")


class Known(World):
    """A gate that stands at the address which its task was told, with the origin behind it at another one."""

    def __init__(self, tmp_path, rules=(SPLICED,), *, where=THERE, origin_of=Origin, **settings):
        listener = None
        while listener is None:  # both have the same port
            origin = origin_of(where)
            with contextlib.suppress(OSError):
                listener = socket.create_server((HERE, origin.port), backlog=512)
        hosts = f"{where} good.example\n{ELSEWHERE} evil.example\n"
        super().__init__(tmp_path, list(rules), origin=origin, hosts=hosts, listener=listener, **settings)
        self.names.remember(HostName("good.example"), [ip_address(HERE)])
        self.rules = list(rules)
        self.directory = tmp_path
        self.known = []
        self.hello = client_hello()

    async def __aenter__(self):
        await super().__aenter__()
        within = self.gate._regulars
        welcome = within._welcome
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(
            regulars.Regulars, "_welcome", lambda _, news, usual: (self.known.append(news), welcome(news, usual))
        )
        return self

    async def __aexit__(self, *how):
        self._patch.undo()
        await super().__aexit__(*how)
        if not self.poller.is_alone:
            self.poller.close()

    async def connect(self, hello=b""):
        sock = socket.socket()
        self._clients.append(sock)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, self.listener.getsockname())
        client = Client(sock)
        if hello:
            await client.send(hello)
        return client

    async def take(self):
        """Take what has come to the origin; it is closed with the rest."""
        far = await self.origin.take()
        self._clients.append(far.sock)
        return far

    async def open_one(self, hello=None):
        """Have one connection pass, and leave it open."""
        hello = self.hello if hello is None else hello
        client = await self.connect(hello)
        far = await self.take()
        assert await far.read_exactly(len(hello)) == hello
        return client, far

    async def pass_one(self, hello=None):
        """Have one connection pass, in peace."""
        client, far = await self.open_one(hello)
        await far.send(b"answer")
        assert await client.read_exactly(6) == b"answer"
        client.shutdown()
        assert await far.ended() == "end"
        far.close()
        assert await client.ended() == "end"
        client.close()
        await self.closing(len(self.decisions))

    async def go_by(self):
        """Let a round of the gate go by."""
        await asyncio.sleep(EVERY * 1.2)

    def put(self, *rules, **settings):
        """Put other rules in force, and say nothing of it yet."""
        written = [rule.replace("ORIGIN", str(self.origin.port)) for rule in rules]
        self.tenant.policy = policy_of(self.directory, written, **settings)


def known(test, tmp_path, *rules, errors=0, **settings):
    """Run a test in a world where good.example has been greeted before."""

    async def within():
        before = open_descriptors()
        async with Known(tmp_path, rules or (SPLICED,), **settings) as world:
            await world.pass_one()
            assert not world.known
            await test(world)
            assert len(world.errors) == errors
        assert open_descriptors() <= before

    run(within)


def alike(events):
    """What must be the same of two connections."""
    own = {"time", "id", "cause", "duration"}
    return [{key: value for key, value in event.items() if key not in own} for event in events]


def test_those_that_follow_are_known_and_told_as_the_first(tmp_path):
    async def test(world):
        for _ in range(3):
            await world.pass_one()
        assert len(world.known) == 3
        pairs = [world.events[at : at + 2] for at in range(0, 8, 2)]
        for decided, closed in pairs:
            assert alike([decided, closed]) == alike(pairs[0])
            assert closed["cause"] == decided["id"]
            assert 0 <= closed["duration"] < TIMEOUT
        assert len({event["id"] for event in world.events}) == 8
        metrics = world.metrics
        assert metrics.connections_open == 0
        assert sum(metrics.decisions.values()) == sum(metrics.peek_seconds.counts) == 4
        assert sum(metrics.dial_seconds["connected"].counts) == 4
        assert metrics.bytes_up == 4 * len(world.hello)
        assert metrics.bytes_down == 4 * len(b"answer")

    known(test, tmp_path)


def test_one_that_greets_late_is_known_too(tmp_path):
    async def test(world):
        client = await world.connect()
        await world.until(lambda: world.gate.connections == 1)
        await client.send(world.hello)
        far = await world.take()
        assert await far.read_exactly(len(world.hello)) == world.hello
        assert len(world.known) == 1

    known(test, tmp_path)


def test_where_others_want_their_turn_nobody_is_waited_for_here(tmp_path):
    async def test(world):
        late = await world.connect()
        await world.until(lambda: world.gate.connections == 1)
        assert not world.gate._regulars.silent
        await late.send(world.hello)
        await (await world.take()).read_exactly(len(world.hello))
        assert not world.known
        sock = socket.create_connection(world.listener.getsockname())
        sock.sendall(world.hello)  # before the gate has its turn
        with sock:
            await (await world.take()).read_exactly(len(world.hello))
            assert len(world.known) == 1
            sock.shutdown(socket.SHUT_WR)
            world._clients.pop().close()
        await world.until(lambda: world.gate.connections == 1)
        late.close()

    known(test, tmp_path, in_turn=True)


def test_what_comes_with_the_greeting_and_behind_it_arrives(tmp_path):
    async def test(world):
        data = world.hello + b"early" * 100_000
        client = await world.connect()
        sending = asyncio.create_task(client.send(data))
        far = await world.take()
        assert await far.read_exactly(len(data)) == data
        await sending
        assert len(world.known) == 1

    known(test, tmp_path)


def test_another_random_is_the_same_greeting(tmp_path):
    async def test(world):
        again = client_hello()
        assert again != world.hello
        await world.pass_one(again)
        assert len(world.known) == 1

    known(test, tmp_path)


@pytest.mark.parametrize(
    ("hello", "reason"),
    [
        pytest.param(lambda: client_hello("evil.example"), "name_mismatch", id="another name"),
        pytest.param(lambda: client_hello(None), "sni_missing", id="no name"),
        pytest.param(ech_hello, "ech", id="encrypted"),
        pytest.param(lambda: b"GET / HTTP/1.1\r\nHost: good.example\r\n\r\n", "protocol_mismatch", id="no TLS"),
        pytest.param(lambda: b"\x16\x03\x01" + bytes(600), "protocol_mismatch", id="nearly TLS"),
    ],
)
def test_whoever_says_anything_else_is_judged_by_that(tmp_path, hello, reason):
    async def test(world):
        client = await world.connect(hello())
        decision = await world.decision(2)
        assert (decision["outcome"], decision["reason"]) == ("blocked", reason)
        await client.ended()
        assert not world.known
        assert world.origin.accepted == 1

    known(test, tmp_path, inspect=False)


def test_no_byte_of_a_greeting_that_is_read_can_be_another(tmp_path):
    async def test(world):
        size = len(world.hello)
        for at in [*range(12), *range(43, size, 11)]:
            other = bytearray(world.hello)
            other[at] ^= 1
            before = len(world.known)
            client = await world.connect(bytes(other))
            said = world.gate.recall.recognise(bytes(other), whole_head=False)
            client.shutdown()  # or what is cut short would be waited for
            decision = await world.decision(len(world.decisions) + 1)
            as_before = said is world.gate.recall.recognise(world.hello, whole_head=False)
            assert (len(world.known) > before) == as_before
            if as_before:
                (await world.take()).close()
            else:
                assert decision["outcome"] == "blocked" or world.origin.accepted
            client.close()

    known(test, tmp_path, inspect=False)


def test_a_greeting_in_pieces_goes_the_way_of_all_others(tmp_path):
    async def test(world):
        client = await world.connect()
        for at in range(0, len(world.hello), 100):
            await client.send(world.hello[at : at + 100])
            await asyncio.sleep(0.002)
        far = await world.take()
        assert await far.read_exactly(len(world.hello)) == world.hello
        assert not world.known

    known(test, tmp_path)


def test_one_that_says_nothing_is_waited_for_as_any_other(tmp_path):
    async def test(world):
        began = time.monotonic()
        client = await world.connect()
        await world.until(lambda: world.gate.connections == 1)
        assert world.gate._regulars.silent == 1
        await world.until(lambda: not world.gate._regulars.silent)
        assert world.gate.connections == 1
        waiting = next(iter(world.gate._guests))
        assert began <= waiting._account.opened <= time.monotonic() - 0.9  # it began when it was accepted
        await client.send(world.hello)
        await (await world.take()).read_exactly(len(world.hello))

    known(test, tmp_path)


@pytest.mark.parametrize("how", ["end", "reset"])
def test_one_that_leaves_before_it_greets_is_told(tmp_path, how):
    async def test(world):
        client = await world.connect()
        await world.until(lambda: world.gate.connections == 1)
        client.shutdown() if how == "end" else client.reset()
        assert (await world.decision(2))["outcome"] == "blocked"
        await world.until(lambda: not world.gate.connections)

    known(test, tmp_path)


def test_hundreds_that_say_nothing_are_all_counted_and_told(tmp_path):
    async def test(world):
        clients = [await world.connect() for _ in range(300)]
        await world.until(lambda: world.gate.connections == 300)
        assert world.gate._regulars.silent <= 256
        await world.pass_one()
        for client in clients:
            client.reset()
        await world.until(lambda: len(world.decisions) == 302)
        await world.until(lambda: not world.gate.connections)

    known(test, tmp_path, most=400)


def test_more_than_may_be_are_refused(tmp_path):
    async def test(world):
        open_ones = [await world.open_one() for _ in range(3)]
        assert len(world.known) == 3
        refused = await world.connect(world.hello)
        assert await refused.ended() == "reset"
        assert world.decisions[-1]["reason"] == "limit_exceeded"
        for client, far in open_ones:
            far.close()
            client.close()

    known(test, tmp_path, most=3)


# what is asked anew for each


def changed_rules(world):
    world.put(DENIED)


def changed_rules_said(world):
    world.put(DENIED)
    world.gate.review()


def changed_host(world):
    world.names.remember(HostName("evil.example"), [ip_address(HERE)])


def changed_address(world):
    world.hosts.write_text(f"{ELSEWHERE} good.example\n")
    world.lookup._look_again_at = 0.0


@pytest.mark.parametrize("change", [changed_rules, changed_rules_said], ids=["in force", "and said to be"])
def test_under_other_rules_nobody_is_known(tmp_path, change):
    async def test(world):
        await world.pass_one()
        change(world)
        client = await world.connect(world.hello)
        decision = await world.decision(3)
        assert (decision["outcome"], decision["reason"]) == ("blocked", "rule")
        assert await client.ended() == "reset"
        assert len(world.known) == 1
        assert world.origin.accepted == 2

    known(test, tmp_path, inspect=False)


def test_where_an_address_stands_for_another_name_too_nobody_is_known(tmp_path):
    async def test(world):
        await world.pass_one()
        world.names.remember(HostName("evil.example"), [ip_address(HERE)])
        await world.pass_one()
        evil = await world.connect(client_hello("evil.example"))
        assert (await world.decision(4))["reason"] == "no_rule"
        assert await evil.ended() == "reset"
        assert len(world.known) == 1

    known(test, tmp_path, inspect=False)


def test_where_a_name_leads_elsewhere_that_is_dialled(tmp_path):
    async def test(world):
        await world.pass_one()
        world.hosts.write_text(f"{ELSEWHERE} good.example\n")
        world.lookup._look_again_at = 0.0
        await asyncio.sleep(regulars._GOOD_FOR)
        await world.connect(world.hello)
        assert (await world.decision(3))["destination"]["address"] == ELSEWHERE
        assert (await world.closing(3))["reason"] == "upstream_failed"  # nobody is there
        assert len(world.known) == 1
        assert world.origin.accepted == 2

    known(test, tmp_path)


class Day:
    """A calendar that is turned by hand."""

    def __init__(self):
        self.day = date(2026, 1, 1)

    def today(self):
        return self.day


def test_on_another_day_nobody_is_known(tmp_path):
    async def test(world):
        await world.pass_one()
        world.tenant.calendar.day = date(2026, 1, 2)
        client = await world.connect(world.hello)
        assert (await world.decision(3))["outcome"] == "blocked"
        assert await client.ended() == "reset"
        assert len(world.known) == 1

    known(test, tmp_path, f"{SPLICED}, until: 2026-01-01", calendar=Day(), inspect=False)


def test_once_the_task_is_tainted_nobody_is_known(tmp_path):
    async def test(world):
        await world.pass_one()
        world.tenant.tainted = True
        client = await world.connect(world.hello)
        assert (await world.decision(3))["outcome"] == "blocked"
        assert await client.ended() == "reset"
        assert len(world.known) == 1

    tainted = "id: no, to: good.example, when: tainted, action: deny"
    known(test, tmp_path, SPLICED, tainted, inspect=False)


def test_what_has_limits_is_never_known(tmp_path):
    async def test(world):
        for _ in range(2):
            await world.pass_one()
        client = await world.connect(world.hello)
        assert (await world.decision(4))["reason"] == "limit_exceeded"
        await client.ended()
        assert not world.known

    known(test, tmp_path, f"{SPLICED}, limits: {{connections: 3, window: 1h}}", inspect=False)


def test_what_could_not_be_told_isnt_dialled(tmp_path):
    async def test(world):
        world.journal.full = True
        client = await world.connect(world.hello)
        assert await client.ended() == "reset"
        assert len(world.known) == 1
        world.journal.full = False
        assert len(world.decisions) == 1
        assert world.metrics.decisions[next(key for key in world.metrics.decisions if "journal_failed" in key)] == 1
        await world.pass_one()
        assert world.origin.accepted == 2

    known(test, tmp_path)


def test_one_that_cant_be_dialled_is_told_as_the_first_would_be(tmp_path):
    async def test(world):
        await world.origin.stop()
        told = []
        for forget in (False, True):
            if forget:
                world.gate._regulars.forget()
            client = await world.connect(world.hello)
            assert await client.ended() == "reset"
            told.append(alike([world.decisions[-1], await world.closing(len(world.decisions))]))
        assert len(world.known) == 1
        assert told[0] == told[1]
        assert told[0][1]["reason"] == "upstream_failed"
        assert "connection refused" in told[0][1]["detail"]

    known(test, tmp_path)


# those that stay


async def grown(world):
    """Open one that is known, and let it become one like any other."""
    client, far = await world.open_one()
    assert len(world.known) == 1
    await world.go_by()
    assert not isinstance(next(iter(world.gate._guests)), regular.Regular)
    return client, far


def test_one_that_stays_goes_on_as_any_other(tmp_path):
    async def test(world):
        client, far = await grown(world)
        for data in (b"x" * 500_000, b"y"):
            sending = asyncio.create_task(client.send(data))
            assert await far.read_exactly(len(data)) == data
            await sending
        far.shutdown()
        assert await client.ended() == "end"
        client.shutdown()
        assert await far.ended() == "end"
        closing = await world.closing(2)
        assert closing["outcome"] == "passed"
        assert closing["bytes"] == {"up": len(world.hello) + 500_001, "down": 0}
        assert sum(world.metrics.dial_seconds["connected"].counts) == 2

    known(test, tmp_path)


@pytest.mark.parametrize("old", [False, True], ids=["new", "grown"])
def test_other_rules_end_it(tmp_path, old):
    async def test(world):
        client, far = await (grown(world) if old else world.open_one())
        world.put(DENIED)
        world.gate.review()
        closing = await world.closing(2)
        assert (closing["outcome"], closing["reason"]) == ("blocked", "rule")
        assert await client.ended() == await far.ended() == "reset"

    known(test, tmp_path)


def test_limits_that_come_into_force_hold_it(tmp_path):
    async def test(world):
        client, far = await world.open_one()
        world.put(f"{SPLICED}, limits: {{bytes_up: 1KB}}")
        world.gate.review()
        await client.send(b"x" * 900)
        assert await far.read_exactly(900) == b"x" * 900
        await client.send(b"x" * 900)
        closing = await world.closing(2)
        assert (closing["outcome"], closing["reason"]) == ("blocked", "limit_exceeded")
        assert await client.ended() == "reset"

    known(test, tmp_path)


@pytest.mark.parametrize("who", ["client", "far"])
def test_a_cut_is_carried_over(tmp_path, who):
    async def test(world):
        client, far = await world.open_one()
        (client if who == "client" else far).reset()
        assert await (far if who == "client" else client).ended() == "reset"
        closing = await world.closing(2)
        assert closing["outcome"] == ("passed" if who == "client" else "failed")
        assert closing.get("reason") == (None if who == "client" else "upstream_failed")

    known(test, tmp_path)


def test_a_gate_that_closes_ends_all_and_tells(tmp_path):
    async def test(world):
        old = await grown(world)
        new = await world.open_one()
        silent = await world.connect()
        await world.until(lambda: world.gate.connections == 3)
        world.gate.close()
        assert world.gate.connections == 0
        for client in (old[0], new[0], silent):
            assert await client.ended() == "reset"
        assert len(world.decisions) == 4
        assert [each["reason"] for each in world.closings[1:]] == ["gate_error", "gate_error"]

    known(test, tmp_path)


# those whose server doesn't answer


@contextlib.contextmanager
def unanswering(world):
    """Have the origin's queue full, so that the kernel leaves who comes without an answer."""
    world.origin._task.cancel()
    world.origin.listener.listen(0)
    waiting = []
    for _ in range(8):
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(world.origin.listener.getsockname())
        waiting.append(sock)
    yield
    for sock in waiting:
        sock.close()


def test_one_whose_server_doesnt_answer_ends_in_time(tmp_path, monkeypatch):
    monkeypatch.setattr(regular, "CONNECT_TIMEOUT", 0.5)

    async def test(world):
        with unanswering(world):
            client = await world.connect(world.hello)
            closing = await world.closing(2)
            assert len(world.known) == 1
            assert (closing["outcome"], closing["reason"]) == ("failed", "upstream_failed")
            assert closing["bytes"] == {"up": 0, "down": 0}
            assert await client.ended() == "reset"

    known(test, tmp_path)


def test_other_rules_end_one_that_is_dialled(tmp_path):
    async def test(world):
        with unanswering(world):
            client = await world.connect(world.hello)
            await world.decision(2)
            world.put(DENIED)
            world.gate.review()
            closing = await world.closing(2)
            assert (closing["outcome"], closing["reason"]) == ("blocked", "rule")
            assert await client.ended() == "reset"

    known(test, tmp_path)


# what a task can fill


def test_more_greetings_than_are_remembered_are_learned_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(regulars, "MOST_USUAL", 4)

    async def test(world):
        hellos = [made_hello(server_name(b"good.example"), extension(0x9999, bytes(size))) for size in range(6)]
        for hello in hellos:
            await world.pass_one(hello)
        assert len(world.gate._regulars._usual) <= 4
        await world.pass_one(hellos[-1])
        assert len(world.known) == 1

    known(test, tmp_path)


def test_a_greeting_in_several_records_is_never_known(tmp_path):
    async def test(world):
        for _ in range(3):
            await world.pass_one(records(hello_message([server_name(b"good.example")]), 40))
        assert not world.known

    known(test, tmp_path)


@pytest.mark.parametrize("where", ["_usual_of", "_welcome", "dial"])
def test_an_exception_ends_the_one_and_no_other(tmp_path, monkeypatch, where):
    async def test(world):
        def raising(*_):
            raise RuntimeError("broken on purpose")

        with monkeypatch.context() as patch:
            if where == "dial":
                patch.setattr(world.gate._regulars._lane, "dial", raising)
            else:
                patch.setattr(regulars.Regulars, where, raising)
            client = await world.connect(world.hello)
            assert await client.ended() == "reset"
        await world.until(lambda: not world.gate.connections)
        assert "broken on purpose" in world.errors[0]["fault"]["detail"]
        assert [each["reason"] for each in world.closings[1:]] == (["gate_error"] if where == "dial" else [])
        await world.pass_one()
        assert world.origin.accepted == 2

    known(test, tmp_path, errors=1)


def test_one_that_nobody_can_be_known_by_passes_anyway(tmp_path, monkeypatch):
    async def test(world):
        def raising(*_):
            raise RuntimeError("broken on purpose")

        monkeypatch.setattr(regulars.Regulars, "learn", raising)
        world.gate._regulars.forget()
        await world.pass_one()
        assert "broken on purpose" in world.errors[0]["fault"]["detail"]
        assert not world.known

    known(test, tmp_path, errors=1)


def test_one_whose_end_cant_be_told_is_kept_no_longer(tmp_path, monkeypatch):
    async def test(world):
        def raising(*_, **__):
            raise RuntimeError("broken on purpose")

        client, far = await world.open_one()
        monkeypatch.setattr("proxy.account.Account.ended", raising)
        far.reset()
        assert await client.ended() == "reset"
        await world.until(lambda: world.errors)
        assert not world.gate.connections

    known(test, tmp_path, errors=1)
