"""What was learned, replayed over the journal that it was learned from."""

from collections import defaultdict

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.telemetry.replay.replay import Effect, Replay
from rules.attempt import Attempt, Protocol, Request
from rules.globs import ONE
from rules.learning.generalize import generalize_paths
from rules.loading.load import failures
from rules.names import HostName
from rules.paths import readings
from tests.proxy.telemetry.replay.learning_harness import learned, rules_of
from tests.proxy.telemetry.replay.test_replay import PASSED, connection, lookup, request
from tests.rules.writing import loaded, policy

SEGMENTS = st.sampled_from(["a", "b", "c", "d", "x%2Fy", "é", "..", "", "%41", "*", "a;b", "1"])
PATHS = st.lists(SEGMENTS, max_size=4).map(lambda parts: "/" + "/".join(parts))
NAMES = st.sampled_from(["x.example", "y.example", "z.y.example", "a_b.example"])
AUDIT = policy("  - {id: no, to: z.y.example, http: {methods: [DELETE]}, action: deny}", "settings: {mode: audit}")


def journal_of(attempts):
    """What an audit-mode gate would tell of these attempts: a connection, and each request on it."""
    events = []
    for name, port, protocol, asked in attempts:
        attempt = Attempt(protocol, HostName(name), port)
        decision = AUDIT.decide(attempt)
        judged = decision.verdict, decision.outcome, decision.reason
        address = "1.2.3.4" if protocol is Protocol.TCP else None
        looked_up = AUDIT.decide_name(attempt.target)
        events.append(lookup((looked_up.verdict, looked_up.outcome, looked_up.reason), name))
        events += [connection(judged, name, port=port, protocol=protocol, address=address)]
        for method, path, *more in asked if protocol is not Protocol.TCP else ():
            kind = dict(zip(("body", "websocket"), more, strict=False))
            decision = AUDIT.decide(attempt._replace(request=Request(method, path, **kind)))
            judged = decision.verdict, decision.outcome, decision.reason
            events.append(request(judged, method, path, name, port=port, protocol=protocol, **kind))
    return events


attempted = st.lists(
    st.tuples(
        NAMES,
        st.sampled_from([443, 80, 8443, 22]),
        st.sampled_from([Protocol.TLS, Protocol.HTTP, Protocol.TCP]),
        st.lists(st.tuples(st.sampled_from(["GET", "POST", "DELETE", "get"]), PATHS), max_size=6),
    ),
    max_size=6,
)
# with bodies, and as WebSockets
carrying = st.lists(
    st.tuples(
        NAMES,
        st.sampled_from([443, 8443]),
        st.just(Protocol.TLS),
        st.lists(st.tuples(st.sampled_from(["GET", "POST"]), PATHS, st.booleans(), st.booleans()), max_size=6),
    ),
    max_size=4,
)
many = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@many
@given(attempted | carrying)
def test_replayed_over_the_same_journal_it_allows_all_that_is_not_left_out(attempts):
    events = journal_of(attempts)
    drafted, text = learned(*events)
    file = loaded(text)
    assert failures(file) == []
    replay = Replay(file.policy, None)
    for event in events:
        replay.take(event)
    broken = sum(tally.counts.total() for group, tally in replay.groups.items() if group.effect is Effect.BREAKS)
    assert not [group for group in replay.groups if group.effect is not Effect.BREAKS]
    assert not replay.uncertain
    left_out = sum(each.times for each in drafted.left_out)
    assert broken <= left_out, list(replay.groups)
    if not left_out:
        assert broken == 0


@many
@given(attempted, NAMES, st.sampled_from([443, 80, 8443, 22]), st.sampled_from([Protocol.TLS, Protocol.HTTP, Protocol.TCP]), st.sampled_from(["GET", "POST", "DELETE", "PUT"]), PATHS)  # fmt: skip
def test_it_allows_nothing_unseen(attempts, name, port, protocol, method, path):  # noqa: PLR0917
    """No name, port, protocol or method; and a segment only where it was seen, or three others were."""
    _, text = learned(*journal_of(attempts))
    learnt = loaded(text).policy
    asked = None if protocol is Protocol.TCP else Request(method, path)
    if not learnt.decide(Attempt(protocol, HostName(name), port, asked)).passes:
        return
    if any(place == [name, port, Protocol.TCP] for *place, _ in attempts):
        return  # raw TCP is any bytes
    there = [asked for *place, asked in attempts if place == [name, port, protocol]]
    assert there, "nobody went there"
    assert asked is not None
    seen = {reading for one in there for used, raw in one if used == method for reading in readings(raw)}
    for reading in readings(path):
        alike = [other for other in seen if len(other) == len(reading)]
        values = defaultdict(set)
        for other in alike:
            for at, segment in enumerate(other):
                values[at].add(segment)
        assert alike
        assert all(segment in values[at] or len(values[at]) >= 3 for at, segment in enumerate(reading))


@many
@given(carrying, NAMES, PATHS, st.booleans(), st.booleans())
def test_it_allows_no_websocket_and_no_body_of_a_get_unseen(attempts, name, path, body, websocket):
    _, text = learned(*journal_of(attempts))
    learnt = loaded(text).policy
    if not learnt.decide(
        Attempt(Protocol.TLS, HostName(name), 443, Request("GET", path, body=body, websocket=websocket))
    ).passes:
        return
    seen = [(b, w) for n, port, _, asked in attempts if (n, port) == (name, 443) for m, _, b, w in asked if m == "GET"]
    assert not websocket or any(w for _, w in seen)
    assert not body or any(b for b, _ in seen)


@many
@given(st.lists(st.lists(st.sampled_from("abcd"), max_size=3).map(tuple), max_size=12))
def test_a_star_stands_only_where_three_values_were_seen_beside_the_same(seen):
    patterns = generalize_paths(seen)
    for pattern in patterns:
        for at, part in enumerate(pattern):
            if part is ONE:
                covered = [
                    one
                    for one in seen
                    if len(one) == len(pattern) and all(p is ONE or p == s for p, s in zip(pattern, one, strict=True))
                ]
                assert len({one[at] for one in covered}) >= 3
    assert all(
        any(len(p) == len(one) and all(q is ONE or q == s for q, s in zip(p, one, strict=True)) for p in patterns)
        for one in seen
    )


def test_ids_are_unique_and_short():
    name = ".".join(["a" * 60] * 3)
    events = [request(PASSED, "GET", "/a", f"{n}.{name}") for n in range(12)]
    events += [request(PASSED, "GET", "/a", f"{name}.t{n}") for n in range(12)]
    assert len(rules_of(*events)) == 24
