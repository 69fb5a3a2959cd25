"""Terms of a decision besides its verdict: limits, approvals, timeouts, certificates."""

import pytest

from rules.decision import ApprovalTerms, GrantScope, Limits, LimitScope
from rules.loading.cases import parse_attempt
from rules.problems import RuleFileError
from rules.values.names import HostName
from tests.rules.rule_texts import decide, loaded, policy, told

X = "GET https://x.example/"
GOOD = "- {id: g, to: '**.example', action: allow}\n"


def rule(says, action="allow", ident="a"):
    return f"- {{id: {ident}, to: x.example, {says}, action: {action}}}\n"


LIMITS = [
    ("limits: {connections: 4}", Limits(4, per=LimitScope.TASK)),
    ("limits: {requests: 10, window: 1h}", Limits(requests=10, window=3600.0, per=LimitScope.TASK)),
    ("limits: {bytes_up: 10MB, per: sandbox}", Limits(bytes_up=10 << 20, per=LimitScope.SANDBOX)),
    ("limits: {bytes_up: 10M, bytes_down: 2GiB}", Limits(bytes_up=10 << 20, bytes_down=2 << 30, per=LimitScope.TASK)),
    ("limits: {bytes_up: 1B, bytes_down: 2GB, per: rule}", Limits(bytes_up=1, bytes_down=2 << 30, per=LimitScope.RULE)),
    ("limits: {bytes_down: 3KB, per: task}", Limits(bytes_down=3072, per=LimitScope.TASK)),
    ("limits: {bytes_down: 1TB}", Limits(bytes_down=1 << 40, per=LimitScope.TASK)),
]  # fmt: skip


@pytest.mark.parametrize(("says", "limits"), LIMITS)
def test_limits_are_parsed(says, limits):
    assert decide(rule(says), X).limits == (("t:a", limits),)


def ids(decision):
    return [ident for ident, _ in decision.limits]


def limited(action="allow", ident="a", more=""):
    return rule("limits: {requests: 5}" + more, action, ident)


WHOSE = [
    # the limits of every rule that matches count, whichever wins
    (limited() + GOOD, X, ["t:a"]),
    (limited() + limited(ident="b"), X, ["t:a", "t:b"]),
    (limited() + limited("flag", "b"), X, ["t:a", "t:b"]),
    (limited() + limited("ask", "b"), X, ["t:a", "t:b"]),
    (limited(more=", default: true") + GOOD, X, []),
    (limited(more=", http: {methods: PUT}") + GOOD, X, []),
    (limited(more=", http: {methods: GET}") + GOOD, X, ["t:a"]),
    # of a connection: those that match whatever is asked on it
    (limited() + GOOD, "tls x.example:443", ["t:a"]),
    (limited(more=", http: {methods: GET}") + GOOD, "tls x.example:443", []),
    (limited(more=", http: {methods: GET}") + limited(ident="b"), "tls x.example:443", ["t:b"]),
]  # fmt: skip


@pytest.mark.parametrize(("rules", "attempt", "expected"), WHOSE)
def test_strictest_limits_apply(rules, attempt, expected):
    assert sorted(ids(decide(rules, attempt))) == expected


TERMS = [
    ("why: x", ApprovalTerms(by_self=True)),
    ("approval: {by: dba}", ApprovalTerms("dba")),
    ("approval: {count: 2}", ApprovalTerms(needed=2)),
    ("approval: {hold: 5m}", ApprovalTerms(by_self=True, hold=300.0)),
    ("approval: {self: false}", ApprovalTerms()),
    ("approval: {count: 2, self: true}", ApprovalTerms(needed=2, by_self=True)),
    ("approval: {by: release, count: 2, hold: 2m, open: 24h}", ApprovalTerms("release", 2, False, 120.0, 86400.0)),
    ("approval: {by: dba, covers: destination, for: 1h}", ApprovalTerms("dba", covers=GrantScope.DESTINATION, lasts=3600.0)),
    ("approval: {by: dba, covers: rule, for: once}", ApprovalTerms("dba", covers=GrantScope.RULE, lasts=0.0)),
]  # fmt: skip


@pytest.mark.parametrize(("says", "terms"), TERMS)
def test_approval_terms_are_parsed(says, terms):
    decision = decide(rule(says, "ask") + GOOD, X)
    [asks] = decision.approval
    assert (told(decision), asks.rule, asks.terms) == ("ask approval_unavailable t:a", "t:a", terms)
    assert decision.needs_approval


def test_every_matching_ask_rule_needs_a_grant():
    decision = decide(rule("approval: {by: dba}", "ask") + rule("approval: {by: net}", "ask", "b") + GOOD, X)
    assert [(asks.rule, asks.terms.by) for asks in decision.approval] == [("t:a", "dba"), ("t:b", "net")]
    assert decide(GOOD, X).approval == ()


# the rules, whose credential a GET carries (None: nobody knows; empty: none, or another), and what is decided
CARRIED = [
    (rule("credential: key"), "key", "allow rule t:a"),
    (rule("credential: key"), "", "deny credential_mismatch"),
    (rule("credential: key"), "other", "deny credential_mismatch"),
    (rule("credential: key"), None, "deny credential_mismatch"),
    (rule("credential: key, http: {methods: GET}"), "key", "allow rule t:a"),
    (rule("credential: key, http: {methods: GET}"), "", "deny credential_mismatch"),
    (rule("credential: key, http: {methods: PUT}"), "key", "deny no_rule"),
    (rule("credential: key, git: {repos: a/b, fetch: true}"), "key", "deny no_rule"),
    (rule("credential: key", "deny") + GOOD, "key", "deny rule t:a"),
    (rule("credential: key", "deny") + GOOD, "", "allow rule t:g"),
    (rule("credential: key", "deny") + GOOD, "other", "allow rule t:g"),
    (rule("credential: key", "deny") + GOOD, None, "deny rule t:a"),
    (rule("credential: key", "ask") + GOOD, "key", "ask approval_unavailable t:a"),
    (rule("credential: key", "ask") + GOOD, "", "allow rule t:g"),
    (rule("credential: key", "flag"), "key", "flag rule t:a"),
    ("- {id: d, to: '*', except: [{credential: key}], action: deny}\n" + GOOD, "key", "allow rule t:g"),
    ("- {id: d, to: '*', except: [{credential: key}], action: deny}\n" + GOOD, "", "deny rule t:d"),
    ("- {id: d, to: '*', except: [{credential: key}], action: deny}\n" + GOOD, None, "deny rule t:d"),
    ("- {id: a, to: x.example, except: [{credential: key}], action: allow}", "key", "deny no_rule"),
    ("- {id: a, to: x.example, except: [{credential: key}], action: allow}", "", "allow rule t:a"),
]


@pytest.mark.parametrize(("rules", "carried", "expected"), CARRIED)
def test_credential_rule_matches_requests_that_carry_it(rules, carried, expected):
    assert told(decide(rules, X, credential=carried)) == expected


# A GET with `?a=...` and a credential, and what is told of it: whatever was asked before it
ONE_BY_ONE = [
    ("1", "", "deny credential_mismatch", "credential"),
    ("2", "key", "deny no_rule", "http.query.a"),
    ("2", "", "deny no_rule", "http.query.a"),
    ("1", "key", "allow rule t:a", None),
]


@pytest.mark.parametrize("order", [1, -1])
def test_missing_credential_is_decided_per_request(order):
    asked = policy(rule("credential: key, http: {query: {a: '1'}}"))
    for value, carried, expected, field in ONE_BY_ONE[::order]:
        attempt = parse_attempt(f"GET https://x.example/?a={value}").attempt(asked)
        decision = asked.decide(attempt._replace(request=attempt.request._replace(credential=carried)))
        assert (told(decision), decision.nearest and decision.nearest.field) == (expected, field)


def test_fetch_with_credential_is_decided_separately():
    asked = policy(rule("credential: key, git: {repos: a/b, fetch: true}"))
    fetch = parse_attempt("git fetch https://x.example/a/b").attempt(asked)
    carried = [fetch._replace(request=fetch.request._replace(credential=known)) for known in ("key", "", "key", None)]
    assert [asked.decide(attempt).reason for attempt in carried] == [
        "rule", "credential_mismatch", "rule", "credential_mismatch",
    ]  # fmt: skip


LATER = [
    (rule("credential: key"), X, "deny credential_mismatch"),
    (rule("credential: key") + GOOD, X, "allow rule t:g"),
    (rule("credential: key", "deny") + GOOD, X, "deny rule t:a"),
    (rule("credential: key", "ask") + GOOD, X, "ask approval_unavailable t:a"),
    (rule("credential: key", "flag") + GOOD, X, "flag rule t:a"),
    (rule("credential: key", "flag"), X, "deny credential_mismatch"),
    (rule("credential: key"), "tls x.example:443", "allow rule t:a"),  # some request on it could carry it
    (rule("credential: key"), "tcp x.example:443", "deny no_rule"),
    (rule("credential: key, http: {methods: PUT}"), X, "deny no_rule"),
    ("- {id: d, to: '*', except: [{credential: key}], action: deny}\n" + GOOD, X, "deny rule t:d"),
    ("- {id: a, to: x.example, except: [{credential: key}], action: allow}", X, "deny no_rule"),
    (rule("trust: trusted"), X, "allow rule t:a"),
    (rule("trust: untrusted"), X, "allow rule t:a"),
]  # fmt: skip


@pytest.mark.parametrize(("rules", "attempt", "expected"), LATER)
def test_unknown_facts_never_allow(rules, attempt, expected):
    assert told(decide(rules, attempt)) == expected


# the rules, the attempt, and what is decided for a task that has read nothing of the kind, and for a tainted one
TAINTED = [
    (rule("when: tainted", "deny") + GOOD, X, "allow rule t:g", "deny tainted t:a"),
    (rule("when: tainted", "deny") + GOOD, "tcp x.example:443", "deny no_rule", "deny tainted t:a"),
    (rule("when: tainted", "deny") + GOOD, "dns A x.example", "allow rule t:g", "deny tainted t:a"),
    (rule("when: tainted", "ask") + GOOD, X, "allow rule t:g", "ask approval_unavailable t:a"),
    (rule("when: tainted", "flag") + GOOD, X, "allow rule t:g", "flag rule t:a"),
    (rule("when: tainted", "flag"), X, "deny no_rule", "deny no_rule"),
    (rule("when: tainted", "deny") + rule("why: x", "deny", "b"), X, "deny rule t:b", "deny rule t:a,t:b"),
    ("- {id: d, to: '*', except: [{when: tainted}], action: deny}\n" + GOOD, X, "deny rule t:d", "deny rule t:d"),
    ("- {id: a, to: x.example, except: [{when: tainted}], action: allow}", X, "allow rule t:a", "deny no_rule"),
]  # fmt: skip


@pytest.mark.parametrize(("rules", "attempt", "clean", "tainted"), TAINTED)
def test_taint_only_restricts_a_task(rules, attempt, clean, tainted):
    assert (told(decide(rules, attempt)), told(decide(rules, attempt, tainted=True))) == (clean, tainted)


RECORDS = [
    ("dns TXT x.example", "dns_types: TXT", "", "allow rule t:a"),
    ("dns MX x.example", "dns_types: TXT", "", "deny dns_type"),
    ("dns txt x.example", "dns_types: [MX, TXT]", "", "allow rule t:a"),
    ("dns A x.example", "dns_types: TXT", "", "allow rule t:a"),
    ("dns AAAA x.example", "why: x", "", "allow rule t:a"),
    ("dns TXT x.example", "why: x", "", "deny dns_type"),
    ("dns HTTPS x.example", "dns_types: TXT", "", "allow rule t:a"),
    ("dns SVCB x.example", "why: x", "", "allow rule t:a"),
    ("dns TXT y.example", "dns_types: TXT", "", "deny dns_denied"),
    ("dns A y.example", "why: x", "", "deny dns_denied"),
    ("dns HTTPS y.example", "why: x", "", "deny dns_denied"),
    ("dns A y.example", "why: x", "- {id: r, to: '*', default: true, action: deny}", "deny default_rule t:r"),
    ("dns PTR 1.0.0.10.in-addr.arpa", "why: x", "- {id: b, to: '*', action: allow}", "deny dns_type"),
    ("dns TXT x.example", "dns_types: TXT", "- {id: d, to: x.example, action: deny}", "deny rule t:d"),
    ("dns TXT x.example", "dns_types: TXT", "- {id: q, to: x.example, action: ask}", "ask approval_unavailable t:q"),
    ("dns TXT x.example", "why: x", "- {id: b, to: '*', dns_types: TXT, action: allow}", "allow rule t:a,t:b"),
    ("dns TXT x.example", "dns_types: TXT, for: {tasks: web}", "- {id: b, to: '*', action: allow}", "deny dns_type"),
    ("dns TXT x.example", "dns_types: TXT, until: 2020-01-01", "- {id: b, to: '*', action: allow}", "deny dns_type"),
    ("dns TXT x.example", "dns_types: TXT, scan: block", "- {id: b, to: y.example, action: allow}", "allow rule t:a"),
    ("dns A evil%00.example", "dns_types: TXT", "", "deny invalid_name"),
    ("dns A 1.2.3.4", "dns_types: TXT", "", "deny invalid_name"),
]  # fmt: skip


@pytest.mark.parametrize(("attempt", "says", "more", "expected"), RECORDS)
def test_lookups_are_decided_by_the_rules(attempt, says, more, expected):
    assert told(decide(rule(says) + more, attempt)) == expected


def test_audited_names_get_no_dns_records():
    audited = policy("- {id: d, to: y.example, dns_types: TXT, action: allow}", "settings: {mode: audit}")
    assert audited.decide_name(HostName("x.example")).passes
    assert audited.dns_types(HostName("x.example")) == frozenset()
    assert audited.dns_types(HostName("y.example")) == {"TXT"}


def test_certificates_of_a_rule_file_are_read_with_it(tmp_path):
    from rules.loading.load import read

    pem = b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
    (tmp_path / "corp").mkdir()
    (tmp_path / "corp" / "ca.pem").write_bytes(pem)
    (tmp_path / "t.yaml").write_text(
        "version: 1\nname: t\nrules:\n- {id: a, to: x.example, ca: corp/ca.pem, action: allow}\n- {id: b, to: x.example, action: allow}\n"
    )
    files = read([tmp_path / "t.yaml"])
    path = str(tmp_path / "corp" / "ca.pem")
    assert files.policy.authorities == {path: pem}
    from rules.loading.cases import parse_attempt

    assert parse_attempt(X).decide(files.policy).ca == (path,)
    assert tmp_path / "corp" / "ca.pem" in files.policy.sources
    (tmp_path / "corp" / "ca.pem").write_bytes(b"secret")
    with pytest.raises(RuleFileError, match="can't be used as `ca`: it has no certificates in PEM form"):
        read([tmp_path / "t.yaml"])
    for broken, what in (
        (pem + b"-----BEGIN PRIVATE KEY-----\n", "it contains a private key"),
        (pem.replace(b"-----END", b"!-----END"), "certificate 1 in it is broken"),
        (pem + pem.partition(b"-----END")[0], "certificate 2 in it is broken"),
    ):
        (tmp_path / "corp" / "ca.pem").write_bytes(broken)
        with pytest.raises(RuleFileError, match=f"can't be used as `ca`: {what}"):
            read([tmp_path / "t.yaml"])
    (tmp_path / "corp" / "ca.pem").unlink()
    with pytest.raises(RuleFileError, match=r"t\.yaml:4:3: `.*` can't be used as `ca`: no such file"):
        read([tmp_path / "t.yaml"])


def test_recorded_detail_of_a_path_follows_the_rule():
    paths = rule("http: {paths: [/a/*, /b]}, log: pattern")
    assert decide(paths, "GET https://x.example/a/secret").pattern == "/a/*, /b"
    assert decide(paths + GOOD, "GET https://x.example/a/secret").pattern == "/a/*, /b"
    assert decide(paths + GOOD, "GET https://x.example/c").pattern is None
    assert decide(rule("log: pattern"), X).pattern == "/**"
    assert decide(rule("log: full"), X).pattern is None


def test_denied_path_is_recorded_as_discreetly(tmp_path):
    ceiling = tmp_path / "top.yaml"
    ceiling.write_text("version: 1\nname: top\nlayer: ceiling\nrules:\n  - {id: y, to: y.example, action: allow}\n")
    own = f"version: 1\nname: t\ninclude: [{{file: {ceiling}}}]\nrules:\n" + rule("http: {paths: [/a/*]}, log: pattern")
    asked = loaded(own).policy
    decision = asked.decide(parse_attempt("GET https://x.example/a/secret").attempt(asked))
    assert (decision.reason, decision.pattern) == ("layer", "/a/*")
    private = "- {id: a, to: 0.0.0.0/0, log: pattern, action: deny}\n"
    decision = decide(private, "GET https://10.0.0.1/secret")
    assert (decision.reason, decision.pattern) == ("non_public_address", "/**")


def test_file_without_rules_is_valid():
    assert loaded("version: 1\nname: t").policy.rule_ids == ()


def test_certificates_named_by_settings_are_read(tmp_path):
    from rules.loading.load import read

    file = tmp_path / "ca.pem"
    text = f"version: 1\nname: t\nsettings:\n  mode: enforce\n  upstream_ca: {file}\nrules: []\n"
    (tmp_path / "t.yaml").write_text(text)
    with pytest.raises(RuleFileError, match=r"t\.yaml:5:16: `.*` can't be used as `upstream_ca`: no such file"):
        read([tmp_path / "t.yaml"])
    file.write_bytes(b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n")
    policy = read([tmp_path / "t.yaml"]).policy
    assert policy.authorities == {str(file): file.read_bytes()}
    assert file in policy.sources
