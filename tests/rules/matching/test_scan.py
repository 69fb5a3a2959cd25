"""`scan`: the strictest value of all matching rules decides; `flag` is the default."""

from ipaddress import ip_address

import pytest

from rules.attempt import Caller
from rules.loading.cases import parse_attempt
from rules.values.names import HostName
from rules.verdicts import Scan
from tests.rules.rule_texts import policy

X = "GET https://x.example/"
OPEN = "- {id: open, to: '*', action: allow}\n"
OFF = "- {id: off, to: x.example, scan: off, action: allow}\n"
BLOCK = "- {id: block, to: x.example, scan: block, action: allow}\n"
PUT = "- {id: put, to: x.example, http: {methods: PUT}, scan: block, action: allow}\n"

STRICTEST = [
    (OPEN, Scan.FLAG),
    (OFF, Scan.OFF),
    (BLOCK, Scan.BLOCK),
    (OFF + OPEN, Scan.FLAG),  # no rule makes another's less strict
    (OFF + BLOCK, Scan.BLOCK),
    (BLOCK + "- {id: s, to: '*', scan: strict, action: flag}", Scan.STRICT),
    (OPEN + BLOCK, Scan.BLOCK),
    (PUT + OPEN, Scan.FLAG),
    (PUT + OFF, Scan.OFF),
    (OPEN + "- {id: y, to: y.example, scan: block, action: allow}", Scan.FLAG),
    (OFF + "- {id: rest, to: '*', scan: block, default: true, action: flag}", Scan.OFF),  # it has no say there
    (OPEN + "- {id: f, to: x.example, when: tainted, scan: block, action: flag}", Scan.BLOCK),  # matches possibly
    (OPEN + "- {id: u, to: x.example, until: 2020-01-01, scan: block, action: allow}", Scan.BLOCK),  # tightens for good
    ("- {id: q, to: x.example, scan: block, action: ask}\n" + OFF, Scan.BLOCK),
]


@pytest.mark.parametrize(("rules", "expected"), STRICTEST)
def test_strictest_scan_applies(rules, expected):
    asked = policy(rules)
    assert asked.decide(parse_attempt(X)._replace(caller=Caller(tainted=True)).attempt(asked)).scan is expected


def test_audited_requests_are_scanned():
    asked = policy("- {id: d, to: x.example, default: true, action: deny}", "settings: {mode: audit}")
    for attempt in (X, "GET https://unheard.example/"):
        decision = asked.decide(parse_attempt(attempt).attempt(asked))
        assert (decision.passes, decision.scan) == (True, Scan.FLAG)


READ = [
    ("- {id: a, to: x.example, action: allow}", False),
    ("- {id: a, to: x.example, scan: off, action: allow}", False),
    ("- {id: a, to: x.example, scan: flag, action: allow}", True),
    ("- {id: a, to: x.example, scan: block, action: allow}", True),
    (
        "- {id: a, to: x.example, action: allow}\n- {id: b, to: x.example, scan: block, when: tainted, action: flag}",
        True,
    ),
]


@pytest.mark.parametrize(("rules", "inspected"), READ)
def test_scanned_hosts_are_always_inspected(rules, inspected):
    asked = policy(rules, "settings: {tls: splice}")
    decision = asked.decide(parse_attempt("tls x.example:443")._replace(caller=Caller(tainted=True)).attempt(asked))
    assert (decision.passes, decision.inspect) == (True, inspected)
    assert asked.needs.inspection is inspected


def test_layer_without_scan_does_not_decide_it(tmp_path):
    from rules.loading.load import load

    def scan(layer):
        file, own = tmp_path / "layer.yaml", tmp_path / "own.yaml"
        file.write_text(f"version: 1\nname: corp\nlayer: mandatory\nrules: [{layer}]\n")
        own.write_text(f"version: 1\nname: t\nrules:\n{OFF}")
        asked = load([file, own])
        return asked.decide(parse_attempt(X).attempt(asked)).scan

    assert scan("{id: a, to: x.example, scan: block, action: allow}") is Scan.BLOCK
    assert scan("{id: a, to: x.example, action: allow}") is Scan.FLAG
    assert scan("{id: a, to: y.example, scan: block, action: allow}") is Scan.OFF


EXPLAINED = [
    (BLOCK, X, ["scanned: a request with something that looks like a secret is blocked (`scan: block`)"]),
    (OPEN, X, ["scanned: a request with something that looks like a secret is allowed and recorded (`scan: flag`)"]),
    (OFF, X, ["not scanned for secrets (`scan: off`)"]),
    (BLOCK, "tls x.example:443", []),  # each request is decided by itself
    (BLOCK, "GET https://y.example/", []),
]


@pytest.mark.parametrize(("rules", "attempt", "said"), EXPLAINED)
def test_scan_is_explained(rules, attempt, said):
    from rules.explain.explanation import explain

    told = explain(policy(rules), parse_attempt(attempt))
    assert [line for line in told.lines() if "scanned" in line] == said
    passes = told.decision.passes
    assert told.value()["scan"] == (told.decision.scan.value if passes else None)


NAMED = [
    ("{id: a, to: x.example, action: allow}", True),
    ("{id: a, to: '*.example', action: allow}", False),  # a name of one label is nobody's
    ("{id: a, to: '**.x.example', action: ask}", True),
    ("{id: a, to: '*', action: allow}", False),
    ("{id: a, to: y.example, action: allow}", False),
    ("{id: a, to: x.example, action: deny}", False),
]


@pytest.mark.parametrize(("rule", "named"), NAMED)
def test_allow_rule_names_its_hosts(rule, named):
    made = policy(f"- {rule}\n- {{id: rest, to: '*', scan: strict, action: allow}}")
    assert made.needs.names_host(HostName("x.example")) is named
    assert made.needs.strict_scan


def test_network_rule_names_its_addresses():
    made = policy("- {id: a, to: 192.0.2.0/24, ports: 443/tls, action: allow}")
    assert made.needs.names_host(ip_address("192.0.2.7"))
    assert not made.needs.names_host(ip_address("198.51.100.7"))
    assert not made.needs.strict_scan
