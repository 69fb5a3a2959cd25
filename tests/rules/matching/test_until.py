"""`until`: after its day a rule allows nothing and an ask denies; nothing opens."""

from datetime import date

import pytest

from rules.attempt import Attempt, Caller, Protocol
from rules.values.names import HostName
from rules.verdicts import Outcome
from tests.rules.rule_texts import decide, policy, told

BEFORE, LAST, AFTER = date(2027, 1, 30), date(2027, 1, 31), date(2027, 2, 1)
X = "GET https://x.example/"
ALLOW = "- {id: a, to: x.example, until: 2027-01-31, action: allow}\n"
FLAG = "- {id: f, to: x.example, until: 2027-01-31, action: flag}\n"
ASK = "- {id: q, to: x.example, until: 2027-01-31, action: ask}\n"
GOOD = "- {id: g, to: '**.example', action: allow}\n"
REVIEWED = "- {id: r, to: '**.example', action: flag}\n"
REST = "- {id: rest, to: '*', default: true, action: allow}\n"
HELD = "- {id: held, to: '*', default: true, action: ask}\n"
DEFAULT_ASK = "- {id: dq, to: '*', default: true, until: 2027-01-31, action: ask}\n"

ROWS = [
    # rules, on the last day, the day after
    (ALLOW, "allow rule t:a", "deny expired t:a"),
    (FLAG, "flag rule t:f", "deny expired t:f"),
    (ASK, "ask approval_unavailable t:q", "deny expired t:q"),
    # beside others
    (ALLOW + GOOD, "allow rule t:a,t:g", "allow rule t:g"),
    (ALLOW + REVIEWED, "flag rule t:r", "flag rule t:r"),
    (FLAG + GOOD, "flag rule t:f", "flag rule t:f"),  # it still flags what another lets out: the review was meant
    (ASK + GOOD, "ask approval_unavailable t:q", "deny expired t:q"),  # what had to be asked doesn't go unasked
    (ALLOW + ASK, "ask approval_unavailable t:q", "deny expired t:q"),
    (ALLOW + FLAG, "flag rule t:f", "deny expired t:a,t:f"),
    # before defaults
    (ALLOW + REST, "allow rule t:a", "allow default_rule t:rest"),
    (FLAG + REST, "flag rule t:f", "flag default_rule t:f"),
    (ASK + REST, "ask approval_unavailable t:q", "deny expired t:q"),
    (ALLOW + HELD, "allow rule t:a", "ask approval_unavailable t:held"),
    (DEFAULT_ASK, "ask approval_unavailable t:dq", "deny expired t:dq"),
    (DEFAULT_ASK + REST, "ask approval_unavailable t:dq", "deny expired t:dq"),
    (DEFAULT_ASK + GOOD, "allow rule t:g", "allow rule t:g"),
    # a deny is a deny
    (ASK + "- {id: d, to: x.example, action: deny}", "deny rule t:d", "deny rule t:d,t:q"),
    (ALLOW + "- {id: d, to: x.example, action: deny}", "deny rule t:d", "deny rule t:d"),
]  # fmt: skip


@pytest.mark.parametrize(("rules", "then", "after"), ROWS)
def test_rule_ends_after_its_day(rules, then, after):
    assert told(decide(rules, X, at=BEFORE)) == then
    assert told(decide(rules, X, at=LAST)) == then
    got = decide(rules, X, at=AFTER)
    assert told(got._replace(rules=tuple(sorted(got.rules)))) == after
    assert decide(rules, X) == got, "on an unknown day everything has ended"


def test_ended_deny_stays_in_force():
    rules = (
        "- {id: a, to: x.example, until: 2027-01-31, idle_timeout: 5s, limits: {requests: 3}, action: allow}\n"
        "- {id: s, to: x.example, tls: splice, action: allow}"
    )
    then, after = (decide(rules, "tls x.example:443", at=day) for day in (LAST, AFTER))
    assert (then.inspect, then.idle_timeout, [rule for rule, _ in then.limits]) == (True, 5.0, ["t:a"])
    assert (after.inspect, after.idle_timeout, [rule for rule, _ in after.limits]) == (True, 5.0, ["t:a"])
    assert (told(then), told(after)) == ("allow rule t:a,t:s", "allow rule t:s")


def test_lookup_follows_connections_on_any_day():
    """The first that passed decided: one that is flagged gave way, once it was over, to one that is allowed."""
    asked = policy(FLAG + "- {id: w, to: x.example, ports: 80, action: allow}")
    names = [asked.decide_name(HostName("x.example"), Caller(at=day)) for day in (LAST, AFTER)]
    assert [told(decision) for decision in names] == ["allow rule t:w", "allow rule t:w"]


def test_policy_knows_its_earliest_end():
    rules = ALLOW + "- {id: b, to: x.example, until: 2027-01-15, action: allow}\n" + GOOD
    assert decide(rules, X, at=date(2027, 1, 1)).expires == date(2027, 1, 15)
    assert decide(rules, X, at=LAST).expires == LAST
    assert decide(rules, X, at=AFTER).expires is None


def test_epoch_changes_only_when_a_rule_ends():
    asked = policy(ALLOW + "- {id: b, to: y.example, until: 2027-03-01, action: ask}\n" + GOOD)
    days = [date(2026, 1, 1), BEFORE, LAST, AFTER, date(2027, 3, 1), date(2027, 3, 2), date(2030, 1, 1), None]
    assert [asked.epoch(day) for day in days] == [0, 0, 0, 1, 1, 2, 2, 2]
    assert policy(GOOD).epoch(None) == 0


def test_lookup_ends_with_its_rule():
    asked = policy(ALLOW)
    x = HostName("x.example")
    assert asked.decide_name(x, Caller(at=LAST)).passes
    assert told(asked.decide_name(x, Caller(at=AFTER))) == "deny expired t:a"
    assert told(asked.decide_name(x, Caller(at=LAST))) == "allow rule t:a", (
        "and what was remembered of another day is of that day"
    )


def test_ended_rule_is_audited_as_no_rule():
    head = "settings: {mode: audit}"
    assert decide(ALLOW, X, head, at=AFTER).outcome is Outcome.WOULD_BLOCK
    assert decide(ASK, X, head, at=AFTER).outcome is Outcome.BLOCKED
    assert decide(DEFAULT_ASK, X, head, at=AFTER).outcome is Outcome.WOULD_BLOCK


def test_address_of_an_ended_rule_is_not_dialled():
    rules = "- {id: a, to: x.example, resolves_to: 10.0.0.0/8, until: 2027-01-31, action: allow}\n- {id: g, to: x.example, action: allow}"
    asked = policy(rules)
    ten = asked.rules[0].resolves_to[0].network_address
    last, after = (Attempt(Protocol.TLS, HostName("x.example"), 443, at=day) for day in (LAST, AFTER))
    assert asked.check_address(last, ten) is None
    assert asked.check_address(after, ten) == "expired"
    assert asked.decide(Attempt(Protocol.TLS, HostName("x.example"), 443, at=AFTER)).passes
