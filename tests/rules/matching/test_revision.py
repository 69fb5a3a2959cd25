"""The revision is the meaning: the same for the same, another for another."""

import re

import pytest

from rules.matching.revision import digest_of
from rules.rule import Rule
from tests.rules.rule_texts import policy

BASE = "- {id: a, to: [x.example, '*.y.example', 10.0.0.0/8], ports: [443, 8080/http], http: {methods: [GET, HEAD], paths: [/a, /b/**]}, except: [z.y.example], why: because, action: allow}\n- {id: b, to: '*', default: true, action: deny}"  # fmt: skip

SAME = [
    "# a comment\n" + BASE,
    "\n".join(reversed(BASE.split("\n"))),
    BASE.replace("because", "for no reason"),
    BASE.replace("[x.example, '*.y.example', 10.0.0.0/8]", "['*.Y.example.', 10.0.0.0/8, X.EXAMPLE, x.example]"),
    BASE.replace("[443, 8080/http]", "[8080/http, 443/tls]"),
    BASE.replace("[GET, HEAD]", "[HEAD, GET]").replace("[/a, /b/**]", "[/b/**, /%61/]"),
    BASE.replace("action: allow", "tls: inspect, action: allow"),
]
OTHER = [
    BASE.replace("id: a", "id: c"),
    BASE.replace("x.example", "w.example"),
    BASE.replace("'*.y.example'", "'**.y.example'"),
    BASE.replace("10.0.0.0/8", "10.0.0.0/9"),
    BASE.replace("8080/http", "8080/tcp").replace("http: {methods: [GET, HEAD], paths: [/a, /b/**]}, ", ""),
    BASE.replace("[GET, HEAD]", "[GET]"),
    BASE.replace("/b/**", "/b/*"),
    BASE.replace("action: allow", "action: flag"),
    BASE.replace("default: true, ", ""),
    BASE.replace("except: [z.y.example], ", ""),
    BASE.replace("except: [z.y.example]", "except: [{ports: 443}]"),
    BASE.replace("action: allow", "idle_timeout: 9s, action: allow"),
    BASE.replace("action: allow", "resolves_to: 10.0.0.0/8, action: allow"),
]

FULL = (
    "- {id: a, to: x.example, for: {tasks: [b, a], labels: {t: [d, c]}}, http: {query: {b: '1', a: present}, headers: {X-A: [z, y]}}, "
    "git: {repos: [b/*, a/*], fetch: true, push: [refs/b, refs/a]}, limits: {requests: 5}, until: 2027-01-31, action: allow}"
)
FULL_SAME = [
    FULL.replace("[b, a]", "[a, b, a]").replace("[d, c]", "[c, d]"),
    FULL.replace("b: '1', a: present", "a: present, b: '1'").replace("X-A: [z, y]", "x-a: [y, z]"),
    FULL.replace("[b/*, a/*]", "[a/*.git, b/*]").replace(
        "[refs/b, refs/a]", "[refs/a, refs/b], changes: [update, create]"
    ),
    FULL.replace("{requests: 5}", "{requests: 5, per: task}"),
]
FULL_OTHER = [
    FULL.replace(*change)
    for change in [
        ("[b, a]", "[b]"), ("t: [d, c]", "u: [d, c]"), ("[d, c]", "[d]"), ("'1'", "'2'"), ("present", "absent"), ("X-A", "X-B"),
        ("[z, y]", "[z]"), ("b/*", "c/*"), ("fetch: true", "fetch: false"), ("refs/b", "refs/c"), ("refs/a]", "refs/a], changes: delete"),
        ("requests: 5", "requests: 6"), ("requests: 5", "requests: 5, per: rule"), ("requests: 5", "requests: 5, window: 1h"), ("01-31", "01-30"),
        ("headers: ", "body: true, headers: "), ("headers: ", "max_url: 1KB, headers: "), ("headers: ", "websocket: true, headers: "),
        ("action", "credential: key, action"), ("action", "trust: trusted, action"), ("action", "scan: off, action"), ("action", "log: pattern, action"),
        ("action", "dns_types: TXT, action"), ("action", "except: [{for: {tasks: x}}], action"), ("action", "except: [{credential: k}], action"),
        ("action", "except: [{when: tainted}], action"), ("action", "except: [{resolves_to: 10.0.0.0/8}], action"),
        ("action", "except: [{git: {repos: a/b, fetch: true}}], action"), ("allow", "flag"), ("action: allow", "when: tainted, action: flag"),
    ]
]  # fmt: skip


@pytest.mark.parametrize("rules", FULL_SAME)
def test_equivalent_spelling_has_the_same_revision(rules):
    assert policy(rules).revision == policy(FULL).revision


def test_revision_covers_every_key():
    revisions = [policy(rules).revision for rules in (FULL, *FULL_OTHER)]
    assert len(set(revisions)) == len(revisions)


def test_digest_covers_every_field_but_why():
    rule = policy(FULL).rules[0]
    others = dict.fromkeys(Rule._fields, "another") | {"feeds": ("another",), "excepts": ("another",)}
    differing = {name for name, value in others.items() if digest_of(rule._replace(**{name: value})) != digest_of(rule)}
    assert differing == set(Rule._fields) - {"why"}


def test_list_and_single_value_have_different_digests():
    rule = policy(FULL).rules[0]
    values = [None, (), ("a", "b"), ("a, b",), ("a', 'b",), ("{'a', 'b'}",), (("a", "b"),), "{'a', 'b'}", True, "True"]
    digests = [digest_of(rule._replace(limits=value)) for value in values]
    assert len(set(digests)) == len(values)


@pytest.mark.parametrize("rules", SAME)
def test_equivalent_policies_have_the_same_revision(rules):
    assert policy(rules).revision == policy(BASE).revision


@pytest.mark.parametrize("rules", OTHER)
def test_different_policies_have_different_revisions(rules):
    assert policy(rules).revision != policy(BASE).revision


def test_revision_covers_settings():
    assert policy(BASE, "settings: {mode: audit}").revision != policy(BASE).revision
    assert policy(BASE, "settings: {mode: enforce}").revision == policy(BASE).revision


def test_revision_is_a_stable_sha256():
    assert re.fullmatch(r"[0-9a-f]{64}", policy(BASE).revision)
    assert policy("version: 1").revision == policy("version: 1\nname: other").revision
