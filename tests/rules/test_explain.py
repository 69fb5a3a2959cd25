"""What `explain` tells people: the verdict, why, and what each rule about the target says."""

import json

import pytest

from rules.cases import parse_attempt
from rules.explain import explain
from rules.reasons import MEANING
from rules.verdicts import Reason
from tests.rules.writing import policy

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
        allow by `t:read`: rule
        a rule says so
        the rule says: read only
        rules about this target:
          `t:read` (allow) matches
          `t:local` (deny) could match: `resolves_to` wants 10.0.0.0/8, and this is unresolved
          `t:raw` (allow) doesn't match: `ports` wants 22/tcp, and this is 443/tls
          `t:rest` (deny, default) matches
        """,
    ),
    (
        "PUT https://x.example/a/b?token=secret",
        """
        deny by `t:rest`: default_rule
        no other rule matches, and a rule with `default: true` says so
        rules about this target:
          `t:local` (deny) could match: `resolves_to` wants 10.0.0.0/8, and this is unresolved
          `t:raw` (allow) doesn't match: `ports` wants 22/tcp, and this is 443/tls
          `t:read` (allow) doesn't match: `http.methods` wants GET, and this is PUT
          `t:rest` (deny, default) matches
        """,
    ),
    (
        "x.example:443",
        """
        allow by `t:read`: rule
        a rule says so
        the rule says: read only
        the connection is inspected: each request on it is decided by itself
        rules about this target:
          `t:local` (deny) could match: `resolves_to` wants 10.0.0.0/8, and this is unresolved
          `t:read` (allow) could match: `http` wants GET /a/**, and this is no request yet
          `t:raw` (allow) doesn't match: `ports` wants 22/tcp, and this is 443/tls
          `t:rest` (deny, default) matches
        """,
    ),
    (
        "GET https://evil%00.example/",
        """
        deny: invalid_name
        that is no host name, and what can't be read can't be allowed
        """,
    ),
]


@pytest.mark.parametrize(("attempt", "transcript"), TRANSCRIPTS, ids=[row[0] for row in TRANSCRIPTS])
def test_a_person_reads(attempt, transcript):
    lines = explain(policy(RULES), parse_attempt(attempt)).lines()
    assert lines == [line.removeprefix("        ") for line in transcript.strip("\n").splitlines()[:-1]]


def test_the_nearest_rule_is_told():
    asked = policy("- {id: read, to: x.example, http: {paths: /a/**}, action: allow}")
    lines = explain(asked, parse_attempt("GET https://x.example/b?token=secret")).lines()
    assert "the nearest rule is `t:read`, which wants `/a/**` and not `/b` as `http.paths`" in lines
    assert "secret" not in "\n".join(lines)


def test_audit_is_told():
    asked = policy("version: 1\nsettings: {mode: audit}")
    assert explain(asked, parse_attempt("x.example:443")).lines()[0].startswith("deny: no_rule (would be blocked")


def test_a_program_reads():
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


def test_every_reason_has_a_meaning():
    assert set(MEANING) == set(Reason)
    for meaning in MEANING.values():
        assert not meaning.endswith(".")
