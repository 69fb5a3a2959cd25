"""What the demo prints and how it ends: nothing but what is expected of each attempt is good enough."""

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from rules.loading.load import load
from tests.demo import __main__ as demo
from tests.demo.__main__ import Tried, kept_hint, tier
from tests.demo.expected import BY_THE_SANDBOX, EXPECTED
from tests.support import harness
from tests.support.ports import free_port

HERE = Path(__file__).parent


def answered(named, answer, *by):
    return {"kind": "approval.answered", "approval": {"id": named, "answer": answer, "by": list(by)}}


def test_approvals_and_flagged_events_are_distinguished():
    events = [answered("x", "approved", "ada"), answered("y", "rejected", "bo"), answered("x", "approved", "ada", "bo")]
    held = {"verdict": "flag", "approval": {"id": "x"}}
    assert tier({"verdict": "flag"}, events) == ("flag", "-")
    assert tier(held, events) == ("ask", "ada, bo: approved")


def test_advice_names_the_kept_journal():
    said = kept_hint("exeat: see it with `exeat log --task 1-2`\n", Path("/kept/journal"))
    assert said.endswith("exeat log --journal /kept/journal --task 1-2`")


def told():
    """A demo that went as it should: what was tried, a second each, and the event of each."""
    tried, events = [], []
    for second, (what, expected) in enumerate(EXPECTED.items()):
        tried.append(Tried(second, second + 0.9, 0 if expected.works else 22, what))
        if expected == BY_THE_SANDBOX:
            continue
        event = {
            "kind": "request.decided", "time": f"1970-01-01T00:00:{second:02}.500+00:00", "verdict": "allow",
            "outcome": expected.outcome, "reason": expected.reason, "rules": list(expected.rules),
        }  # fmt: skip
        if expected.people != "-":
            by, answer = expected.people.split(": ")
            event["approval"] = {"id": what}
            events.append({**answered(what, answer, *by.split(", ")), "time": event["time"]})
        events.append(event)
    return tried, events


def test_packets_refused_by_the_ruleset_can_be_logged_late(capsys):
    tried, events = told()
    for event in events:
        if event.get("reason") in {"udp", "quic"}:
            event["time"] = "1970-01-01T00:00:59+00:00"
    assert demo._table(tried, events) == 0, capsys.readouterr().out


def test_demo_succeeds_if_all_is_as_expected(capsys):
    assert demo._table(*told()) == 0
    assert f"as expected: {len(EXPECTED)} of {len(EXPECTED)}\n" in capsys.readouterr().out


def blocked(tried, events):
    """Everything: no client has anything, and it was said so."""
    decided = {"outcome": "blocked", "reason": "no_rule", "rules": []}
    return [replace(one, status=22) for one in tried], [event | decided for event in events]


def passed(tried, events):
    return [replace(one, status=0) for one in tried], [event | {"outcome": "passed"} for event in events]


def for_another_reason(tried, events):
    return tried, [event | {"reason": "gate_error"} if event.get("reason") == "no_rule" else event for event in events]


def by_another_rule(tried, events):
    return tried, [
        event | {"rules": ["demo:x"]} if event.get("rules") == ["demo:packages"] else event for event in events
    ]


def by_one_person_alone(tried, events):
    return tried, [event for event in events if event.get("approval", {}).get("by") != ["ada", "bo"]]


def untold(tried, events):
    return tried, []


def not_tried(tried, events):
    return tried[1:], events


def tried_besides(tried, events):
    return [*tried, replace(tried[0], what="something else")], events


WRONG = {
    blocked: len([each for each in EXPECTED.values() if each != BY_THE_SANDBOX and each[1:3] != ("blocked", "no_rule")]),
    passed: len([each for each in EXPECTED.values() if each.outcome != "passed"]),
    for_another_reason: len([each for each in EXPECTED.values() if each.reason == "no_rule"]),
    by_another_rule: 1,
    by_one_person_alone: 1,
    untold: len(EXPECTED) - 1,
    not_tried: 1,
    tried_besides: 1,
}  # fmt: skip


@pytest.mark.parametrize("how", WRONG, ids=lambda how: how.__name__)
def test_demo_fails_if_something_is_unexpected(how, capsys):
    assert demo._table(*how(*told())) == WRONG[how]
    said = capsys.readouterr().out.partition("as expected: ")[2].splitlines()
    assert len(said) == 1 + WRONG[how]


def test_expectations_match_the_task_and_its_rules():
    tries = re.findall(r"^attempt '((?:[^']|'\\'')+)'", (HERE / "task.sh").read_text(), re.MULTILINE)
    assert [what.replace("'\\''", "'") for what in tries] == list(EXPECTED)
    rules = {rule.id for rule in load([HERE / "rules.yaml"]).rules}
    assert {rule for expected in EXPECTED.values() for rule in expected.rules} <= rules


def test_demo_runs_as_expected():
    harness.needs_root()
    for tool in ("curl", "git", "openssl"):
        if shutil.which(tool) is None:
            harness.missing(tool)
    words = [sys.executable, "-m", "tests.demo", f"127.0.0.1:{free_port()}"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=harness.PROJECT, timeout=100, check=False)
    for kept in re.findall(r"--journal (\S+)/journal ", done.stdout):
        shutil.rmtree(kept)
    assert done.returncode == 0, done.stdout[done.stdout.find("as expected") :] + done.stderr
    assert f"\nas expected: {len(EXPECTED)} of {len(EXPECTED)}\n" in done.stdout
    assert 'reason="dns_denied",verdict="deny"}' in done.stdout.partition("the metrics, ")[2]
