"""Reload under a running task: denied connections end at once, and allowed ones continue."""

import time

import pytest

from .attempt_network import dns_names
from .lab_runner import LIBRARIES, Journal, only_as_ordinary_user

pytestmark = only_as_ordinary_user

RULES = """
version: 1
name: reloaded
rules:
  - {id: inspected, to: "*.allowed.example", ports: [443, 80], action: allow}
  - {id: spliced, to: "*.spliced.example", tls: splice, action: allow}
"""
LATER = (
    RULES
    + """
  - {id: lost, to: "lost.*.*.example", ports: [443, 80], action: deny}
  - {id: no-events, to: kept.more.allowed.example, http: {paths: ["/events/**"]}, action: deny}
"""
)
WAIT = 30


def reload(runner, name, path, text, count):
    """Write new rules, and wait until they are loaded."""
    path.write_text(text)
    deadline = time.monotonic() + WAIT
    while time.monotonic() < deadline:
        results = b"".join(path.read_bytes() for path in runner.journal(name).glob("*/*.jsonl"))
        if (
            results.count(b'"rules.loaded"') >= count or b'"rules.rejected"' in results
        ):  # a cheap check before parsing JSON
            journal = Journal(runner.journal(name))
            assert not journal.of(kind="rules.rejected"), journal.of(kind="rules.rejected")
            if len(journal.of(kind="rules.loaded")) >= count:
                return journal
        time.sleep(0.02)
    raise AssertionError("the new rules never came into force")


@pytest.fixture(scope="module")
def reload_run(runner):
    """Results for every kind of connection before and after a reload."""
    runner.lab.origin.name(dns_names())
    rules = runner.rules(RULES, "reloaded.yaml")
    with runner.start_steps("reloaded", rules, "reloaded", LIBRARIES) as steps:
        before = steps("begin")
        journal = reload(runner, "reloaded", rules, LATER, 2)
        after, mixed = steps("see"), steps("see_mixed")
        new = steps("local", "lost.more.allowed.example", 80)
        journal = Journal(runner.journal("reloaded"))
    return {"before": before, "after": after, "mixed": mixed, "new": new, "journal": journal}


KINDS = ("idle", "inspected", "clear", "spliced", "held")


def test_connections_are_open_before_the_reload(reload_run):
    assert reload_run["before"] == {
        **{f"{word} idle": 200 for word in ("kept", "lost")},
        **{f"{word} {kind}": 10 for word in ("kept", "lost") for kind in ("inspected", "clear", "spliced")},
        **dict.fromkeys(("kept held", "lost held", "mixed"), "open"),
    }


def test_allowed_connections_survive_a_reload(reload_run):
    after = {kind: reload_run["after"][f"kept {kind}"] for kind in KINDS}
    assert after == {"idle": 200, "inspected": "more", "clear": "more", "spliced": "more", "held": "open"}


def test_denied_connections_are_reset_by_a_reload(reload_run):
    """With a reset, so that no transfer looks complete (invariant 12)."""
    assert {reload_run["after"][f"lost {kind}"] for kind in KINDS} == {"ECONNRESET"}


def test_only_the_denied_request_of_a_connection_ends(reload_run):
    ended, after, reset = reload_run["mixed"]
    assert (ended, after, reset) == ("open", "open", False)
    (recorded,) = reload_run["journal"].of(kind="request.completed", outcome="blocked", http__path="/events/100000")
    assert (recorded["reason"], recorded["rules"]) == ("rule", ["reloaded:no-events"])


def test_close_events_name_the_rule_and_revision(reload_run):
    journal = reload_run["journal"]
    first, second = journal.of(kind="rules.loaded")
    assert second["previous"] == first["revision"] != second["revision"]
    cut = journal.of(kind="connection.closed", outcome="blocked")
    assert len(cut) == len(KINDS)
    for event in cut:
        assert event["destination"]["name"].startswith("lost.")
        assert (event["reason"], event["rules"], event["revision"]) == ("rule", ["reloaded:lost"], second["revision"])
    assert journal.of(kind="gate.error") == []


def test_new_connections_use_the_new_rules(reload_run):
    assert reload_run["new"] == "rule"


def test_many_reloads_under_load_reset_no_allowed_connection(runner):
    runner.lab.origin.name(dns_names())
    rules = runner.rules(RULES, "hammered.yaml")
    with runner.start_steps("hammered", rules, "reloaded", LIBRARIES) as steps:
        steps("hammer")
        for number in range(8):
            more = "".join(f"  - {{id: m{n}, to: m{n}.example, action: allow}}\n" for n in range(number * 40))
            reload(runner, "hammered", rules, RULES + more, number + 2)
        done, errors = steps("stop")
    assert errors == []
    assert done > 50
    journal = Journal(runner.journal("hammered"))
    assert {event["outcome"] for event in journal.of(kind="connection.closed")} == {"passed"}
    assert journal.of(kind="gate.error") == []
    assert len({event["revision"] for event in journal.of(kind="connection.decided")}) > 3
