"""`exeat learn`: the smallest rule file that allows what a journal tells was let out, and nothing it doesn't."""

import json
from collections import defaultdict
from dataclasses import fields, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from telemetry_harness import HOSTILE, full_event
from test_replaying import AUDITED, DENIED, FAILED, FLAGGED, PASSED, connection, lookup, request

from enforcer.cli import main
from proxy.telemetry.encoding import encode
from proxy.telemetry.events import Kind
from proxy.telemetry.learning import Learner, looks_secret, without_secrets
from proxy.telemetry.replaying import Effect, Replay
from rules.attempt import Attempt, Protocol, Request
from rules.learning.segments import generalised, written
from rules.learning.writing import enforced, rule_file
from rules.load import failures, read
from rules.matching.trie import ONE
from rules.names import HostName
from rules.paths import readings
from rules.settings import Settings
from rules.verdicts import Mode, Verdict
from tests.rules.writing import loaded, policy


def learned(*events):
    """The drafts, and the file."""
    learner = Learner()
    for event in events:
        learner.take(event)
    drafted = learner.result()
    return drafted, rule_file(drafted, ("Learned.",), "learned", without_secrets)


def rules_of(*events):
    """The rules that are learned, short; the file loads, and its tests pass."""
    drafted, text = learned(*events)
    file = loaded(text)
    assert failures(file) == []
    assert len(file.tests) == len(drafted.drafts)
    return [
        " ".join(
            filter(
                None,
                (
                    draft.action,
                    ",".join(draft.methods or ()),
                    f"{draft.place.target}:{draft.place.port}/{draft.place.protocol}",
                    " ".join(written(path) or "?" for path in draft.paths or ()),
                    "splice" * draft.splice,
                    " ".join(map(str, draft.resolves_to)),
                ),
            )
        )
        for draft in drafted.drafts
    ]


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
    ([connection(PASSED, "host.exeat.internal", **TCP, address="127.0.0.1")], ["allow host.exeat.internal:22/tcp"]),
    ([connection(PASSED, **TCP, address="127.0.0.1")], []),
    ([connection(PASSED, None, **TCP, address="127.0.0.1")], []),
]  # fmt: skip


@pytest.mark.parametrize(("events", "expected"), LEARNED)
def test_what_is_learned(events, expected):
    assert rules_of(*events) == expected


LEFT_OUT = [
    (request(FAILED, "GET", "/a"), "attempts", "let out, and then it failed (upstream_failed)"),
    (request(AUDITED, "get", "/a"), "get to tls x.example:443", "no rule can name the method"),
    (request(AUDITED, "GET", "/a//b"), "GET to tls x.example:443/a//b", "no rule can name the path"),
    (connection(PASSED), "connections tls x.example:443", "no request on them was let out, so there is nothing to allow"),
    (lookup(AUDITED), "lookups of x.example", "nothing was let out to the name, only looked up"),
    (connection(PASSED, **TCP, address="127.0.0.1"), "tcp x.example:22", "no rule can open 127.0.0.1"),
    (request(AUDITED, "GET", "/a", "web.localhost"), "tls web.localhost:443", "no rule can open web.localhost"),
    (connection(PASSED, "a..b"), "attempts", "its name can't be read"),
    (request(PASSED, "GET", "/***"), "attempts", "a secret was in its path, which the journal doesn't keep"),
    (request(PASSED, "GET", "/token=abc123def"), "GET to tls x.example:443", "the path looks like it holds a credential"),
    (connection(PASSED, protocol=Protocol.UDP), "attempts", "443/udp, which no rule lets out"),
]  # fmt: skip


@pytest.mark.parametrize(("event", "what", "why"), LEFT_OUT)
def test_what_is_left_out_is_told(event, what, why):
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
def test_no_credential_is_written_anywhere(path):
    events = [request(PASSED, "GET", path), request(PASSED, "GET", "/a", task=path)]
    drafted, text = learned(*events)
    secret = max(path.replace("=", "/").split("/"), key=len) if "password" not in path else "hunter2"
    assert secret not in text
    assert [each.why for each in drafted.left_out] == ["the path looks like it holds a credential"]
    # Among three a `*` stands for it, and it is not written either.
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
def test_digests_and_words_are_no_credentials(path):
    assert not looks_secret(path)


def test_evidence_stands_beside_each_rule():
    events = [request(PASSED, "GET", "/a", task=f"task-{n}") for n in range(7)]
    _, text = learned(*events)
    (line,) = [line for line in text.splitlines() if "seen 7 times" in line and line.lstrip().startswith("#")]
    assert "by `task-0`, `task-1`, `task-2`, `task-3`, `task-4` and 2 more" in line
    assert 'why: "learned: seen 7 times, last on 2' in text


def test_that_every_push_would_pass_is_told():
    said = "# lets every push there out, to any ref: `git` with `push` says which\n"
    assert said in learned(request(AUDITED, "POST", "/acme/web.git/git-receive-pack"))[1]
    assert said not in learned(request(AUDITED, "POST", "/acme/web.git/git-upload-pack"))[1]


def test_an_address_that_is_not_public_is_told_visibly():
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
        for method, path in asked if protocol is not Protocol.TCP else ():
            decision = AUDIT.decide(replace(attempt, request=Request(method, path)))
            judged = decision.verdict, decision.outcome, decision.reason
            events.append(request(judged, method, path, name, port=port, protocol=protocol))
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
many = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@many
@given(attempted)
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
@given(st.lists(st.lists(st.sampled_from("abcd"), max_size=3).map(tuple), max_size=12))
def test_a_star_stands_only_where_three_values_were_seen_beside_the_same(seen):
    patterns = generalised(seen)
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


@pytest.fixture
def exeat(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    day = tmp_path / "journal" / "2026-11-21"
    day.mkdir(parents=True)
    segment = day / "0001.jsonl"

    def run(*words, events=(), more=b""):
        segment.write_bytes(b"".join(map(encode, events)) + more)
        code = main(list(words))
        out = capsys.readouterr()
        return code, out.out, out.err.splitlines()

    return run


SOME = [request(AUDITED, "GET", "/a"), connection(AUDITED), lookup(AUDITED)]


def test_a_file_is_written_and_works(exeat, tmp_path):
    assert exeat("learn", "journal", "-o", "web.yaml", events=SOME) == (0, "", [])
    text = (tmp_path / "web.yaml").read_text()
    assert text.startswith("# Learned by `exeat learn` from journal: 2 attempts let out.\n# Read each rule")
    assert "\nname: web\n" in text
    assert exeat("test", "web.yaml", events=SOME)[0] == 0
    assert exeat("replay", "journal", "--rules", "web.yaml", events=SOME)[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["journal", "web.yaml"]


IN_FORCE = """version: 1
name: audit
settings:
  mode: audit
  tls: splice
  dns: real
  dns_pool: 198.19.0.0/16
  on_block: reset
  idle_timeout: 90s
  upstream: "socks5h://[2001:db8::1]:1080"
  upstream_auth: "/etc/ex\U0001f511at/proxy.auth"
  upstream_except: ["**.corp.example", 203.0.113.0/24]
rules: []
"""


def test_the_settings_that_were_in_force_are_written_but_for_audit_mode(exeat, tmp_path):
    (tmp_path / "audit.yaml").write_text(IN_FORCE)
    assert exeat("learn", "journal", "--rules", "audit.yaml", "-o", "web.yaml", events=SOME) == (0, "", [])
    was = read([tmp_path / "audit.yaml"]).policy.settings
    assert read([tmp_path / "web.yaml"]).policy.settings == replace(was, mode=Mode.ENFORCE)
    assert all(getattr(was, field.name) != field.default for field in fields(Settings) if field.name != "upstream_ca")
    assert "copy" not in (tmp_path / "web.yaml").read_text()


def test_certificates_that_were_trusted_still_are(exeat, tmp_path):
    settings = Settings(mode=Mode.AUDIT, upstream_ca='/etc/corp/"ca".pem')
    assert enforced(settings) == {"upstream_ca": '/etc/corp/"ca".pem'}
    text = rule_file(Learner().result(), (), "learned", without_secrets, enforced(settings))
    assert '\nsettings:\n  upstream_ca: "/etc/corp/\\"ca\\".pem"\nrules: []\n' in text


def test_without_settings_but_the_mode_none_are_written(exeat, tmp_path):
    (tmp_path / "audit.yaml").write_text("version: 1\nsettings: {mode: audit}\nrules: []\n")
    _, out, _ = exeat("learn", "journal", "--rules", "audit.yaml", events=SOME)
    assert "settings" not in out


def test_where_settings_are_not_known_it_is_said_whose_to_copy(exeat):
    force = full_event(Kind.RULES_LOADED)._replace(sources=("/home/x/audit.yaml", "/etc/corp/\nca.pem"))
    _, out, _ = exeat("learn", "journal", events=[force, *SOME])
    assert (
        "\n# that were, which were read from /home/x/audit.yaml, /etc/corp/\\x0aca.pem, but for `mode: audit`; or "
        in out
    )
    assert loaded(out).policy.settings == Settings()
    assert "# that were, but for `mode: audit`" in exeat("learn", "journal", events=SOME)[1]


def test_secrets_that_were_in_force_are_named_and_not_written(exeat, tmp_path):
    secret = "{id: key, from: {env: K}, as: V, hosts: x.example, in: {header: authorization}}"
    (tmp_path / "audit.yaml").write_text(f"version: 1\nsettings: {{mode: audit}}\nsecrets: [{secret}]\nrules: []\n")
    _, out, _ = exeat("learn", "journal", "--rules", "audit.yaml", events=SOME)
    assert "\n# The `secrets` of those rules are not in here, and belong beside these: `key`.\n" in out
    assert "\nsecrets:" not in out


def test_rules_that_were_in_force_and_are_broken_are_told(exeat, tmp_path):
    (tmp_path / "audit.yaml").write_text("version: 1\nrulez: []\n")
    code, out, err = exeat("learn", "journal", "--rules", "audit.yaml", events=SOME)
    assert (code, out) == (2, "")
    assert err[0].startswith("audit.yaml:2:1: ")


def test_a_file_is_never_overwritten_unasked(exeat, tmp_path):
    (tmp_path / "web.yaml").write_text("mine")
    code, _, err = exeat("learn", "journal", "-o", "web.yaml", events=SOME)
    assert (code, err) == (2, ["exeat: `web.yaml` is there already: name another file, or overwrite it with `--force`"])
    assert (tmp_path / "web.yaml").read_text() == "mine"
    assert exeat("learn", "journal", "-o", "web.yaml", "--force", events=SOME)[0] == 0
    assert "x.example" in (tmp_path / "web.yaml").read_text()


def test_a_link_is_replaced_and_not_followed(exeat, tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "web.yaml").symlink_to("mine")
    assert exeat("learn", "journal", "-o", "web.yaml", events=SOME)[0] == 2
    assert exeat("learn", "journal", "-o", "web.yaml", "--force", events=SOME)[0] == 0
    assert (tmp_path / "mine").read_text() == "mine"
    (tmp_path / "gone.yaml").symlink_to("nowhere")
    assert exeat("learn", "journal", "-o", "gone.yaml", events=SOME)[0] == 2
    assert not (tmp_path / "nowhere").exists()


def test_to_standard_output_and_of_one_task(exeat):
    events = [*SOME, request(AUDITED, "GET", "/b", "y.example", task="other")]
    code, out, err = exeat("learn", "journal", "--task", "other", events=events)
    assert (code, err) == (0, [])
    assert "y.example" in out
    assert "x.example" not in out


def test_what_is_not_learned_is_1_and_said(exeat):
    code, out, err = exeat("learn", "journal", events=[*SOME, lookup(AUDITED, "y.example")])
    assert (code, err) == (1, ["exeat: 1 attempt that was let out is not learned; the end of it says why"])
    assert out.endswith(
        "# Not learned:\n#   once: lookups of y.example: nothing was let out to the name, only looked up\n"
    )


def test_for_programs(exeat):
    code, out, _ = exeat("learn", "journal", "--format", "json", events=[*SOME, lookup(AUDITED, "y.example")])
    value = json.loads(out)
    assert code == 1
    (rule,) = value["rules"]
    assert (rule["to"], rule["ports"], rule["methods"], rule["paths"]) == ("x.example", "443/tls", ["GET"], ["/a"])
    assert (rule["seen"], rule["tasks"], rule["action"]) == (1, ["build"], Verdict.ALLOW)
    assert value["not_learned"][0]["attempts"] == 1


def test_damaged_lines_are_told(exeat):
    code, out, err = exeat("learn", "journal", events=SOME, more=b"garbage\n")
    assert (code, err) == (1, ["exeat: a line is no event this version can read, and passed over"])
    assert "x.example" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("gone",), "exeat: there is no journal in `gone`; say where it is"),
        (("journal", "--task", "x"), "exeat: there is nothing of a task `x` in the journal; `exeat log` shows all there are"),
        (("journal", "-o", "no/such/file.yaml"), "exeat: cannot write `no/such/file.yaml`: No such file or directory"),
    ],
)  # fmt: skip
def test_misuse_is_2_and_a_sentence(exeat, words, says):
    code, out, err = exeat("learn", *words, events=SOME)
    assert (code, out) == (2, "")
    assert err[0].startswith(says)
