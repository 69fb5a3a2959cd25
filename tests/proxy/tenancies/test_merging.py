"""Numbers of many tenants and workers as one: added up, passed on as JSON, and checked where they are taken in."""

import json
from datetime import date

import pytest

from proxy.telemetry.events import Kind
from proxy.telemetry.metrics import Metrics
from proxy.telemetry.prometheus.merging import add, from_json, to_json, total
from proxy.telemetry.prometheus.processes import ProcessUse
from rules.verdicts import Mode, Outcome, Reason, Verdict

NOW = 1.7e9


def tenant(revision, rules=("r:a",), endings=()):
    metrics = Metrics()
    metrics.rules_loaded(revision, rules, Mode.ENFORCE, NOW, endings)
    metrics.decided(Kind.CONNECTION_DECIDED, Verdict.DENY, Outcome.BLOCKED, Reason.NO_RULE)
    metrics.rules_decided(rules, Verdict.ALLOW)
    metrics.dns_query("A", Verdict.ALLOW)
    metrics.dialled(None, 0.2)
    metrics.sandbox_started(0.1)
    metrics.connections_open, metrics.bytes_up = 2, 100
    metrics.refused_packets({"udp": 3})
    return metrics


def test_totals_are_sums_and_what_is_gone_leaves_only_its_counts():
    counted = total()
    add(counted, tenant("one"))
    add(counted, tenant("two", ("r:b",)))
    add(counted, tenant("three"), ended=True)
    assert sum(counted.decisions.values()) == 3
    assert (counted.connections_open, counted.sandboxes, counted.bytes_up) == (4, 2, 300)
    assert counted.packets_refused == {"udp": 9}
    assert set(counted.in_force) == {"one", "two"}
    assert counted.dial_seconds["connected"].total == pytest.approx(0.6)


def test_a_policy_that_many_are_under_has_its_last_days_once():
    counted = total()
    for _ in range(3):
        add(counted, tenant("same", endings=[date(2030, 1, 1)]))
    assert counted.rule_endings == (date(2030, 1, 1),)


def test_it_comes_out_of_json_as_it_went_in():
    counted = total()
    add(counted, tenant("one"))
    counted.processes["worker"] = ProcessUse(1.5, 10, 20, NOW, 5, None)
    read = from_json(json.loads(json.dumps(to_json(counted))), "worker-2")
    assert read.processes["worker-2"] == ProcessUse(1.5, 10, 20, NOW, 5, None)
    assert read.render().replace(b"worker-2", b"worker") == counted.render()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("bytes_up", -1),
        ("bytes_up", "1"),
        ("bytes_up", 1 << 70),
        ("decisions", [["connection.decided", "deny", "blocked", "no such reason", 1]]),
        ("rule_decisions", [["x" * 1000, "deny", 1]]),
        ("tasks", {str(number): 1 for number in range(1000)}),
        ("peek_seconds", [[1], 0.0]),
        ("in_force", {"r": "no mode"}),
        ("rules_loaded_at", "soon"),
        ("processes", {"worker": [1]}),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 20 else "value",
)
def test_what_no_worker_of_ours_says_is_refused(key, value):
    said = to_json(tenant_total())
    said[key] = value
    with pytest.raises((ValueError, TypeError, KeyError)):
        from_json(json.loads(json.dumps(said)), "worker")


def tenant_total():
    counted = total()
    add(counted, tenant("one"))
    return counted
