"""Invariant 6 for the journals of all tests in this folder. Runs last: see conftest."""

import json

import pytest

from tests.support import event_schema

from .event_docs import accounting_problems, problems

KILLED = {"lost", "udp-lost"}  # runs whose worker was killed
DROPPED = {"full", "raised"}  # runs in which events could not be written, and were counted instead


@pytest.fixture
def journals(runner, attempt_results):
    """Return the lines of every journal by run."""
    found = {}
    for directory in runner.lab.home(runner.user).glob("journal-*"):
        lines = [path.read_bytes().splitlines(keepends=True) for path in sorted(directory.glob("*/*.jsonl"))]
        recorded = [line for segment in lines for line in segment if b'"kind":"journal.' not in line]
        found[directory.name.removeprefix("journal-")] = recorded
    assert len(found["tried"]) > 500
    return found


def test_every_journal_line_is_a_documented_event(journals):
    wrong = set()
    for name, lines in journals.items():
        for line in lines:
            assert line.endswith(b"}\n"), (name, line)
            assert line[:-1].isascii(), (name, line)
            assert all(32 <= byte < 127 for byte in line[:-1]), (name, line)
            event = json.loads(line)
            wrong |= {(name, event["kind"], problem) for problem in problems(event)}
            if results := event_schema.problem(event):
                wrong.add((name, results))
    assert wrong == set()


def test_every_attempt_has_one_decision_and_at_most_one_end(journals):
    wrong = {}
    for name, lines in journals.items():
        found = accounting_problems([json.loads(line) for line in lines], killed=name in KILLED | DROPPED)
        if found:
            wrong[name] = found
    assert wrong == {}


def test_every_journal_belongs_to_one_task(journals):
    """Each journal has the rules, the start and the end of its task."""
    for name, lines in journals.items():
        events = sorted((json.loads(line) for line in lines), key=lambda event: event["time"])
        runs = {event["task"]["id"] for event in events}
        assert len(runs) == 1, name
        assert [event["kind"] for event in events[:2]] == ["rules.loaded", "task.started"], name
        assert sum(event["kind"] == "task.ended" for event in events) == 1, name
        loaded = {event["revision"] for event in events if event["kind"] == "rules.loaded"}
        assert {event["revision"] for event in events if "revision" in event} == loaded, name
