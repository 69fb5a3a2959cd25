"""What is counted against a rule's limits, and what they hold back."""

import pytest

from proxy.sandbox.rule_limits import Connections, Exceeded, Meter, Meters
from rules.decision import Limits
from tests.proxy.gate.gate_lab import HOSTS, RAW, SPLICED, GateLab, client_hello, policy_of, run


class Clock:
    """A clock that is set by hand."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def meters(clock):
    return Meters(clock)


def admit(meters, size=0, connection=None, **limits):
    return meters.admit([("r:a", Limits(**limits))], connection or Connections(), size)


def field(found):
    """The limit that is used up, or None for what may pass."""
    return found.field if isinstance(found, Exceeded) else None


def test_connection_limit_without_a_window_counts_open_ones(meters):
    first, second = Connections(), Connections()
    assert field(admit(meters, connection=first, connections=2)) is None
    assert field(admit(meters, connection=second, connections=2)) is None
    assert admit(meters, connections=2) == Exceeded("r:a", "connections", 2)
    first.close()
    first.close()  # twice is once
    assert field(admit(meters, connections=2)) is None
    assert field(admit(meters, connections=2)) == "connections"


@pytest.mark.parametrize(
    ("limit", "counted", "said"),
    [(1, "requests", "1 request"), (2, "requests", "2 requests"), (1, "connections", "1 connection"),
     (1, "bytes_up", "1 byte up"), (9, "bytes_down", "9 bytes down"), (1, "bytes", "1 byte")],
)  # fmt: skip
def test_exceeded_limit_is_described_in_singular_or_plural(limit, counted, said):
    assert str(Exceeded("r:a", counted, limit)) == f"`r:a` allows {said}, and that is used up"


def test_connection_limit_with_a_window_counts_new_ones(meters, clock):
    for _ in range(2):
        connection = Connections()
        assert field(admit(meters, connection=connection, connections=2, window=60.0)) is None
        connection.close()
    assert field(admit(meters, connections=2, window=60.0)) == "connections"
    clock.now += 59
    assert field(admit(meters, connections=2, window=60.0)) == "connections"
    clock.now += 10
    assert field(admit(meters, connections=2, window=60.0)) is None


def test_requests_on_one_connection_count_as_one_connection(meters):
    kept = Connections()
    found = [field(admit(meters, connection=kept, connections=1, requests=3)) for _ in range(4)]
    assert found == [None, None, None, "requests"]
    assert field(admit(meters, connections=1, requests=99)) == "connections"


def test_refused_connection_is_not_counted(meters):
    assert field(admit(meters, connections=1, requests=5)) is None
    for _ in range(9):
        assert field(admit(meters, connections=1, requests=5)) == "connections"
    assert meters.used() == {("r:a", "connections"): 1.0, ("r:a", "requests"): 0.2}


@pytest.mark.parametrize("way", ["up", "down"])
def test_no_piece_exceeds_a_byte_limit(meters, way):
    meter = admit(meters, **{f"bytes_{way}": 1000})
    take = getattr(meter, way)
    other = getattr(meter, "down" if way == "up" else "up")
    assert (take(600), take(400), other(10**9)) == (True, True, True)
    assert meter.rule_over() is None  # all of it is used, and nobody wanted more
    assert take(1) is False
    assert (meter.exceeded.field, meter.rule_over()) == (f"bytes_{way}", "r:a")
    assert (take(0), other(1)) == (False, False)  # and nothing passes ever after
    assert field(admit(meters, **{f"bytes_{way}": 1000})) == f"bytes_{way}"


def test_oversized_piece_is_not_counted_and_ends_users_of_the_limit(meters):
    first, second = admit(meters, bytes_up=1000), admit(meters, bytes_up=1000)
    unmetered = meters.admit([("r:b", Limits(bytes_up=10))], Connections())
    assert isinstance(unmetered, Meter)
    assert (first.up(900), second.up(101), second.rule_over(), first.rule_over(), unmetered.rule_over()) == (
        True, False, "r:a", "r:a", None,
    )  # fmt: skip
    assert isinstance(admit(meters, bytes_up=1000), Meter)  # there is room for what is small enough


def test_request_head_counts_as_sent_bytes(meters):
    assert field(admit(meters, size=600, bytes_up=1000)) is None
    assert field(admit(meters, size=401, bytes_up=1000)) == "bytes_up"
    assert field(admit(meters, size=400, bytes_up=1000)) is None
    assert field(admit(meters, bytes_up=1000)) == "bytes_up"  # an empty head too would be more


def test_every_limit_of_every_rule_applies(meters):
    narrow, wide = ("r:narrow", Limits(requests=1)), ("r:wide", Limits(requests=3))
    assert isinstance(meters.admit([wide, narrow], Connections()), Meter)
    assert meters.admit([wide, narrow], Connections()) == Exceeded("r:narrow", "requests", 1)
    assert isinstance(meters.admit([wide], Connections()), Meter)
    assert meters.used() == {("r:wide", "requests"): pytest.approx(2 / 3), ("r:narrow", "requests"): 1.0}


def test_sliding_window_never_forgets_too_early(meters, clock):
    """Whatever the moments: within any `window` seconds no more passes than the limit."""
    passed = []
    for step in range(400):
        clock.now = 1000.0 + step * 0.7
        if not isinstance(admit(meters, requests=5, window=16.0), Exceeded):
            passed.append(clock.now)
    assert all(sum(start <= at <= start + 16.0 for at in passed) <= 5 for start in passed)
    assert len(passed) > 40  # and it does let go


def test_reload_changes_limits_and_keeps_counts(meters):
    open_one = Connections()
    admit(meters, connection=open_one, connections=5, requests=5)
    assert field(admit(meters, connections=5, requests=1)) == "requests"
    assert field(admit(meters, connections=1, requests=9)) == "connections"
    assert field(admit(meters, connections=1, requests=9, window=60.0)) is None  # another window counts anew
    meters.keep({"r:a"})
    assert field(admit(meters, connections=1)) == "connections"
    meters.keep(())
    assert field(admit(meters, connections=1)) == "connections"  # what is open is never forgotten
    open_one.close()


def test_rule_without_limits_refuses_nothing(meters):
    meter = admit(meters)
    assert all((meter.up(1 << 40), meter.down(1 << 40)))
    assert meters.used() == {}


# through the gate

HELLO = client_hello("good.example")


def gate(tmp_path, limits, test, **how):
    async def inside():
        rules = [f"{rule}, limits: {{{limits}}}" if limits else rule for rule in (SPLICED, RAW)]
        async with GateLab(tmp_path, rules, **{"hosts": HOSTS, **how}) as world:
            await test(world)
            assert not world.errors

    run(inside)


async def passed_on(world):
    task = await world.connect("good.example")
    await task.send(HELLO)
    server = await world.origin.take()
    assert await server.read_exactly(len(HELLO)) == HELLO
    return task, server


def test_connection_beyond_the_limit_is_denied_before_dialing(tmp_path):
    async def test(world):
        task, server = await passed_on(world)
        refused = await world.connect("good.example")
        await refused.send(HELLO)
        assert await refused.ended() == "reset"
        decision = await world.decision(2)
        assert (decision["verdict"], decision["outcome"], decision["reason"]) == ("deny", "blocked", "limit_exceeded")
        assert decision["rules"] == ["r:good"]
        assert world.origin.accepted == 1
        task.close()
        server.close()
        await world.closing()
        await passed_on(world)

    gate(tmp_path, "connections: 1", test, inspect=False)


@pytest.mark.parametrize("way", ["up", "down"])
def test_transfer_is_reset_before_it_exceeds_its_limit(tmp_path, way):
    room = 10_000 - (len(HELLO) if way == "up" else 0)

    async def test(world):
        task, server = await passed_on(world)
        sender, receiver = (task, server) if way == "up" else (server, task)
        await sender.send(b"x" * room)
        assert await receiver.read_exactly(room) == b"x" * room
        await sender.send(b"y")
        assert (await receiver.ended(), await sender.ended()) == ("reset", "reset")
        closed = await world.closing()
        assert (closed["outcome"], closed["reason"], closed["rules"]) == ("blocked", "limit_exceeded", ["r:good"])
        assert closed["bytes"][way] == 10_000
        again = await world.connect("good.example")
        await again.send(HELLO)
        assert await again.ended() == "reset"
        assert (await world.decision(2))["reason"] == "limit_exceeded"
        assert world.origin.accepted == 1
        assert world.metrics.limits_used() == {}  # a test's metrics know no rules
        assert world.sandbox.meters.used() == {("r:good", f"bytes_{way}"): 1.0}

    gate(tmp_path, f"bytes_{way}: 10000B", test, inspect=False)


def test_limit_exceeded_by_one_connection_ends_the_others(tmp_path):
    async def test(world):
        quiet, quiet_server = await passed_on(world)
        busy, _ = await passed_on(world)
        await busy.send(b"x" * 20_000)
        assert await busy.ended() == "reset"
        assert (await quiet.ended(), await quiet_server.ended()) == ("reset", "reset")
        await world.closing(2)
        assert [closing["reason"] for closing in world.closings] == ["limit_exceeded"] * 2

    gate(tmp_path, "bytes_up: 10000B", test)


def test_spliced_connection_counts_as_one_request(tmp_path):
    async def test(world):
        for _ in range(2):
            task = await world.connect("raw.example")
            server = await world.origin.take()
            task.close()
            server.close()
        await world.closing(2)
        refused = await world.connect("raw.example")
        assert await refused.ended() == "reset"
        assert (await world.decision(3))["reason"] == "limit_exceeded"

    gate(tmp_path, "requests: 2", test)


NOW = {
    "a limit where there was none": ("", "bytes_{way}: 10000B", 10_000),
    "a lower one": ("bytes_{way}: 1MB", "bytes_{way}: 10000B", 10_000),
    "one of another rule": ("bytes_{way}: 1MB", None, 10_000),
    "a higher one": ("bytes_{way}: 10000B", "bytes_{way}: 20000B", 20_000),
}


@pytest.mark.parametrize("way", ["up", "down"])
@pytest.mark.parametrize(("before", "after", "most"), NOW.values(), ids=NOW)
def test_open_connection_continues_under_new_limits(tmp_path, before, after, most, way):
    """A connection may live for a day: what an admin sets while it is open holds for it, too."""
    more = f"id: more, to: good.example, ports: PORT/tls, action: flag, limits: {{bytes_{way}: 10000B}}"

    async def test(world):
        task, server = await passed_on(world)
        port = str(world.origin.port)
        rule = SPLICED.replace("ORIGIN", port)
        if after is None:
            rules = [rule, more.replace("PORT", port) + ", tls: splice, resolves_to: 127.0.0.0/8"]
        else:
            rules = [f"{rule}, limits: {{{after.format(way=way)}}}"]
        world.sandbox.policy = policy_of(tmp_path, rules)
        world.sandbox.meters.keep(frozenset(world.sandbox.policy.rule_ids))
        world.gate.review()
        sender, receiver = (task, server) if way == "up" else (server, task)
        counted = len(HELLO) if way == "up" and before else 0  # from when there is a limit
        room = most - counted
        if after is None:
            room = most  # its rule counts from now on
        await sender.send(b"x" * room)
        assert await receiver.read_exactly(room) == b"x" * room
        await sender.send(b"y")
        assert (await receiver.ended(), await sender.ended()) == ("reset", "reset")
        assert (await world.closing())["reason"] == "limit_exceeded"

    gate(tmp_path, before.format(way=way), test, inspect=False)


def test_connection_that_exceeds_a_new_limit_ends(tmp_path):
    async def test(world):
        task, server = await passed_on(world)
        await task.send(b"x" * 5000)
        await server.read_exactly(5000)
        world.sandbox.policy = policy_of(
            tmp_path, [SPLICED.replace("ORIGIN", str(world.origin.port)) + ", limits: {bytes_up: 1000B}"]
        )
        world.gate.review()
        assert (await task.ended(), await server.ended()) == ("reset", "reset")
        assert (await world.closing())["reason"] == "limit_exceeded"

    gate(tmp_path, "bytes_up: 1MB", test, inspect=False)


def test_open_connection_counts_no_request_under_new_rules(tmp_path):
    async def test(world):
        task, server = await passed_on(world)
        limited = SPLICED.replace("ORIGIN", str(world.origin.port)) + ", limits: {connections: 1, requests: 1}"
        for _ in range(2):
            world.sandbox.policy = policy_of(tmp_path, [limited])
            world.gate.review()
        assert world.sandbox.meters.used() == {("r:good", "connections"): 1.0, ("r:good", "requests"): 0.0}
        await task.send(b"x")
        assert await server.read_exactly(1) == b"x"
        task.close()
        server.close()
        await world.closing()
        assert world.sandbox.meters.used() == {("r:good", "connections"): 0.0, ("r:good", "requests"): 0.0}

    gate(tmp_path, "", test, inspect=False)
