"""`rules.diff` against `decide`: what differs is told, and nothing else is."""

import pytest

from rules.diff.compare import compare
from rules.diff.statements import describe_diff
from rules.loading.cases import parse_attempt
from tests.rules.writing import policy

READ = "  - {id: read, to: api.example, http: {methods: [GET, HEAD], paths: ['/repos/acme/**']}, action: allow}\n"
WEB = "  - {id: web, to: '*.web.example', action: allow}\n"

# old rules, new rules, what is said
SAID = [
    (
        WEB,
        WEB + "  - {id: a, to: x.example, action: allow}",
        ["tls x.example:443: was denied (no_rule), is allowed by `t:a`"],
    ),
    (
        WEB + "  - {id: a, to: x.example, action: allow}",
        WEB,
        ["tls x.example:443: was allowed by `t:a`, is denied (no_rule)"],
    ),
    (
        READ,
        READ.replace("acme/**'", "acme/**', /user"),
        ["GET, HEAD https://api.example/user: was denied (no_rule), is allowed by `t:read`"],
    ),
    (
        READ,
        READ + "  - {id: no, to: api.example, http: {paths: ['/**/secrets']}, action: deny}\n",
        [
            "GET, HEAD https://api.example/repos/acme/** that is also /**/secrets: was allowed by `t:read`, is denied by `t:no`"
        ],
    ),
    (
        WEB + "  - {id: a, to: x.example, credential: ours, action: allow}",
        WEB + "  - {id: a, to: x.example, credential: theirs, action: allow}",
        [
            "any method: https://x.example/** (credential theirs): was denied (credential_mismatch), is allowed by `t:a`",
            "any method: https://x.example/** (credential ours): was allowed by `t:a`, is denied (credential_mismatch)",
        ],
    ),
    (
        READ,
        READ.replace("methods: [GET, HEAD], ", ""),
        ["any method but GET, HEAD: https://api.example/repos/acme/**: was denied (no_rule), is allowed by `t:read`"],
    ),
    (
        WEB,
        WEB + "  - {id: no, to: evil.web.example, action: deny}",
        ["tls evil.web.example:443: was allowed by `t:web`, is denied by `t:no`"],
    ),
    (
        WEB + "  - {id: no, to: evil.web.example, action: deny}",
        WEB.replace("allow}", "flag}") + "  - {id: no, to: evil.web.example, action: deny}",
        ["tls *.web.example:443 but not evil.web.example: was allowed by `t:web`, is flagged by `t:web`"],
    ),
    (
        WEB,
        WEB.replace("action", "tls: splice, action"),
        [
            "tls *.web.example:443: was allowed by `t:web` with its requests read, is allowed by `t:web` with its requests unseen"
        ],
    ),
    (
        WEB,
        WEB.replace("action", "except: [evil.web.example], action"),
        ["tls evil.web.example:443: was allowed by `t:web`, is denied (no_rule)"],
    ),
    (
        WEB,
        WEB.replace("action", "ports: [443, 80, 8000-8100/tcp], action"),
        [
            "anything to *.web.example:8000-8100: was denied (no_rule), is allowed by `t:web`",
            "http *.web.example:80: was denied (no_rule), is allowed by `t:web`",
        ],
    ),
    (
        WEB,
        WEB + "  - {id: rest, to: '*', default: true, action: ask}",
        ["anything to * that no other rule decides: was denied (no_rule), is asked about by `t:rest`"],
    ),
    (
        WEB,
        WEB.replace("action", "resolves_to: [10.1.0.0/16], action"),
        [
            "tls *.web.example:443 where it resolves to 10.1.0.0/16: was denied (non_public_address), is allowed",
            "tls *.web.example:443 where it resolves to 0.0.0.0/0: was allowed, is denied (address_not_listed)",
        ],
    ),
    (
        WEB,
        WEB + "  - {id: net, to: 1.2.3.0/24, action: deny}",
        ["tls *.web.example:443 where it resolves to 1.2.3.0/24: was allowed, is denied by `t:net`"],
    ),
    (
        "  - {id: net, to: 1.2.3.0/24, action: allow}",
        "  - {id: net, to: 1.2.3.0/24, except: [1.2.3.4], action: allow}",
        ["tls 1.2.3.4:443: was allowed by `t:net`, is denied (no_rule)"],
    ),
]

GIT = "  - {id: git, to: git.example, git: {repos: ['acme/*'], fetch: true}, action: allow}\n"
DB = "  - {id: db, to: db.example, ports: 5432/tcp, action: allow}\n"
API = "  - {id: api, to: api.example, http: {methods: [POST], paths: [/v1]}, action: allow}\n"

# old rules, new rules, what is said: what rules ask beside names, ports, methods and paths
SAID_OF_MORE = [
    (
        DB,
        DB.replace("action", "for: {tasks: ['migrate-*']}, action"),
        ["anything to db.example:5432 (task any other): was allowed by `t:db`, is denied (no_rule)"],
    ),
    (
        DB,
        DB.replace("action", "for: {labels: {team: data}}, action"),
        ["anything to db.example:5432 (label team any other, none): was allowed by `t:db`, is denied (no_rule)"],
    ),
    (
        DB,
        DB.replace("action", "until: 2027-01-31, action"),
        ["anything to db.example:5432 (from 2027-02-01): was allowed by `t:db`, is denied by `t:db` (expired)"],
    ),
    (
        DB,
        DB.replace("action", "limits: {connections: 4, per: task}, action"),
        ["anything to db.example:5432: was allowed by `t:db`, is allowed by `t:db` with at most 4 connections per task"],
    ),
    (
        API,
        API.replace("[/v1]}", "[/v1], query: {q: [a]}}"),
        ["POST https://api.example/v1 (query no q, q read in two ways, q=other): was allowed by `t:api`, is denied (no_rule)"],
    ),
    (
        API,
        API.replace("[/v1]}", "[/v1], headers: {x-team: present}}"),
        ["POST https://api.example/v1 (headers no x-team, unknown): was allowed by `t:api`, is denied (no_rule)"],
    ),
    (
        API,
        API.replace("[/v1]}", "[/v1], body: false}"),
        ["POST https://api.example/v1 (with a body): was allowed by `t:api`, is denied (body_not_allowed)"],
    ),
    (
        API,
        API.replace("[/v1]}", "[/v1], max_url: 2KB}"),
        ["POST https://api.example/v1 (URL over 2048 bytes): was allowed by `t:api`, is denied (url_too_long)"],
    ),
    (
        GIT,
        GIT.replace("fetch: true", "fetch: true, push: ['refs/heads/x']"),
        ["git create/update https://git.example (ref refs/heads/x; repository acme/*): was denied (no_rule), is allowed by `t:git`"],
    ),
    (
        GIT,
        GIT.replace("acme/*", "acme/web"),
        ["git fetch https://git.example (repository acme/* but not acme/web): was allowed by `t:git`, is denied (no_rule)"],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "expected"), SAID_OF_MORE)
def test_rules_with_different_conditions_differ(old, new, expected):
    assert said(policy(old), policy(new)) == expected


def said(old, new):
    return [statement.text for statement in describe_diff(compare(old, new))]


@pytest.mark.parametrize(("old", "new", "expected"), SAID)
def test_differences_are_described_in_sentences(old, new, expected):
    assert said(policy(old), policy(new)) == expected


SAME = [
    (WEB, "  - {id: other, to: '*.WEB.example.', ports: 443/tls, why: because, action: allow}"),
    (READ, READ.replace("[GET, HEAD]", "[HEAD, GET]").replace("acme/**'", "acme/**/'")),
    (
        "  - {id: a, to: [x.example, y.example], action: deny}",
        "  - {id: a, to: y.example, action: deny}\n  - {id: b, to: x.example, action: deny}",
    ),
    (WEB, WEB + "  - {id: no, to: no.example, action: deny}"),  # was denied anyway
    (WEB, WEB + "  - {id: part, to: www.web.example, action: allow}"),
    ("  - {id: a, to: 10.0.0.1, action: allow}", "  - {id: a, to: 10.0.0.1/32, action: allow}"),
    (READ, READ + READ.replace("read", "again").replace("/**", "/*/**")),
]


@pytest.mark.parametrize(("old", "new"), SAME)
def test_equivalent_rules_do_not_differ(old, new):
    assert compare(policy(old), policy(new)).is_empty
    assert compare(policy(new), policy(old)).is_empty


def test_one_changed_name_among_thousands_is_reported_alone():
    names = [f"host{number}.zone{number % 7}.example" for number in range(2_000)]
    old = policy(f"  - {{id: a, to: [{', '.join(names)}], action: deny}}\n{WEB}")
    new = policy(f"  - {{id: a, to: [{', '.join([*names, 'www.web.example'])}], action: deny}}\n{WEB}")
    compared = compare(old, new)
    assert [statement.text for statement in describe_diff(compared)] == [
        "tls www.web.example:443: was allowed by `t:web`, is denied by `t:a`"
    ]
    assert len(compared.names) == 1, "names that don't differ are not even looked at"


def test_thousands_of_changed_rules_are_reported():
    def pool(shift):
        return policy(
            "\n".join(
                f"  - {{id: r{n}, to: h{n + shift}.example, http: {{methods: [GET], paths: ['/a/{n}/**']}}, action: allow}}"
                for n in range(1_000)
            )
        )

    compared = compare(pool(0), pool(1))
    assert compared.complete
    # each host but the first and the last has another path; those have one less and one more
    assert len(describe_diff(compared)) == 2 * 1_000


SCANNED = "- {id: a, to: x.example, scan: %s, action: allow}"


def test_changes_of_secrets_are_reported():
    said = compare(policy(SCANNED % "off"), policy(SCANNED % "block"))
    assert [statement.text for statement in describe_diff(said)] == [
        "tls x.example:443: was allowed by `t:a` with scan off, is allowed by `t:a` with scan block"
    ]
    assert compare(policy(SCANNED % "flag"), policy("- {id: a, to: x.example, action: allow}")).is_empty


def test_changed_settings_are_reported_separately():
    old, new = policy(WEB, "settings: {mode: audit}"), policy(WEB)
    compared = compare(old, new)
    assert [tuple(setting) for setting in compared.settings] == [("mode", "audit", "enforce")]
    assert compared.rows == ()
    assert not compared.is_empty


def test_default_ask_in_place_of_deny_is_a_difference_in_audit_mode():
    rest = "- {id: d, to: x.example, default: true, action: %s}"
    old = policy(rest % "deny", "settings: {mode: audit}")
    assert not compare(old, policy(rest % "deny")).rows
    assert {statement.text for statement in describe_diff(compare(old, policy(rest % "ask")))} == {
        "anything to x.example that no other rule decides: was let out by audit mode by `t:d` (default_rule), is asked about by `t:d`",
        "udp x.example that no other rule decides: was denied by `t:d` (default_rule), is asked about by `t:d`",
    }


def test_audited_connection_with_ask_follows_from_mode():
    asks = "- {id: q, to: x.example, http: {paths: /}, action: ask}"
    old, new = policy(asks), policy(asks, "settings: {mode: audit}")
    decided = [parse_attempt("tls x.example:443").decide(each).outcome for each in (old, new)]
    assert decided == ["passed", "would_block"]
    assert compare(old, new).rows == ()


NOTHING = "version: 1\nname: t\n%s\nrules: []"
DENIED = "- {id: d, to: [%s93.184.216.34], action: deny}"


@pytest.mark.parametrize("named", ["", "'*.web.example', "])
def test_unlisted_name_in_audit_mode_passes_until_address_is_denied(named):
    rules, audit = DENIED % named, "settings: {mode: audit}"
    but = f" but not {named[1:-3]}" if named else ""
    said = [statement.text for statement in describe_diff(compare(policy(NOTHING % audit), policy(rules, audit)))]
    gone = "was let out by audit mode (no_rule), is denied by `t:d`"
    assert f"anything to *{but} where it resolves to 93.184.216.34/32: {gone}" in said
    assert f"anything to 93.184.216.34: {gone}" in said
    assert not any(
        "*" in statement.text for statement in describe_diff(compare(policy(NOTHING % ""), policy(DENIED % "")))
    )


def test_example_of_a_difference_is_decided_as_reported():
    old = policy(READ + WEB)
    new = policy(READ.replace("GET, ", "") + WEB.replace("allow", "flag"))
    told = describe_diff(compare(old, new))
    assert len(told) == 2
    for statement in told:
        question = parse_attempt(statement.example)
        assert question.decide(old).verdict == statement.was.verdict
        assert question.decide(new).verdict == statement.now.verdict
