"""`exeat replay`: recorded attempts decided again."""

import itertools
import json
import time

import pytest

from enforcer.cli import main
from proxy.telemetry.encoding import encode
from proxy.telemetry.events import Destination, Dns, Event, Git, Http, Kind, Origin, Tls
from proxy.telemetry.replay.replay import Effect, Replay
from rules.attempt import Protocol
from rules.verdicts import Outcome, Reason, Verdict
from tests.rules.rule_texts import policy
from tests.support.telemetry_lab import HOSTILE

_ids = itertools.count()
PASSED = (Verdict.ALLOW, Outcome.PASSED, Reason.RULE)
FLAGGED = (Verdict.FLAG, Outcome.PASSED, Reason.RULE)
FAILED = (Verdict.ALLOW, Outcome.FAILED, Reason.UPSTREAM_FAILED)
AUDITED = (Verdict.DENY, Outcome.WOULD_BLOCK, Reason.NO_RULE)
DENIED = (Verdict.DENY, Outcome.BLOCKED, Reason.NO_RULE)
ASKED = (Verdict.DENY, Outcome.BLOCKED, Reason.APPROVAL_UNAVAILABLE)
GRANTED = (Verdict.ALLOW, Outcome.PASSED, Reason.APPROVAL_GRANTED)


def refused(reason):
    return Verdict.DENY, Outcome.BLOCKED, reason


def told(kind, judged, name="x.example", port=443, protocol=Protocol.TLS, *, task="build", **more):
    """One decision event."""
    verdict, outcome, reason = judged
    number = next(_ids)
    more.setdefault("destination", Destination(name, more.pop("address", None), port))
    return Event(
        time=time.time_ns() + number,
        id=f"{number:08d}",
        kind=kind,
        **Origin.of(f"t-{task}", task, {}, "s", "h")._asdict(),
        verdict=verdict,
        outcome=outcome,
        reason=reason,
        protocol=protocol,
        **more,
    )


def connection(judged, name="x.example", **more):
    return told(Kind.CONNECTION_DECIDED, judged, name, **more)


def request(judged, method, path, name="x.example", **more):
    """Return a recorded request; an allowed one has a public dialled address by default."""
    said = {each: more.pop(each) for each in ("body", "websocket", "query", "pattern") if each in more}
    http = Http(method, name, path, **{"body": False, **said})
    address = "1.2.3.4" if judged[1] is not Outcome.BLOCKED and "destination" not in more else None
    return told(Kind.REQUEST_DECIDED, judged, name, http=http, **{"address": address, **more})


def lookup(judged, name="x.example", kind="A", **more):
    return told(Kind.DNS_DECIDED, judged, name, 53, Protocol.UDP, dns=Dns(name, kind), **more)


def replayed(rules, *events, head=""):
    replay = Replay(policy(rules, head), None)
    for event in events:
        replay.take(event)
    assert replay.attempts == len(events)
    return replay


WEB = "  - {id: web, to: x.example, http: {methods: [GET], paths: [/a]}, action: allow}\n"
CLOCK = "  - {id: clock, to: x.example, ports: 123/udp, action: allow}\n"
NTP = {"port": 123, "protocol": Protocol.UDP}
SPLICED = "  - {id: web, to: x.example, tls: splice, action: allow}\n"
RAW = "  - {id: db, to: x.example, ports: 22/tcp, resolves_to: 10.0.0.0/8, action: allow}\n"

# rules, event, what comes of it (None: nothing)
DECIDED = [
    (WEB, request(PASSED, "GET", "/a"), None),
    (WEB, request(PASSED, "POST", "/a"), ("breaks", "allowed", "blocked", "no_rule")),
    (WEB, request(FAILED, "POST", "/a"), ("breaks", "allowed", "blocked", "no_rule")),
    (WEB, request(DENIED, "POST", "/a"), None),
    (WEB, request(DENIED, "GET", "/a"), ("opens", "blocked", "allowed", "rule")),
    (WEB, request(AUDITED, "POST", "/a"), ("breaks", "audited", "blocked", "no_rule")),
    (WEB, request(AUDITED, "GET", "/a"), "settled"),
    (WEB.replace("allow", "flag"), request(PASSED, "GET", "/a"), ("otherwise", "allowed", "flagged", "rule")),
    (WEB.replace("allow", "flag"), request(FLAGGED, "GET", "/a"), None),
    (
        WEB.replace("allow", "ask"),
        request(PASSED, "GET", "/a"),
        ("breaks", "allowed", "asked", "approval_unavailable"),
    ),
    (WEB.replace("allow", "ask"), request(ASKED, "GET", "/a"), None),
    (WEB.replace("allow", "ask"), request(GRANTED, "GET", "/a"), None),
    (WEB.replace("allow", "ask"), request(refused(Reason.APPROVAL_TIMEOUT), "GET", "/a"), None),
    (WEB.replace("allow", "ask"), connection((Verdict.ASK, Outcome.PASSED, Reason.RULE)), None),
    (WEB, request(GRANTED, "GET", "/a"), ("opens", "asked", "allowed", "rule")),
    (WEB, connection(PASSED), None),
    (WEB, connection(PASSED, "y.example"), ("breaks", "allowed", "blocked", "no_rule")),
    (WEB, connection(PASSED, port=22, protocol=Protocol.TCP), ("breaks", "allowed", "blocked", "no_rule")),
    (RAW, connection(PASSED, port=22, protocol=Protocol.TCP, address="10.1.2.3"), None),
    (
        RAW,
        connection(PASSED, port=22, protocol=Protocol.TCP, address="11.1.2.3"),
        ("breaks", "allowed", "blocked", "address_not_listed"),
    ),
    (SPLICED, connection(PASSED, tls=Tls("x.example", ech=True)), ("breaks", "allowed", "blocked", "ech")),
    (WEB, connection(refused(Reason.ECH), tls=Tls("x.example", ech=True)), ("opens", "blocked", "allowed", "rule")),
    (
        WEB,
        connection(PASSED, tls=Tls("x.example", ("imap",))),
        ("breaks", "allowed", "blocked", "protocol_mismatch"),
    ),
    (SPLICED, connection(PASSED, tls=Tls("x.example", ("imap",))), None),
    (WEB, lookup(PASSED), None),
    (WEB, lookup(PASSED, "y.example"), ("breaks", "allowed", "blocked", "dns_denied")),
    (WEB, lookup(refused(Reason.DNS_DENIED)), ("opens", "blocked", "allowed", "rule")),
    (WEB, lookup(PASSED, kind="HTTPS"), None),
    (WEB, lookup(refused(Reason.DNS_TYPE), kind="TXT"), None),
    ("  - {id: ip, to: 1.2.3.4, action: allow}", connection(PASSED, None, address="1.2.3.4"), None),
    (CLOCK, connection(PASSED, **NTP, address="1.2.3.4"), None),
    (CLOCK, connection(PASSED, **NTP, address="10.0.0.1"), ("breaks", "allowed", "blocked", "non_public_address")),
    (WEB, connection(PASSED, **NTP, address="1.2.3.4"), ("breaks", "allowed", "blocked", "udp")),
    (CLOCK, connection(refused(Reason.UDP), **NTP, address="198.18.0.1"), ("opens", "blocked", "allowed", "rule")),
    (WEB, connection(refused(Reason.UDP), **NTP), None),
    ("  - {id: ip, to: 1.2.3.5, action: allow}", connection(PASSED, None, address="1.2.3.4"), ("breaks", "allowed", "blocked", "no_rule")),
]  # fmt: skip


@pytest.mark.parametrize(("rules", "event", "expected"), DECIDED)
def test_replay_decides_attempts_as_the_gate_does(rules, event, expected):
    replay = replayed(rules, event)
    assert (replay.skipped.total(), replay.fixed.total()) == (0, 0)
    found = [(group.effect, group.was.fate, group.now.fate, group.now.reason) for group in replay.groups]
    if expected is None or expected == "settled":
        assert found == []
        assert (replay.unchanged, replay.settled) == ((0, 1) if expected else (1, 0))
    else:
        assert found == [expected]


def test_udp_through_a_proxy_is_blocked():
    replay = replayed(CLOCK, connection(PASSED, **NTP), head="settings: {upstream: 'http://proxy.example:3128'}")
    assert [(group.effect, group.now.reason) for group in replay.groups] == [("breaks", "udp")]


NOT_DECIDED = [
    (refused(Reason.NAME_MISMATCH), {}, "decided before any rule is asked (name_mismatch)", True),
    (refused(Reason.INVALID_NAME), {"name": "a..b"}, "decided before any rule is asked (invalid_name)", True),
    (refused(Reason.QUIC), {"protocol": Protocol.UDP}, "decided before any rule is asked (quic)", True),
    (refused(Reason.LIMIT_EXCEEDED), {}, "blocked for what the journal doesn't record (limit_exceeded)", False),
    (refused(Reason.GATE_ERROR), {}, "blocked for what the journal doesn't record (gate_error)", False),
    (refused(Reason.BODY_NOT_ALLOWED), {}, "blocked for what the journal doesn't record (body_not_allowed)", False),
    (refused(Reason.NON_PUBLIC_ADDRESS), {}, "refused for an address that the journal doesn't record (non_public_address)", False),
    (PASSED, {"name": "a..b"}, "its name can't be read", False),
    (PASSED, {"protocol": None}, "its destination or protocol is missing", False),
    (PASSED, {"destination": None}, "its destination or protocol is missing", False),
    (PASSED, {"name": None, "address": "nowhere"}, "its destination can't be read", False),
]  # fmt: skip


@pytest.mark.parametrize(("judged", "more", "why", "fixed"), NOT_DECIDED)
def test_undecidable_attempts_are_counted_by_reason(judged, more, why, fixed):
    replay = replayed(WEB, connection(judged, **more))
    assert dict(replay.fixed if fixed else replay.skipped) == {why: 1}
    assert not (replay.skipped if fixed else replay.fixed)
    assert (replay.groups, replay.unchanged, replay.settled) == ({}, 0, 0)


def test_command_attempts_are_not_decided_again():
    """Their events have only one of a program's names, and programs without a rule have no event."""
    command = request(PASSED, "GET", "/a")._replace(kind=Kind.COMMAND_DECIDED, http=None, argv=("git", "push"))
    replay = replayed(WEB, command)
    assert sum(replay.skipped.values()) == 1
    started = command._replace(kind=Kind.TASK_STARTED, verdict=None)
    for head, expected in (("commands: [{id: a, run: git push, action: deny}]", 1), ("", 0)):
        replay = Replay(policy(WEB, head), None)
        replay.take(started)
        assert (sum(replay.skipped.values()), replay.attempts) == (expected, 0)


def test_cut_path_is_undecidable():
    long = encode(request(PASSED, "GET", "/" + "a" * 5000))
    path = json.loads(long)["http"]["path"]
    replay = replayed("  - {id: all, to: x.example, action: allow}", request(PASSED, "GET", path))
    assert dict(replay.skipped) == {"its path is longer than what the journal keeps": 1}


@pytest.mark.parametrize("told", [("GET", "/a/***/b"), ("GET", "/***"), ("***", "/a")])
def test_masked_path_is_undecidable(told):
    replay = replayed("  - {id: all, to: x.example, action: allow}", request(PASSED, *told))
    assert dict(replay.skipped) == {"a secret was in its path, which the journal doesn't record": 1}


KEPT = {"body": False, "query": 7, "address": "1.2.3.4"}  # recorded parts of a request
UNCERTAIN = [
    ("http: {query: {a: b}}", KEPT, "`query` of requests, which the journal doesn't record"),
    ("http: {headers: {x-a: b}}", KEPT, "`headers` of requests, which the journal doesn't record"),
    ("credential: key", KEPT, "`credential` of requests, which the journal doesn't record"),
    ("git: {repos: [a/b], fetch: true}", KEPT, "`git` of requests, which the journal doesn't record"),
    ("limits: {requests: 1}", KEPT, "`limits`, which depend on what else is sent, and when"),
    ("scan: block", KEPT, "what requests carry, which `scan: block` looks at"),
    ("except: [{when: tainted}]", KEPT, "whether the task was tainted, which the journal doesn't record of an attempt"),
    ("resolves_to: 1.0.0.0/8", {**KEPT, "address": None}, "the address that was dialled for a name, which this journal doesn't record"),
    # An allow without `resolves_to` covers public addresses alone
    ("tls: inspect", {**KEPT, "address": None}, "the address that was dialled for a name, which this journal doesn't record"),
]  # fmt: skip


@pytest.mark.parametrize(("condition", "kept", "why"), UNCERTAIN)
def test_rules_on_unrecorded_parts_make_a_decision_uncertain(condition, kept, why):
    replay = replayed(f"  - {{id: a, to: x.example, {condition}, action: allow}}", request(PASSED, "GET", "/a", **kept))
    assert why in replay.uncertain
    assert replay.uncertain_attempts == 1
    assert not replayed(
        f"  - {{id: a, to: z.example, {condition}, action: allow}}", request(DENIED, "GET", "/a")
    ).uncertain


OLD = {"body": None, "address": "1.2.3.4"}  # what versions before `http.body` recorded
UNCERTAIN_OF_OLD = [
    ("http: {methods: [GET]}", ["whether a request had a body or was a WebSocket, which this journal doesn't record"]),
    ("http: {max_url: 100B}", ["`max_url` of requests, which the journal doesn't record", "whether a request had a body or was a WebSocket, which this journal doesn't record"]),
    ("http: {query: {a: absent}}", ["`query` of requests, which the journal doesn't record", "whether a request had a body or was a WebSocket, which this journal doesn't record"]),
    ("tls: inspect", []),  # a rule without `http` covers them all
]  # fmt: skip


@pytest.mark.parametrize(("condition", "why"), UNCERTAIN_OF_OLD)
def test_events_of_an_earlier_version_make_a_decision_uncertain(condition, why):
    replay = replayed(f"  - {{id: a, to: x.example, {condition}, action: allow}}", request(PASSED, "GET", "/a", **OLD))
    assert sorted(replay.uncertain) == why


def test_implied_url_limit_is_uncertain_without_recorded_length():
    every = "  - {id: a, to: '*', http: {methods: [POST]}, action: allow}"
    assert list(replayed(every, request(PASSED, "POST", "/a", **OLD)).uncertain) == [
        "`max_url` of requests, which the journal doesn't record"
    ]
    assert not replayed(every, request(PASSED, "POST", "/a", query=7)).uncertain
    long = replayed(every, request(PASSED, "POST", "/a", query=2048))
    assert [group.now.reason for group in long.groups] == [Reason.URL_TOO_LONG]


# What is recorded of a request, and what rules make of it
RECORDED = [
    ("http: {methods: [GET]}", {"websocket": True}, Reason.NO_RULE),
    ("http: {methods: [GET], websocket: true}", {"websocket": True}, None),
    ("http: {methods: [GET]}", {"body": True}, Reason.BODY_NOT_ALLOWED),
    ("http: {methods: [GET], body: true}", {"body": True}, None),
    ("http: {methods: [GET], query: {a: absent}}", {}, None),
    ("resolves_to: 10.0.0.0/8", {"address": "10.1.2.3"}, None),
    ("resolves_to: 10.0.0.0/8", {"address": "11.1.2.3"}, Reason.ADDRESS_NOT_LISTED),
    ("tls: inspect", {"address": "10.1.2.3"}, Reason.NON_PUBLIC_ADDRESS),
]


@pytest.mark.parametrize(("condition", "recorded", "reason"), RECORDED)
def test_recorded_parts_of_a_request_make_a_decision_certain(condition, recorded, reason):
    replay = replayed(
        f"  - {{id: a, to: x.example, {condition}, action: allow}}", request(PASSED, "GET", "/a", **recorded)
    )
    assert [group.now.reason for group in replay.groups] == ([] if reason is None else [reason])
    assert not replay.uncertain


def test_unrecorded_path_is_undecidable():
    said = "its path is not told (`log: pattern`)"
    every = "  - {id: all, to: x.example, action: allow}"
    for http in ({"pattern": True}, {"body": None}):
        replay = replayed(every, request(PASSED, "GET", "/a/*, /b", **http))
        assert dict(replay.skipped) == {said: 1}
    assert not replayed(every, request(PASSED, "GET", "/a/*")).skipped


def push(*refs, **more):
    """Return a push of refs, each with its change."""
    said = Git("push", "acme/web", tuple(f"{change} {ref} {'0' * 40} {'1' * 40}" for change, ref in refs))
    return request(PASSED, "POST", "/acme/web.git/git-receive-pack", body=True, git=said, **more)


MAIN, OTHER = ("update", "refs/heads/main"), ("update", "refs/heads/other")
ONLY_MAIN = (
    "  - {id: a, to: x.example, git: {repos: [acme/web], push: [refs/heads/main], changes: [update]}, action: allow}"
)


def test_every_ref_of_a_push_is_decided():
    assert replayed(ONLY_MAIN, push(MAIN)).unchanged == 1
    for refs in ([OTHER], [MAIN, OTHER], [OTHER, MAIN], [("delete", MAIN[1])]):
        (group,) = replayed(ONLY_MAIN, push(*refs)).groups
        assert (group.effect, group.now.reason) == (Effect.BREAKS, Reason.NO_RULE)
    assert not replayed(ONLY_MAIN, push(MAIN)).uncertain


@pytest.mark.parametrize("said", [Git("push", "acme/***", ()), Git("push", "acme/web", ("update refs/heads/*** 0 1",)), Git("pull", "acme/web", ())])  # fmt: skip
def test_unreadable_push_is_undecidable(said):
    replay = replayed(ONLY_MAIN, push(MAIN)._replace(git=said))
    assert dict(replay.skipped) == {"what git asked for can't be read": 1}


def test_unrecorded_refs_make_a_push_uncertain():
    untold = request(PASSED, "POST", "/acme/web.git/git-receive-pack", body=True)
    assert "`git` of requests, which the journal doesn't record" in replayed(ONLY_MAIN, untold).uncertain
    some = push(MAIN)
    some = some._replace(git=some.git._replace(refs=(*some.git.refs, "[2 more]")))
    assert dict(replayed(ONLY_MAIN, some).uncertain) == {"the refs of a push, which the journal doesn't record": 1}


def test_attempts_are_grouped_by_destination_and_task():
    events = [request(PASSED, "GET", f"/{n}", task=task) for n in range(5) for task in ("build", "test")]
    replay = replayed(WEB, *events, connection(PASSED), connection(PASSED, "y.example"))
    told = {(g.effect, g.place, g.task): dict(t.counts) for g, t in replay.groups.items()}
    assert told == {
        (Effect.BREAKS, "https://x.example", "build"): {Kind.REQUEST_DECIDED: 5},
        (Effect.BREAKS, "https://x.example", "test"): {Kind.REQUEST_DECIDED: 5},
        (Effect.BREAKS, "https://y.example", "build"): {Kind.CONNECTION_DECIDED: 1},
    }
    assert all(len(tally.examples) <= 3 for tally in replay.groups.values())


@pytest.fixture
def exeat(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "web.yaml").write_text(f"version: 1\nname: web\nrules:\n{WEB}")
    (tmp_path / "broken.yaml").write_text("version: 2")
    day = tmp_path / "journal" / "2026-11-21"
    day.mkdir(parents=True)
    segment = day / "0001.jsonl"

    def run(*words, events=(), more=b""):
        segment.write_bytes(b"".join(map(encode, events)) + more)
        code = main(["replay", *words])
        out = capsys.readouterr()
        return code, out.out.splitlines(), out.err.splitlines()

    return run


EVENTS = [request(PASSED, "GET", "/a"), request(PASSED, "POST", "/a"), request(AUDITED, "GET", "/a", task="test")]


def test_changed_decisions_exit_1_and_are_listed(exeat):
    code, out, err = exeat("journal", "--rules", "web.yaml", events=EVENTS)
    assert (code, err) == (1, [])
    assert out == [
        "would break:",
        "  https://x.example of `build`, 1 request: was allowed (rule), would be blocked (no_rule) (POST /a)",
        "3 attempts: 1 would change",
        "1 attempt that only audit mode allowed would be allowed by a rule",
    ]


def test_unchanged_decisions_exit_0(exeat):
    assert exeat("journal", "--rules", "web.yaml", events=EVENTS[:1]) == (0, ["1 attempt: nothing would change"], [])
    assert exeat("journal", "--rules", "web.yaml", "--task", "test", events=EVENTS)[0] == 0
    assert exeat("journal/2026-11-21/0001.jsonl", "--rules", "web.yaml", "--task", "t-test", events=EVENTS)[0] == 0


def test_uncertain_decisions_are_never_reported_as_unchanged(exeat):
    """Without the address that was dialled, an inspected request may be one to the company's own network."""
    code, out, _ = exeat("journal", "--rules", "web.yaml", events=[request(PASSED, "GET", "/a", address=None)])
    assert (code, out) == (
        1,
        [
            "1 attempt: none would change for certain, and of 1 the journal doesn't record enough",
            "uncertain: 1 attempt, the address that was dialled for a name, which this journal doesn't record",
        ],
    )
    code, out, _ = exeat("journal", "--rules", "web.yaml", events=[request(PASSED, "GET", "/***")])
    assert (code, out[0]) == (1, "1 attempt: none would change for certain, and of 1 the journal doesn't record enough")


def test_json_output(exeat):
    code, out, _ = exeat(
        "journal", "--rules", "web.yaml", "--format", "json", events=[*EVENTS, connection(refused(Reason.QUIC))]
    )
    value = json.loads("\n".join(out))
    assert (code, value["attempts"], value["unchanged"], value["settled"]) == (1, 4, 2, 1)
    (change,) = value["changes"]
    assert (change["effect"], change["place"], change["task"]) == ("breaks", "https://x.example", "build")
    assert (change["attempts"], change["examples"]) == ({"requests": 1}, ["POST /a"])
    assert change["now"] == {"fate": "blocked", "reason": "no_rule", "rules": []}
    assert value["decided_before_rules"] == {"decided before any rule is asked (quic)": 1}


def test_unreadable_lines_exit_1_and_are_reported(exeat):
    code, out, err = exeat("journal", "--rules", "web.yaml", events=EVENTS[:1], more=b'garbage\n{"torn')
    assert (code, out) == (1, ["1 attempt: nothing would change"])
    assert err == [
        "exeat: a segment ends in an unfinished line; its writer was killed or is writing it now",
        "exeat: a line is no event this version can read, and passed over",
    ]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("gone", "--rules", "web.yaml"), "exeat: there is no journal in `gone`: name another with `--journal`"),
        (("journal", "--rules", "broken.yaml"), "broken.yaml:1:10: this version of exeat reads `version: 1` and no other"),
        (("journal", "--rules", "web.yaml", "--task", "x"), "exeat: there is nothing of a task `x` in the journal; `exeat log` shows all there are"),
        (("journal", "--rules", "web.yaml", "--since", "2999-01-01"), "exeat: there is nothing in the journal in that time"),
    ],
)  # fmt: skip
def test_misuse_exits_2_with_a_message(exeat, words, says):
    code, out, err = exeat(*words, events=EVENTS)
    assert (code, out, err[0]) == (2, [], says)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_journal_sends_no_escape_sequence(exeat, text):
    events = [request(PASSED, text, f"/{text}", task=text), connection(PASSED, text, task=text), lookup(PASSED, text)]
    events += [
        push(("update", f"refs/heads/{text}")),
        push((text, text)),
        push(MAIN)._replace(git=Git("push", text, ())),
    ]
    events += [push(MAIN)._replace(git=Git(text, "acme/web", (text,)))]
    code, out, _ = exeat("journal", "--rules", "web.yaml", events=events)
    assert code in {0, 1}
    assert all(line.isprintable() for line in out)
    assert any(line.startswith("7 attempts: ") for line in out)
