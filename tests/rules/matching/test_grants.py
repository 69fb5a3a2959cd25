"""Grants: what a granted ask allows, and what other rules still hold."""

from datetime import date

import pytest

from rules.attempt import Caller
from rules.diff.compare import compare
from rules.diff.statements import describe_diff
from rules.explain.explanation import explain
from rules.loading.cases import parse_attempt
from rules.matching.precedence import Match
from rules.matching.revision import digest_of
from rules.settings import ProxyDestination
from rules.values.addresses import parse_address
from rules.verdicts import Outcome, Reason, Trust, Verdict
from tests.rules.rule_texts import loaded, policy, told

X = "GET https://x.example/"
T = "tls x.example:443"
R = "tcp x.example:5432"
Q = "- {id: q, to: x.example, action: ask}\n"
Q2 = "- {id: q2, to: x.example, http: {methods: [GET]}, action: ask}\n"
RAW = "- {id: q, to: x.example, ports: 5432/tcp, action: ask}\n"
SPLICED = "- {id: q, to: x.example, tls: splice, action: ask}\n"
GOOD = "- {id: g, to: x.example, action: allow}\n"
WEB = "- {id: g, to: x.example, http: {methods: [POST]}, action: allow}\n"
GUARD = "- {id: q, to: x.example, http: {paths: /admin/**}, action: ask}\n"
LAST = date(2027, 1, 31)


def granting(asked, question, *ids):
    """The attempt, with the asks of these ids granted."""
    digests = {digest_of(rule) for rule in asked.rules if rule.id.partition(":")[2] in ids}
    return question.attempt(asked)._replace(granted=frozenset(digests))


# rules, attempt, which are granted, what is decided
GRANTED = [
    (Q, X, "", "ask approval_unavailable t:q"),
    (Q, X, "q", "allow approval_granted t:q"),
    (Q + GOOD, X, "q", "allow approval_granted t:g,t:q"),
    (Q + "- {id: f, to: '*', action: flag}", X, "q", "flag approval_granted t:f,t:q"),
    (Q + "- {id: d, to: x.example, action: deny}", X, "q", "deny rule t:d"),
    (Q + "- {id: d, to: x.example, default: true, action: deny}", X, "q", "allow approval_granted t:q"),
    (Q + Q2, X, "", "ask approval_unavailable t:q2,t:q"),
    (Q + Q2, X, "q", "ask approval_unavailable t:q2"),
    (Q + Q2, X, "q q2", "allow approval_granted t:q2,t:q"),
    # a default speaks where no explicit rule does
    ("- {id: q, to: '*', default: true, action: ask}\n" + WEB, X, "q", "allow approval_granted t:q"),
    ("- {id: q, to: '*', default: true, action: ask}\n" + GOOD, X, "q", "allow rule t:g"),
    ("- {id: q, to: '*', default: true, action: ask}\n- {id: d, to: x.example, action: deny}", X, "q", "deny rule t:d"),
    ("- {id: q, to: '*', default: true, action: ask}\n" + GUARD.replace("q,", "p,"), X, "q", "allow approval_granted t:q"),
    # what may match only steps aside: an ask lets out what it surely covers, and nobody is asked about the rest
    (GUARD, "tcp x.example:9000", "", "ask approval_unavailable t:q"),
    (GUARD, "tcp x.example:9000", "q", "deny no_rule"),
    (GUARD + "- {id: g, to: x.example, ports: 9000/tcp, action: allow}", "tcp x.example:9000", "q", "allow approval_granted t:g,t:q"),
    ("- {id: q, to: x.example, git: {repos: a/b, fetch: true}, action: ask}", "git fetch https://x.example/A/B", "q", "deny no_rule"),
    # connections: what is read is asked about request by request
    (Q, T, "", "ask rule t:q"),
    (Q, "http x.example:80", "", "ask rule t:q"),
    (GUARD, T, "", "ask rule t:q"),
    (GUARD + GOOD, T, "", "allow rule t:g"),
    (GUARD + "- {id: d, to: x.example, http: {methods: [GET]}, action: deny}", T, "", "ask rule t:q"),
    (Q + "- {id: d, to: x.example, action: deny}", T, "", "deny rule t:d"),
    (SPLICED, T, "", "ask approval_unavailable t:q"),
    (SPLICED, T, "q", "allow approval_granted t:q"),
    (RAW, R, "", "ask approval_unavailable t:q"),
    (RAW, R, "q", "allow approval_granted t:q"),
    (Q, R, "q", "allow approval_granted t:q"),
    ("- {id: q, to: x.example, ports: 9/udp, action: ask}", "udp x.example:9", "q", "allow approval_granted t:q"),
    (Q, "udp x.example:443", "q", "deny quic"),
    # addresses that nobody opens
    ("- {id: q, to: 0.0.0.0/0, action: ask}", "GET https://1.1.1.1/", "q", "allow approval_granted t:q"),
    ("- {id: q, to: 0.0.0.0/0, action: ask}", "GET https://10.0.0.1/", "q", "deny non_public_address"),
    ("- {id: q, to: 0.0.0.0/0, action: ask}", "GET https://10.0.0.1/", "", "deny non_public_address t:q"),
    ("- {id: q, to: 10.0.0.0/8, action: ask}", "GET https://10.0.0.1/", "", "ask approval_unavailable t:q"),
    ("- {id: q, to: 10.0.0.0/8, action: ask}", "GET https://10.0.0.1/", "q", "allow approval_granted t:q"),
    ("- {id: q, to: 169.254.0.0/16, action: ask}", "GET http://169.254.169.254/", "q", "deny non_public_address"),
    ("- {id: q, to: '*', action: ask}", "tcp host.exeat.internal:22", "q", "deny non_public_address"),
    ("- {id: q, to: host.exeat.internal, ports: 22/tcp, action: ask}", "tcp host.exeat.internal:22", "q", "allow approval_granted t:q"),
]  # fmt: skip


@pytest.mark.parametrize(("rules", "attempt", "granted", "expected"), GRANTED)
def test_grant_allows_what_it_names(rules, attempt, granted, expected):
    asked = policy(rules)
    decision = asked.decide(granting(asked, parse_attempt(attempt), *granted.split()))
    assert told(decision) == expected
    assert decision.needs_approval is bool(decision.approval and decision.outcome is Outcome.BLOCKED)


def test_rule_that_abstains_needs_no_approval():
    asked = policy(GUARD)
    decision = asked.decide(parse_attempt("tcp x.example:9000").attempt(asked))
    assert (decision.reason, decision.needs_approval, decision.approval) == (Reason.APPROVAL_UNAVAILABLE, False, ())


def test_ended_ask_rule_denies_despite_a_grant():
    asked = policy(f"- {{id: q, to: x.example, until: {LAST}, action: ask}}")
    for day, expected in ((LAST, "allow approval_granted t:q"), (date(2027, 2, 1), "deny expired t:q")):
        attempt = granting(asked, parse_attempt(X), "q")._replace(at=day)
        assert told(asked.decide(attempt)) == expected


def test_taint_allows_nothing():
    asked = policy("- {id: q, to: x.example, when: tainted, action: ask}\n" + WEB)
    attempt = granting(asked, parse_attempt(X)._replace(caller=Caller(tainted=True)), "q")
    assert told(asked.decide(attempt)) == "deny no_rule"
    assert not asked.decide(attempt._replace(granted=frozenset())).needs_approval
    post = granting(asked, parse_attempt("POST https://x.example/")._replace(caller=Caller(tainted=True)), "q")
    assert told(asked.decide(post)) == "allow approval_granted t:g,t:q"


CHANGES = [
    ("to: x.example", "to: [x.example, y.example]"),
    ("action: ask", "approval: {count: 2}, action: ask"),
    ("action: ask", "limits: {requests: 9}, action: ask"),
    ("id: q", "id: q2"),
    ("action: ask", "until: 2099-01-01, action: ask"),
]


@pytest.mark.parametrize(("was", "now"), CHANGES)
def test_grant_of_a_changed_rule_lapses(was, now):
    before, after = policy(Q), policy(Q.replace(was, now))
    attempt = granting(before, parse_attempt(X)._replace(caller=Caller(at=LAST)), "q")
    assert told(before.decide(attempt)) == "allow approval_granted t:q"
    assert after.decide(attempt).needs_approval


@pytest.mark.parametrize(
    "same", [Q.replace("id: q, to: x.example", "to: [X.EXAMPLE.], id: q, why: 'more words'"), Q + GOOD]
)
def test_grant_of_an_equivalent_rule_stays(same):
    assert policy(same).decide(granting(policy(Q), parse_attempt(X), "q")).reason is Reason.APPROVAL_GRANTED


ADDRESSES = [
    # rules, address, whether it may be dialled once `q` is granted
    (Q, "1.1.1.1", None),
    (Q, "10.0.0.1", Reason.NON_PUBLIC_ADDRESS),
    (Q + "- {id: d, to: 1.1.1.0/24, action: deny}", "1.1.1.1", Reason.RULE),
    (Q + "- {id: p, to: 1.1.1.0/24, action: ask}", "1.1.1.1", Reason.APPROVAL_UNAVAILABLE),
    (Q + "- {id: g, to: x.example, resolves_to: 10.0.0.0/8, action: allow}", "10.0.0.1", None),
    (Q + "- {id: d, to: x.example, resolves_to: 1.1.1.1, action: deny}", "1.1.1.1", Reason.RULE),
]


@pytest.mark.parametrize(("rules", "address", "reason"), ADDRESSES)
def test_address_check_ignores_grants(rules, address, reason):
    asked = policy(rules)
    attempt = granting(asked, parse_attempt(X), "q")
    assert asked.check_address(attempt, parse_address(address)) is reason
    for waiting in (parse_attempt(X).attempt(asked), parse_attempt(T).attempt(asked)):
        assert asked.check_address(waiting, parse_address(address)) is not None, "nothing is dialled before it is asked"


def test_ask_rule_blocks_dialling_through_a_proxy():
    asked = policy(Q, "settings: {upstream: 'http://proxy.example:3128'}")
    attempt = granting(asked, parse_attempt(X), "q")
    via = ProxyDestination(asked.upstream_for(attempt), attempt.target)
    assert asked.check_address(attempt, via) is None
    for waiting in (parse_attempt(X), parse_attempt(T)):
        assert asked.check_address(waiting.attempt(asked), via) is Reason.APPROVAL_UNAVAILABLE


def test_every_layer_needs_its_own_grant(tmp_path):
    """A grant counts in each vote for its own rule, and a ceiling's silence is no question."""
    layer = tmp_path / "corp.yaml"
    layer.write_text("version: 1\nname: corp\nlayer: mandatory\nrules:\n  - {id: a, to: x.example, action: ask}\n")
    ceiling = tmp_path / "top.yaml"
    ceiling.write_text("version: 1\nname: top\nlayer: ceiling\nrules:\n  - {id: b, to: x.example, action: allow}\n")
    own = f"version: 1\nname: t\ninclude: [{{file: {layer}}}, {{file: {ceiling}}}]\nrules:\n"
    asked = loaded(own + "  - {id: q, to: '*', action: ask}\n").policy
    question = parse_attempt(X)
    held = asked.decide(question.attempt(asked))
    assert {asks.rule for asks in held.approval} == {"corp:a", "t:q"}
    assert [asks.rule for asks in asked.decide(granting(asked, question, "q")).approval] == ["corp:a"]
    assert [asks.rule for asks in asked.decide(granting(asked, question, "a")).approval] == ["t:q"]
    assert asked.decide(granting(asked, question, "a", "q")).may_send_now
    outside = asked.decide(granting(asked, parse_attempt("GET https://y.example/"), "q"))
    assert (outside.verdict, outside.reason, outside.needs_approval) == (Verdict.DENY, Reason.LAYER, False)
    assert not asked.decide(parse_attempt("GET https://y.example/").attempt(asked)).needs_approval


TRUSTED = [
    (GOOD, Trust.TRUSTED),
    ("- {id: g, to: '*', action: allow}", Trust.UNTRUSTED),
    ("- {id: g, to: '*', trust: trusted, action: allow}", Trust.TRUSTED),
    ("- {id: g, to: x.example, trust: untrusted, action: allow}", Trust.UNTRUSTED),
    (GOOD + "- {id: w, to: '*', action: flag}", Trust.UNTRUSTED),
    (GOOD + "- {id: w, to: '*', default: true, action: allow}", Trust.TRUSTED),
    ("- {id: d, to: x.example, trust: trusted, mode: audit, default: true, action: ask}", Trust.UNTRUSTED),
]


@pytest.mark.parametrize(("rules", "trust"), TRUSTED)
def test_trusted_sources_do_not_taint(rules, trust):
    """The least trust that a rule which lets it out has; what only audit mode lets out nobody vouches for."""
    decision = policy(rules).decide(parse_attempt(X).attempt(policy(rules)))
    assert (decision.passes, decision.trust) == (True, trust)


NEEDING = [(GOOD, False), (Q, True), ("- {id: f, to: x.example, when: tainted, action: flag}", True)]


@pytest.mark.parametrize(("rules", "needed"), NEEDING)
def test_policy_knows_whether_it_needs_approvals(rules, needed):
    assert policy(rules).needs.approvals is needed
    with_command = policy(rules, "commands: [{id: c, run: terraform apply, action: ask}]")
    assert with_command.needs.approvals


TAINTING = """
- {id: read, to: i.example, trust: untrusted, action: allow}
- {id: post, to: x.example, http: {methods: [POST]}, action: allow}
- {id: after, to: "*", http: {methods: [POST]}, when: tainted, action: ask}
tests:
- {attempt: "POST https://x.example/", expect: allow, rule: post}
- {attempt: "POST https://x.example/", expect: ask, rule: after, tainted: true}
- {attempt: "GET https://i.example/", expect: allow, tainted: false}
"""


def test_explanation_differs_for_tainted_and_untainted_task():
    asked = policy(TAINTING)
    question = parse_attempt("POST https://x.example/")
    clean, tainted = explain(asked, question), explain(asked, question._replace(caller=Caller(tainted=True)))
    assert "--tainted" in clean.lines()[-1]
    assert (clean.value()["verdict"], tainted.value()["verdict"], tainted.value()["tainted"]) == ("allow", "ask", True)
    [after] = [entry for entry in clean.considered if entry.rule.id == "t:after"]
    assert (after.match, after.field) == (Match.NO, "when")
    assert not any("--tainted" in line for line in tainted.lines())
    read = explain(asked, parse_attempt("GET https://i.example/"))
    assert "reading from there taints the task (`trust: untrusted`)" in read.lines()
    assert read.value()["trust"] == "untrusted"


def test_diff_reports_rules_for_tainted_tasks():
    without = TAINTING.partition("- {id: after")[0]
    after = policy(TAINTING.partition("tests")[0])
    told_of = [statement.text for statement in describe_diff(compare(policy(without), after))]
    assert len(told_of) == 2
    assert all("task that is tainted" in text for text in told_of)
    assert told_of[1].startswith("POST https://x.example/**")
    assert told_of[1].endswith("was allowed by `t:post`, is held for approval by `t:after`")
    trusted = policy(TAINTING.replace("trust: untrusted", "trust: trusted"))
    lines = [statement.text for statement in describe_diff(compare(trusted, policy(TAINTING)))]
    assert lines
    assert all("i.example" in line and line.endswith("with trust untrusted") for line in lines)


AT = "- {id: q, to: x.example, resolves_to: 10.0.0.0/8, action: ask}\n"
BUT = "- {id: q, to: x.example, except: [{resolves_to: 1.1.0.0/16}], action: ask}\n"
ANYWHERE = "- {id: q, to: '*', resolves_to: 10.0.0.0/8, action: ask}\n"
AUDIT = "version: 1\nname: t\nsettings: {mode: audit}\nrules:\n"
# rules, what is decided before the address is known, the address, and why it may not be dialled (without, with a grant)
BY_ADDRESS = [
    (AT, "ask approval_unavailable t:q", "10.1.1.1", Reason.APPROVAL_UNAVAILABLE, None),
    (AT, "ask approval_unavailable t:q", "1.1.1.1", Reason.APPROVAL_UNAVAILABLE, Reason.ADDRESS_NOT_LISTED),
    (AT + GOOD, "allow rule t:g", "10.1.1.1", Reason.APPROVAL_UNAVAILABLE, None),
    (AT + GOOD, "allow rule t:g", "1.1.1.1", None, None),
    (AT + "- {id: d, to: x.example, action: deny}", "deny rule t:d", "10.1.1.1", Reason.RULE, Reason.RULE),
    (AT + "- {id: d, to: '*', default: true, action: deny}", "ask approval_unavailable t:q", "10.1.1.1", Reason.APPROVAL_UNAVAILABLE, None),
    (AT + "- {id: p, to: x.example, action: ask}", "ask approval_unavailable t:p", "10.1.1.1", Reason.APPROVAL_UNAVAILABLE, Reason.APPROVAL_UNAVAILABLE),
    (BUT, "ask approval_unavailable t:q", "8.8.8.8", Reason.APPROVAL_UNAVAILABLE, None),
    (BUT, "ask approval_unavailable t:q", "1.1.1.1", Reason.APPROVAL_UNAVAILABLE, Reason.ADDRESS_NOT_LISTED),
    # people are not asked about every name that a task makes up
    (ANYWHERE, "deny no_rule", "10.1.1.1", Reason.NO_RULE, None),
    (ANYWHERE + GOOD.replace("action", "resolves_to: 10.0.0.0/8, action"), "allow rule t:g", "10.1.1.1", Reason.APPROVAL_UNAVAILABLE, None),
    # audit mode lets out what no rule decides, and the ask decides where it leads inside
    (AUDIT + AT, "deny no_rule", "1.1.1.1", None, None),
    (AUDIT + AT, "deny no_rule", "10.1.1.1", Reason.APPROVAL_UNAVAILABLE, None),
]  # fmt: skip


@pytest.mark.parametrize(("rules", "decided", "address", "asked", "granted"), BY_ADDRESS)
def test_address_grant_allows_its_addresses_only(rules, decided, address, asked, granted):
    rules_of = policy(rules)
    attempt, dialled = parse_attempt(X).attempt(rules_of), parse_address(address)
    assert told(rules_of.decide(attempt)) == decided
    assert rules_of.check_address(attempt, dialled) is asked
    assert rules_of.check_address(granting(rules_of, parse_attempt(X), "q"), dialled) is granted
    held = rules_of.held_at(attempt, dialled)
    passes = rules_of.decide(attempt).may_send_now
    assert (held is not None) is (passes and asked is Reason.APPROVAL_UNAVAILABLE)
    if held is not None:
        assert [asks.rule for asks in held.approval] == ["t:q"]


def test_connection_is_allowed_for_request_no_address_ask_holds():
    rules = policy("- {id: q, to: x.example, resolves_to: 10.0.0.0/8, action: ask}\n" + WEB)
    assert told(rules.decide(parse_attempt(T).attempt(rules))) == "allow rule t:g"
    assert told(rules.decide(parse_attempt(X).attempt(rules))) == "ask approval_unavailable t:q"
    assert told(rules.decide(parse_attempt("POST https://x.example/").attempt(rules))) == "allow rule t:g"


def test_ended_address_ask_denies_its_addresses_only():
    rules = policy(
        AT.replace("action", f"until: {LAST}, action")
        + "- {id: g, to: x.example, resolves_to: 0.0.0.0/0, action: allow}\n- {id: h, to: x.example, resolves_to: 10.0.0.0/8, action: allow}"
    )
    attempt = parse_attempt(X).attempt(rules)._replace(at=date(2027, 2, 1))
    assert told(rules.decide(attempt)) == "allow rule t:g,t:h"
    assert rules.check_address(attempt, parse_address("10.1.1.1")) is Reason.EXPIRED
    assert rules.check_address(attempt, parse_address("1.1.1.1")) is None
