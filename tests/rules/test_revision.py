"""The revision is the meaning: the same for the same, another for another."""

import re

import pytest

from tests.rules.writing import policy

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


@pytest.mark.parametrize("rules", SAME)
def test_the_same_meaning_has_the_same_revision(rules):
    assert policy(rules).revision == policy(BASE).revision


@pytest.mark.parametrize("rules", OTHER)
def test_another_meaning_has_another_revision(rules):
    assert policy(rules).revision != policy(BASE).revision


def test_settings_are_part_of_it():
    assert policy(BASE, "settings: {mode: audit}").revision != policy(BASE).revision
    assert policy(BASE, "settings: {mode: enforce}").revision == policy(BASE).revision


def test_it_is_a_sha256_that_never_changes_by_itself():
    assert re.fullmatch(r"[0-9a-f]{64}", policy(BASE).revision)
    assert policy("version: 1").revision == policy("version: 1\nname: other").revision
