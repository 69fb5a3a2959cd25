"""Learned rules: the smallest rule file that allows the recorded attempts and nothing else."""

from collections import defaultdict

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.telemetry.events import Git
from proxy.telemetry.replay.learner import looks_secret
from proxy.telemetry.replay.replay import Effect, Replay
from rules.attempt import Attempt, Protocol, Request
from rules.learning.generalize import generalize_paths
from rules.learning.writing import add_notes
from rules.loading.load import failures
from rules.values.globs import ONE
from rules.values.names import HostName
from rules.values.paths import readings
from rules.verdicts import Outcome, Reason, Verdict
from tests.proxy.telemetry.replay.learned_rules import learned, rules_of
from tests.proxy.telemetry.replay.test_replay import (
    AUDITED,
    DENIED,
    FAILED,
    FLAGGED,
    GRANTED,
    MAIN,
    PASSED,
    connection,
    lookup,
    push,
    request,
)
from tests.rules.rule_texts import loaded, policy
from tests.support.telemetry_lab import HOSTILE

SECRETS_OF_RULES = "secrets: [{id: key, from: {env: X}, as: V, hosts: x.example, in: {header: authorization}}]\n"
TCP = {"port": 22, "protocol": Protocol.TCP}
NTP = {"port": 123, "protocol": Protocol.UDP}
LEARNED = [
    ([request(AUDITED, "GET", "/a")], ["allow GET x.example:443/tls /a"]),
    ([request(PASSED, "GET", "/a"), request(PASSED, "GET", "/a")], ["allow GET x.example:443/tls /a"]),
    ([request(FLAGGED, "GET", "/a")], ["flag GET x.example:443/tls /a"]),
    ([request(DENIED, "GET", "/a")], []),
    ([request(FAILED, "GET", "/a")], []),
    ([request(AUDITED, "GET", "/a/")], ["allow GET x.example:443/tls /a"]),
    ([request(AUDITED, "GET", f"/a/{n}") for n in range(2)], ["allow GET x.example:443/tls /a/0 /a/1"]),
    ([request(AUDITED, "GET", f"/a/{n}") for n in range(3)], ["allow GET x.example:443/tls /a/*"]),
    ([request(AUDITED, "GET", f"/a/{n % 2}/{n}") for n in range(3)], ["allow GET x.example:443/tls /a/0/0 /a/0/2 /a/1/1"]),
    (
        [request(AUDITED, "GET", f"/a/{m}/b/{n}") for m in range(3) for n in range(3)],
        ["allow GET x.example:443/tls /a/*/b/*"],
    ),
    (
        [request(AUDITED, "GET", "/a"), request(AUDITED, "HEAD", "/a"), request(AUDITED, "POST", "/b")],
        ["allow GET,HEAD x.example:443/tls /a", "allow POST x.example:443/tls /b"],
    ),
    (
        [request(AUDITED, method, "/a") for method in ("GET", "POST")] + [request(AUDITED, "POST", "/b")],
        ["allow GET x.example:443/tls /a", "allow POST x.example:443/tls /a /b"],
    ),
    ([request(AUDITED, "GET", "/@s%2fn")], ["allow GET x.example:443/tls /@s%2Fn /@s/n"]),
    ([request(AUDITED, "GET", "/a%2A%25")], ["allow GET x.example:443/tls /a%2A%25"]),
    ([request(AUDITED, "GET", "/%C3%A9/é")], ["allow GET x.example:443/tls /%C3%A9/%C3%A9"]),
    ([request(AUDITED, "GET", "/a//b")], []),
    ([request(AUDITED, "get", "/a")], []),
    ([request(AUDITED, "GET", "/a", port=8080, protocol=Protocol.HTTP)], ["allow GET x.example:8080/http /a"]),
    ([connection(AUDITED, **TCP, address="1.2.3.4")], ["allow x.example:22/tcp"]),
    ([connection(PASSED, **TCP, address="10.0.0.1")], ["allow x.example:22/tcp 10.0.0.1"]),
    ([connection(PASSED, address="1.2.3.4")], ["allow x.example:443/tls splice"]),
    ([connection(PASSED, address="1.2.3.4"), request(PASSED, "GET", "/a")], ["allow GET x.example:443/tls /a"]),
    ([connection(PASSED)], []),
    ([connection((Verdict.ASK, Outcome.PASSED, Reason.RULE), address="1.2.3.4")], []),
    ([request(GRANTED, "GET", "/a")], ["ask GET x.example:443/tls /a"]),
    (
        [request(PASSED, "GET", "/a"), request(GRANTED, "GET", "/b"), request(FLAGGED, "GET", "/c")],
        ["allow GET x.example:443/tls /a", "ask GET x.example:443/tls /b", "flag GET x.example:443/tls /c"],
    ),
    ([connection(GRANTED, **TCP, address="1.2.3.4")], ["ask x.example:22/tcp"]),
    ([request(PASSED, "GET", "/a", websocket=True)], ["allow GET x.example:443/tls /a websocket"]),
    (
        [request(PASSED, "GET", "/a", websocket=True), request(PASSED, "GET", "/b")],
        ["allow GET x.example:443/tls /b", "allow GET x.example:443/tls /a websocket"],
    ),
    ([request(PASSED, "GET", "/a", body=True)], ["allow GET x.example:443/tls /a body"]),
    ([request(PASSED, "POST", "/a", body=True)], ["allow POST x.example:443/tls /a"]),
    ([request(PASSED, "GET", "/a", address="10.1.2.3")], ["allow GET x.example:443/tls /a 10.1.2.3"]),
    ([push(MAIN)], ["allow x.example:443/tls git acme/web refs/heads/main update"]),
    (
        [push(MAIN), push(("create", "refs/tags/v1"), ("delete", "refs/heads/old"))],
        [
            "allow x.example:443/tls git acme/web refs/heads/main update",
            "allow x.example:443/tls git acme/web refs/heads/old delete",
            "allow x.example:443/tls git acme/web refs/tags/v1 create",
        ],
    ),
    ([push(("create", f"refs/heads/agent/{n}")) for n in range(3)], ["allow x.example:443/tls git acme/web refs/heads/agent/* create"]),
    ([push(MAIN)._replace(reason=Reason.APPROVAL_GRANTED)], ["ask x.example:443/tls git acme/web refs/heads/main update"]),
    ([request(PASSED, "POST", "/a/b/git-upload-pack", body=True, git=Git("fetch", "a/b"))], ["allow x.example:443/tls git a/b fetch"]),
    ([connection(PASSED, None, **TCP, address="1.2.3.4")], ["allow 1.2.3.4:22/tcp"]),
    ([connection(PASSED, None, **TCP, address="2606:4700::1")], ["allow 2606:4700::1:22/tcp"]),
    ([request(PASSED, "GET", "/a", None, address="2606:4700::1")], ["allow GET 2606:4700::1:443/tls /a"]),
    ([request(PASSED, "GET", "/a", "X.Example.")], ["allow GET x.example:443/tls /a"]),
    ([request(PASSED, "GET", "/a", "a..b")], []),
    ([connection(PASSED, **NTP, address="1.2.3.4")], ["allow x.example:123/udp"]),
    ([connection(FLAGGED, **NTP, address="10.0.0.1")], ["flag x.example:123/udp 10.0.0.1"]),
    ([connection(PASSED, None, **NTP, address="1.2.3.4")], ["allow 1.2.3.4:123/udp"]),
    ([connection(DENIED, **NTP)], []),
    ([lookup(AUDITED)], []),
    ([lookup(PASSED, kind="TXT"), lookup(PASSED, kind="MX"), request(PASSED, "GET", "/a")], ["allow GET x.example:443/tls /a MX TXT"]),
    ([lookup(PASSED), lookup(PASSED, kind="HTTPS"), request(PASSED, "GET", "/a")], ["allow GET x.example:443/tls /a"]),
    ([lookup(PASSED, kind="SRV"), connection(PASSED, **TCP, address="1.2.3.4")], ["allow x.example:22/tcp SRV"]),
    ([connection(PASSED, "host.exeat.internal", **TCP, address="127.0.0.1")], ["allow host.exeat.internal:22/tcp"]),
    ([connection(PASSED, **TCP, address="127.0.0.1")], []),
    ([connection(PASSED, None, **TCP, address="127.0.0.1")], []),
]  # fmt: skip


@pytest.mark.parametrize(("events", "expected"), LEARNED)
def test_attempts_become_these_rules(events, expected):
    assert rules_of(*events) == expected


@pytest.mark.parametrize("events", [events for events, rules in LEARNED if rules])
def test_learned_rules_allow_the_same_attempts(events):
    _, text = learned(*events)
    replay = Replay(loaded(text).policy, None)
    for event in events:
        replay.take(event)
    assert not replay.groups
    assert not replay.uncertain


LEFT_OUT = [
    (request(FAILED, "GET", "/a"), "attempts", "let out, and then it failed (upstream_failed)"),
    (request(AUDITED, "get", "/a"), "get to tls x.example:443", "no rule can name the method"),
    (request(AUDITED, "GET", "/a//b"), "GET to tls x.example:443/a//b", "no rule can name the path"),
    (connection(PASSED), "connections tls x.example:443", "no request on them was allowed, so no rule is needed"),
    (lookup(AUDITED), "lookups of x.example", "the name was only looked up: nothing was sent to it"),
    (lookup(PASSED, kind="TXT"), "lookups of x.example", "the name was only looked up: nothing was sent to it"),
    (lookup(PASSED, kind="ANY"), "attempts", "lookups of a type that no rule can allow"),
    (connection(PASSED, **TCP, address="127.0.0.1"), "tcp x.example:22", "no rule can open 127.0.0.1"),
    (request(AUDITED, "GET", "/a", "web.localhost"), "tls web.localhost:443", "no rule can open web.localhost"),
    (connection(PASSED, "a..b"), "attempts", "its name can't be read"),
    (request(PASSED, "GET", "/***"), "attempts", "a secret was in its path, which the journal doesn't record"),
    (request(PASSED, "GET", "/token=abc123def"), "GET to tls x.example:443", "the path looks like it holds a credential"),
    (connection(PASSED, protocol=Protocol.UDP), "attempts", "443/udp, which no rule can allow"),
    (request(PASSED, "POST", "/a/b.git/git-receive-pack"), "attempts", "pushes whose refs the journal doesn't record: write a rule with `git` and its `push`"),
    (request(PASSED, "GET", "/a/b/info/refs", git=Git("push", "a/b")), "pushes to tls x.example:443/a/b", "only started: the refs were never sent"),
    (push(("update", "refs/heads/x.lock")), "pushes to tls x.example:443", "no rule can name it as it was"),
    (push(("update", "refs/heads/ghp_0123456789abcdefghijABCDEFGHIJ012345")), "attempts", "what git asked for can't be read"),
    (request(PASSED, "GET", "/a/*", pattern=True), "attempts", "its path is not told (`log: pattern`)"),
]  # fmt: skip


@pytest.mark.parametrize(("event", "what", "why"), LEFT_OUT)
def test_omitted_attempts_are_listed_with_their_reason(event, what, why):
    drafted, text = learned(event)
    assert drafted.drafts == ()
    assert [(each.what, each.times, each.why) for each in drafted.left_out] == [(what, 1, why)]
    assert f"# Not learned:\n#   once: {what.replace('***', '***')}: {why}\n" in text


SECRETS = [
    "/bot123456:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw/send",
    "/services/T00000000/B00000000/xQ7mVn2KpL9sTzR4wYb3Hc8d",
    "/a/ghp_0123456789abcdefghijABCDEFGHIJ012345",
    "/a/eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abcdefghijk",
    "/login/password=hunter2",
    "/x/AKIAIOSFODNN7EXAMPLE",
]


@pytest.mark.parametrize("path", SECRETS)
def test_credentials_are_never_written(path):
    events = [request(PASSED, "GET", path), request(PASSED, "GET", "/a", task=path)]
    drafted, text = learned(*events)
    secret = max(path.replace("=", "/").split("/"), key=len) if "password" not in path else "hunter2"
    assert secret not in text
    assert [each.why for each in drafted.left_out] == ["the path looks like it holds a credential"]
    # With three values a `*` replaces it, so it is not written either.
    events = [request(PASSED, "GET", path.replace(secret, f"{secret[:-1]}{n}")) for n in range(3)]
    drafted, text = learned(*events)
    assert secret[:-1] not in text
    if drafted.drafts:
        assert failures(loaded(text)) == []


@pytest.mark.parametrize(
    "path",
    [
        "/packages/3b/00/2344469e2084fb287c2e0b57b72910309874c3245463acd6cf5e3db69324/six-1.17.0.tar.gz",
        "/v2/library/alpine/blobs/sha256:beefdbd8a1da6d2915566fde36db9db0b524eb737fc57cd1367effd16dc0d06d",
        "/acme/web/commit/0bb95925b454d02f32fa3c23aed7b4b9691270de",
        "/api/v1/namespaces/default/deployments",
    ],
)
def test_digests_and_words_are_not_credentials(path):
    assert not looks_secret(path)


def test_each_rule_has_its_evidence_in_a_comment():
    events = [request(PASSED, "GET", "/a", task=f"task-{n}") for n in range(7)]
    _, text = learned(*events)
    (line,) = [line for line in text.splitlines() if "seen 7 times" in line and line.lstrip().startswith("#")]
    assert "by `task-0`, `task-1`, `task-2`, `task-3`, `task-4` and 2 more" in line
    assert 'why: "learned: seen 7 times, last on 2' in text


def test_granted_approval_is_noted_beside_the_rule():
    granted = request(GRANTED, "GET", "/a", rules=("web:posts", "web:release"))
    said = "# people approved it: copy the `approval` terms of the rule that asked (web:posts, web:release)\n"
    assert said in learned(granted)[1]
    assert said.partition(":")[0] not in learned(request(PASSED, "GET", "/a"))[1]


SAID = "for: {tasks: x}, limits: {requests: 9}, scan: block, except: [{http: {paths: /b}}]"
LOOSER = [
    (f"http: {{query: {{a: b}}, headers: {{x-a: b}}, max_url: 100B}}, {SAID}", "`web:a`: for, http.query, http.headers, http.max_url, except, limits, scan"),
    ("credential: key, until: 2999-01-01, trust: trusted, log: pattern, idle_timeout: 9s", "`web:a`: credential, until, trust, log, idle_timeout"),
    ("http: {methods: [GET], paths: [/a], body: true}, ports: 443/tls, why: x", None),
]  # fmt: skip


@pytest.mark.parametrize(("said", "expected"), LOOSER)
def test_unlearned_keys_of_a_rule_are_noted_beside_it(said, expected):
    drafted, _ = learned(
        request(PASSED, "GET", "/a", rules=("web:a", "gone:b")), request(GRANTED, "GET", "/b", rules=("web:a",))
    )
    head = f"version: 1\nname: web\n{SECRETS_OF_RULES}rules:\n  - {{id: a, to: x.example, {said}, action: allow}}\n"
    made, looser = add_notes(drafted, {f"web:{rule.id.partition(':')[2]}": rule for rule in loaded(head).policy.rules})
    notes = [note for draft in made.drafts for note in draft.notes if note.startswith("NOT TAKEN OVER")]
    assert notes == ([f"NOT TAKEN OVER from {expected}"] if expected else [])
    assert looser == len(notes)


def test_lookup_allowed_only_by_an_ask_rule_is_omitted():
    drafted, _ = learned(lookup(PASSED, kind="TXT"), request(GRANTED, "GET", "/a"))
    assert [(each.what, each.why) for each in drafted.left_out] == [
        ("lookups of TXT of x.example", "no rule allows the name without an approval")
    ]


NOT_RECORDED = [
    (request(PASSED, "GET", "/a", address=None), "which address the name had; a non-public one must be listed under `resolves_to`"),
    (request(PASSED, "GET", "/a", body=None), "whether a request had a body or was a WebSocket, which this journal doesn't record"),
]  # fmt: skip


@pytest.mark.parametrize(("event", "untold"), NOT_RECORDED)
def test_unrecorded_facts_are_noted_beside_the_rule(event, untold):
    assert f"# NOT RECORDED: {untold}\n" in learned(event)[1]
    assert "NOT RECORDED" not in learned(request(PASSED, "GET", "/a"), request(PASSED, "POST", "/a", body=None))[1]


def test_non_public_address_is_marked():
    _, text = learned(
        connection(PASSED, **TCP, address="10.1.2.3"), connection(PASSED, None, **TCP, address="10.1.2.4")
    )
    assert "# NOT A PUBLIC ADDRESS: it resolved to 10.1.2.3, private use\n" in text
    assert "# NOT A PUBLIC ADDRESS: private use\n" in text
    assert 'resolves_to: ["10.1.2.3"]' in text


@pytest.mark.parametrize(
    "text", [*HOSTILE.values(), "x\n  - {id: evil, to: '*', action: allow}", "a: b # c", "*/x", "'\"`"]
)
def test_hostile_text_stays_a_comment(text):
    events = [
        request(PASSED, "GET", "/a", task=text),
        request(PASSED, "GET", f"/{text}", task=text),
        request(PASSED, text, "/a"),
        request(PASSED, "GET", "/a", text),
        connection(PASSED, text, **TCP, address=text),
        lookup(PASSED, text),
        push(("update", f"refs/heads/{text}")),
        push(MAIN)._replace(git=Git("push", text, (f"update {MAIN[1]} {'0' * 40} {'1' * 40}",))),
        request(GRANTED, "GET", "/b", rules=(text,)),
    ]
    drafted, written_file = learned(*events)
    assert all(line.isascii() and line.isprintable() for line in written_file.split("\n"))
    file = loaded(written_file)
    assert failures(file) == []
    assert {rule.id.partition(":")[2] for rule in file.policy.rules} == {draft.id for draft in drafted.drafts}
    assert all(name.below is None for rule in file.policy.rules for name in rule.names), "no wildcard for a name"
    assert not file.policy.decide(Attempt(Protocol.TLS, HostName("evil.example"), 443)).passes
    lines = [line for line in written_file.split("\n") if not line.lstrip().startswith("#")]
    assert lines.count("rules:") == 1


SEGMENTS = st.sampled_from(["a", "b", "c", "d", "x%2Fy", "é", "..", "", "%41", "*", "a;b", "1"])
PATHS = st.lists(SEGMENTS, max_size=4).map(lambda parts: "/" + "/".join(parts))
NAMES = st.sampled_from(["x.example", "y.example", "z.y.example", "a_b.example"])
AUDIT = policy("  - {id: no, to: z.y.example, http: {methods: [DELETE]}, action: deny}", "settings: {mode: audit}")


def journal_of(attempts):
    """Return the events of these attempts in audit mode: a connection and each request on it."""
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
def test_learned_rules_allow_the_whole_journal_except_omissions(attempts):
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
def test_learned_rules_allow_nothing_unseen(attempts, name, port, protocol, method, path):  # noqa: PLR0917
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
def test_learned_rules_allow_no_unseen_websocket_or_get_body(attempts, name, path, body, websocket):
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
def test_wildcard_needs_three_values_in_the_same_position(seen):
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


def test_learned_ids_are_unique_and_short():
    name = ".".join(["a" * 60] * 3)
    events = [request(PASSED, "GET", "/a", f"{n}.{name}") for n in range(12)]
    events += [request(PASSED, "GET", "/a", f"{name}.t{n}") for n in range(12)]
    assert len(rules_of(*events)) == 24
