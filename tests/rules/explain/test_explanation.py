"""What `explain` tells people: the verdict, why, and what each rule about the target says."""

import json
from datetime import date

import pytest

from rules.attempt import Caller
from rules.explain.explanation import explain
from rules.explain.reasons import REASONS
from rules.loading.cases import parse_attempt
from rules.verdicts import Reason
from tests.rules.rule_texts import policy

RULES = (
    "- {id: read, to: x.example, http: {methods: [GET], paths: /a/**}, why: read only, action: allow}\n"
    "- {id: raw, to: x.example, ports: 22/tcp, action: allow}\n"
    "- {id: local, to: '*', resolves_to: [10.0.0.0/8], action: deny}\n"
    "- {id: rest, to: '*', default: true, action: deny}\n"
)

TRANSCRIPTS = [
    (
        "GET https://x.example/a/b",
        """
        `GET https://x.example/a/b` is allowed by `t:read` (`rule`)
        the rule says: read only
        scanned: a request with something that looks like a secret is allowed and recorded (`scan: flag`)
        rules about this target:
          `t:read` (allow) matches
          `t:local` (deny) could match: `resolves_to` needs 10.0.0.0/8, and this is unresolved
          `t:raw` (allow) doesn't match: `ports` needs 22/tcp, and this is 443/tls
          `t:rest` (deny, default) matches
        """,
    ),
    (
        "PUT https://x.example/a/b?token=secret",
        """
        `PUT https://x.example/a/b` is denied by `t:rest`: only a rule with `default: true` matches; add a rule for this host; a rule that is no default overrides it (`default_rule`)
        rules about this target:
          `t:local` (deny) could match: `resolves_to` needs 10.0.0.0/8, and this is unresolved
          `t:raw` (allow) doesn't match: `ports` needs 22/tcp, and this is 443/tls
          `t:read` (allow) doesn't match: `http.methods` needs GET, and this is PUT
          `t:rest` (deny, default) matches
        """,
    ),
    (
        "x.example:443",
        """
        `x.example:443` is allowed by `t:read` (`rule`)
        the rule says: read only
        the connection is inspected: each request on it is decided by itself
        rules about this target:
          `t:local` (deny) could match: `resolves_to` needs 10.0.0.0/8, and this is unresolved
          `t:read` (allow) could match: `http` needs GET /a/**, and this is no request yet
          `t:raw` (allow) doesn't match: `ports` needs 22/tcp, and this is 443/tls
          `t:rest` (deny, default) matches
        """,
    ),
    (
        "GET https://evil%00.example/",
        """
        `GET https://evil%00.example/` is denied: the host is not a valid name or address; correct the name in the client (`invalid_name`)
        """,
    ),
]


@pytest.mark.parametrize(("attempt", "transcript"), TRANSCRIPTS, ids=[row[0] for row in TRANSCRIPTS])
def test_explanation_is_sentences_for_people(attempt, transcript):
    lines = explain(policy(RULES), parse_attempt(attempt)).lines()
    assert lines == [line.removeprefix("        ") for line in transcript.strip("\n").splitlines()[:-1]]


def test_nearest_rule_is_named():
    asked = policy("- {id: read, to: x.example, http: {paths: /a/**}, action: allow}")
    lines = explain(asked, parse_attempt("GET https://x.example/b?token=secret")).lines()
    assert "the nearest rule is `t:read`: its `http.paths` is `/a/**`, and the attempt has `/b`" in lines
    assert "secret" not in "\n".join(lines)


UNSURE = [
    ("- {id: a, to: x.example, http: {methods: [GET]}, action: allow}", "get https://x.example/", "`t:a` (allow) may not match, so it allows nothing: `http.methods` needs GET, and this is get"),
    ("- {id: a, to: x.example, http: {methods: [GET]}, action: allow}", "GET wss://x.example/", "`t:a` (allow) may not match, so it allows nothing: `http.websocket` needs no WebSocket, and this is a WebSocket"),
    ("- {id: a, to: x.example, http: {methods: [PUT]}, action: deny}", "put https://x.example/", "`t:a` (deny) may match, so it counts: `http.methods` needs PUT, and this is put"),
    ("- {id: a, to: x.example, action: allow}", "GET https://host.exeat.internal:8080/", "`GET https://host.exeat.internal:8080/` is denied: `host.exeat.internal` is this machine: it needs a rule `to: host.exeat.internal` with its `ports` (`non_public_address`)"),
    ("- {id: a, to: x.example, action: allow}", "GET https://sub.host.exeat.internal/", "`GET https://sub.host.exeat.internal/` is denied: the zone `exeat.internal` is exeat's own, and only `host.exeat.internal` is a service (`non_public_address`)"),
    ("- {id: a, to: x.example, action: allow}", "https://127.0.0.1:8080/", "`GET https://127.0.0.1:8080/` is denied: that is the sandbox's own loopback: a service of this machine has the name `host.exeat.internal` and needs a rule `to: host.exeat.internal` with its `ports` (`non_public_address`)"),
    ("- {id: a, to: x.example, action: allow}", "tcp [::1]:22", "`tcp [::1]:22` is denied: that is the sandbox's own loopback: a service of this machine has the name `host.exeat.internal` and needs a rule `to: host.exeat.internal` with its `ports` (`non_public_address`)"),
    ("- {id: a, to: x.example, action: allow}", "tcp 224.0.0.1:22", "`tcp 224.0.0.1:22` is denied: that is multicast, and no rule can allow it (`non_public_address`)"),
    ("- {id: a, to: x.example, action: allow}", "tcp 10.0.0.1:22", "`tcp 10.0.0.1:22` is denied: the address, or the one that the name resolves to, is not public; list the address in the rule's `resolves_to`; a service of this machine needs a rule `to: host.exeat.internal` with its `ports` (`non_public_address`)"),
    ("- {id: d, to: host.exeat.internal, action: deny, why: nobody builds there}", "tcp host.exeat.internal:22", "the rule says: nobody builds there"),
    ("- {id: d, to: host.exeat.internal, action: deny, why: nobody builds there}", "tcp host.exeat.internal:22", "`tcp host.exeat.internal:22` is denied by `t:d` (`rule`)"),
    ("- {id: a, to: host.exeat.internal, ports: 22/tcp, for: {tasks: b}, action: allow}", "tcp host.exeat.internal:22", "`t:a` (allow) doesn't match: `for` needs tasks b, and this is an unnamed task"),
]  # fmt: skip


@pytest.mark.parametrize(("rules", "attempt", "line"), UNSURE)
def test_unknown_facts_are_explained_with_their_effect(rules, attempt, line):
    assert line in [each.strip() for each in explain(policy(rules), parse_attempt(attempt)).lines()]


def test_audit_mode_is_explained():
    asked = policy("version: 1\nsettings: {mode: audit}")
    lines = explain(asked, parse_attempt("x.example:443")).lines()
    assert lines[0].startswith("`x.example:443` is denied: no rule allows this; add a rule that allows it")
    assert "it is allowed because of `mode: audit`, and recorded as `would_block`" in lines


def test_explanation_is_json_for_programs():
    value = explain(policy(RULES), parse_attempt("DELETE https://x.example/a/b")).value()
    assert json.loads(json.dumps(value)) == value
    assert (value["verdict"], value["outcome"], value["reason"], value["rules"]) == (
        "deny",
        "blocked",
        "default_rule",
        ["t:rest"],
    )
    assert {entry["rule"]: (entry["match"], entry["field"]) for entry in value["considered"]} == {
        "t:read": ("no", "http.methods"),
        "t:raw": ("no", "ports"),
        "t:local": ("perhaps", "resolves_to"),
        "t:rest": ("yes", ""),
    }


TERMS = (
    "- {id: a, to: a.test, limits: {requests: 5, bytes_up: 10MB, window: 1h, per: rule}, until: 2027-01-31, action: allow}\n"
    "- {id: b, to: b.test, approval: {by: dba, count: 2, covers: rule, for: 1d}, action: ask}\n"
    "- {id: c, to: c.test, for: {tasks: 'm-*', labels: {team: data}}, action: flag}\n"
    "- {id: d, to: d.test, tls: splice, action: allow}\n"
    "- {id: e, to: e.test, dns_types: TXT, action: allow}\n"
    "- {id: f, to: f.test, until: 2027-01-31, action: ask}\n"
)
TOLD = [
    ("a.test:443", {"at": "2027-01-31"}, "`t:a` allows at most 5 requests and 10MB up in 1h for each rule"),
    ("a.test:443", {"at": "2027-01-31"}, "this decision holds until the end of 2027-01-31 (UTC)"),
    ("a.test:443", {"at": "2027-02-01"}, "  `t:a` (allow) allows nothing any more: its `until` was 2027-01-31, and this is 2027-02-01"),
    ("f.test:443", {"at": "2027-02-01"}, "  `t:f` (ask) denies from then on: its `until` was 2027-01-31, and this is 2027-02-01"),
    ("b.test:443", {}, "`t:b` needs 2 approvals by `dba`, good for 1d for the rule"),
    ("c.test:443", {}, "rules with `for` match certain tasks: name one with `--task NAME` and `--label NAME=VALUE`"),
    ("c.test:443", {"task": "m-1", "labels": {"team": "data"}}, "it is allowed and marked for review"),
    ("c.test:443", {"task": "m-1"}, "  `t:c` (flag) doesn't match: `for` needs tasks m-* and team=data, and this is task m-1"),
    ("d.test:443", {}, "the connection is spliced: the gate does not read the requests on it"),
    ("dns TXT e.test", {}, "`dns TXT e.test` is allowed by `t:e` (`rule`)"),
    ("dns A g.test", {}, "`dns A g.test` is denied: no rule allows a connection to this name; add a rule that allows it (`dns_denied`)"),
    ("get https://a.test/", {}, "`get https://a.test/` is denied: servers read this request in different ways; send it as RFC 9112 defines it: one host, one length, one spelling (`ambiguous_request`)"),
    ("Patch https://a.test/", {}, "methods are upper case, and the gate denies others: did you mean `PATCH`?"),
    ("dns MX e.test", {}, "`dns MX e.test` is denied: no rule allows this type of DNS record; connect by name, or list the type in a rule's `dns_types` (`dns_type`)"),
]  # fmt: skip


@pytest.mark.parametrize(("attempt", "around", "line"), TOLD, ids=[f"{row[0]} {row[1]}" for row in TOLD])
def test_limits_and_approval_terms_are_explained(attempt, around, line):
    asked = parse_attempt(attempt)._replace(
        caller=Caller(
            around.get("task", ""),
            around.get("labels", {}),
            date.fromisoformat(around["at"]) if "at" in around else None,
        )
    )
    explanation = explain(policy(TERMS), asked)
    assert line in explanation.lines()
    assert json.loads(json.dumps(explanation.value())) == explanation.value()


def test_lookup_is_explained_as_a_lookup():
    lines = explain(policy(TERMS), parse_attempt("dns TXT e.test")).lines()
    assert not [line for line in lines if "inspected" in line]


def test_every_reason_has_a_meaning():
    assert set(REASONS) == set(Reason)
    for text in REASONS.values():
        assert not text.meaning.endswith(".")
        assert not text.detail or text.detail.endswith(".")
