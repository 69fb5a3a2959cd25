"""ECS 9.4: fields, types and values as published by Elastic."""

import re
from ipaddress import ip_address

import pytest

from proxy.telemetry.events import Kind
from proxy.telemetry.formats.ecs import ecs
from tests.proxy.telemetry.formats.sample_records import event, everything, harmful, record, texts, unknown
from tests.support.telemetry_lab import HOSTILE

# From the field reference of ECS 9.4.0 (the package @elastic/ecs of that version): the type of each field we fill.
KEYWORD, LONG, IP, LIST = str, int, "ip", [str]
FIELDS = {
    "@timestamp": "date", "ecs.version": KEYWORD, "message": KEYWORD,
    "event.id": KEYWORD, "event.kind": KEYWORD, "event.category": LIST, "event.type": LIST, "event.action": KEYWORD,
    "event.outcome": KEYWORD, "event.reason": KEYWORD, "event.severity": LONG, "event.duration": LONG,
    "event.provider": KEYWORD, "event.module": KEYWORD, "event.dataset": KEYWORD,
    "observer.vendor": KEYWORD, "observer.product": KEYWORD, "observer.type": KEYWORD, "observer.version": KEYWORD,
    "host.name": KEYWORD, "rule.id": KEYWORD, "rule.name": KEYWORD, "rule.ruleset": KEYWORD, "rule.version": KEYWORD,
    "network.transport": KEYWORD, "network.protocol": KEYWORD, "network.type": KEYWORD, "network.direction": KEYWORD,
    "network.bytes": LONG, "source.bytes": LONG, "destination.address": KEYWORD, "destination.domain": KEYWORD,
    "destination.ip": IP, "destination.port": LONG, "destination.bytes": LONG,
    "tls.version": KEYWORD, "tls.version_protocol": KEYWORD, "tls.client.server_name": KEYWORD,
    "url.domain": KEYWORD, "url.path": KEYWORD, "url.scheme": KEYWORD, "url.port": LONG,
    "http.request.method": KEYWORD, "http.request.body.bytes": LONG, "http.response.status_code": LONG,
    "http.response.body.bytes": LONG, "dns.question.name": KEYWORD, "dns.question.type": KEYWORD, "dns.answers": [dict],
    "process.pid": LONG, "process.executable": KEYWORD, "process.name": KEYWORD, "process.args": LIST,
    "process.args_count": LONG, "process.exit_code": LONG, "process.parent.executable": KEYWORD,
    "process.parent.pid": LONG,
    "process.user.id": KEYWORD, "user.id": KEYWORD, "user.name": KEYWORD, "error.message": KEYWORD, "error.type": KEYWORD, "related.hosts": LIST, "related.ip": [IP],
    "related.user": LIST,
}  # fmt: skip
WORDS = {
    "event.kind": {"alert", "asset", "enrichment", "event", "metric", "state", "pipeline_error", "signal"},
    "event.category": {"api", "authentication", "configuration", "database", "driver", "email", "file", "host", "iam",
                       "intrusion_detection", "library", "malware", "network", "package", "process", "registry", "session",
                       "threat", "vulnerability", "web"},
    "event.type": {"access", "admin", "allowed", "change", "connection", "creation", "deletion", "denied", "device", "end",
                   "error", "group", "indicator", "info", "installation", "protocol", "start", "user"},
    "event.outcome": {"failure", "success", "unknown"},
}  # fmt: skip


def leaves(value, above=""):
    for key, inner in value.items():
        if isinstance(inner, dict):
            yield from leaves(inner, f"{above}{key}.")
        else:
            yield above + key, inner


def is_of(value, kind):
    if isinstance(kind, list):
        return isinstance(value, list) and all(is_of(each, kind[0]) for each in value)
    if kind == "ip":
        return bool(ip_address(value))
    if kind == "date":
        return bool(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", value))
    return isinstance(value, kind) and not isinstance(value, bool)


def wrong(converted):
    found = [(name, value) for name, value in leaves(converted) if not name.startswith("exeat.")]
    bad = [name for name, value in found if name not in FIELDS or not is_of(value, FIELDS[name])]
    for name, words in WORDS.items():
        output = dict(found).get(name, [])
        bad += [name] if not words.issuperset([output] if isinstance(output, str) else output) else []
    return bad


# Combinations that ECS allows: elastic.co/guide/en/ecs, "Expected event types" of each category.
EXPECTED = {
    "network": {"access", "allowed", "connection", "denied", "end", "info", "protocol", "start"},
    "web": {"access", "error", "info"},
    "process": {"access", "change", "end", "info", "start"},
    "configuration": {"access", "change", "creation", "deletion", "info"},
    "intrusion_detection": {"allowed", "denied", "info"},
    "iam": {"admin", "change", "creation", "deletion", "group", "info", "user"},
    "file": {"access", "change", "creation", "deletion", "info"},
    "host": {"access", "change", "end", "info", "start"},
}
DECIDES = {"allowed", "denied"}  # also for commands: ECS has no other field


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_has_an_ecs_category_with_expected_types(kind):
    converted = ecs(record(kind))["event"]
    expected = set().union(*(EXPECTED[category] for category in converted["category"]))
    assert set(converted["type"]) - DECIDES <= expected


def test_every_event_uses_ecs_fields_types_and_values():
    for each in everything():
        assert wrong(ecs(each)) == [], each["kind"]
    assert wrong({"event": {"kind": "guess", "id": 7}, "nonsense": 1}) == ["event.id", "nonsense", "event.kind"]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_breaks_no_ecs_field(name):
    for kind in Kind:
        converted = ecs(record(kind, HOSTILE[name]))
        assert wrong(converted) == []
        assert [text for text in texts(converted) if harmful(text)] == []


# Results of attempts: the ECS type, and whether the gate worked as intended.
SAID = {
    "let out": ({}, "allowed", "success"),
    "blocked": ({"verdict": "deny", "outcome": "blocked", "reason": "no_rule"}, "denied", "success"),
    "audit mode let it out": ({"verdict": "deny", "outcome": "would_block"}, "allowed", "success"),
    "the network failed": ({"outcome": "failed", "reason": "unresolved"}, "allowed", "failure"),
}


@pytest.mark.parametrize(("members", "kind", "outcome"), SAID.values(), ids=SAID)
def test_verdict_is_the_type_and_outcome_the_success_of_the_gate(members, kind, outcome):
    converted = ecs(event(**members))["event"]
    assert converted["type"] == ["connection", "start", kind]
    assert converted["outcome"] == outcome


@pytest.mark.parametrize(
    "address", ["::ffff:1.2.3.4%x.allowed.com", "2852039166", "127.1", "fe80::1%1", "", "a.example"]
)
def test_invalid_address_is_in_no_address_field(address):
    """One such field, and Elasticsearch refuses the whole document."""
    converted = ecs(event(destination={"address": address, "port": 70000}))
    assert "ip" not in converted["destination"]
    assert "port" not in converted["destination"]
    assert "related" not in converted or "ip" not in converted["related"]


def test_fields_without_ecs_name_are_under_exeat():
    converted = ecs(unknown())
    assert converted["exeat"]["later"] == {"deep": [1, "x"]}
    assert converted["exeat"]["task"]["labels"] == {"text": "text"}
    assert "process" not in converted["exeat"]
