"""Baselines of task names, and anomalies: recorded once, compared by name only, and bounded."""

import json
import os
import time
from pathlib import Path

import msgspec
import pytest

from enforcer.journal.keeper import Keeper
from proxy.approvals.recording import ApprovalRecorder
from proxy.telemetry.baseline.anomalies import (
    FILE,
    TOLD,
    AnomalyCounts,
    EarlierRuns,
    count_earlier_runs,
    find_anomalies,
    read_numbers,
)
from proxy.telemetry.baseline.baselines import (
    ENOUGH,
    MANY_TIMES,
    MOST_NAMES,
    MOST_PLACES,
    MOST_RUNS,
    MOST_TOLD,
    MUCH,
    Baselines,
    no_baselines,
)
from proxy.telemetry.encoding import encode
from proxy.telemetry.events import Anomaly, Destination, Event, Http, IdMaker, Kind, Origin, Transferred
from proxy.telemetry.journal.keys import load_public_keys
from proxy.telemetry.journal.query import read_events
from proxy.telemetry.journal.verify import verify
from proxy.telemetry.journal.writer import Journal
from proxy.telemetry.prometheus.metrics import Metrics
from rules.verdicts import Outcome, Verdict
from tests.support.telemetry_lab import FLAGGED, HOSTILE, connect, recorder_lab
from tests.support.waiting import wait_until

HOST = Origin(host="host.example")
SECOND = 1_000_000_000
USUAL, NEW = "usual.example:443", "new.example:443"


def ran(baselines, task, name="migrate", *, places=(USUAL,), up=100, at=1):
    """One run, from its start to its end; what of it was unusual."""
    found = [baselines.record_destination(task, name, place, at) for place in places]
    found.append(baselines.record_bytes(task, name, up, at))
    baselines.ended(task, name, at)
    baselines.settle(at + 1)
    return [each for each in found if each is not None]


def experienced(runs=ENOUGH, **more):
    baselines = no_baselines()
    for number in range(runs):
        assert ran(baselines, f"t-{number}", **more) == []
    return baselines


def test_new_destination_is_an_anomaly_once_for_an_established_name():
    assert ran(experienced(ENOUGH - 1), "next", places=(USUAL, NEW)) == []
    baselines = experienced()
    assert baselines.record_destination("next", "migrate", NEW, 1) == Anomaly("destination", 1, 0, ENOUGH)
    assert baselines.record_destination("next", "migrate", NEW, 1) is None
    baselines.ended("next", "migrate", 1)
    baselines.settle(2)
    assert ran(baselines, "again", places=(USUAL, NEW)) == []


def test_many_times_the_usual_bytes_are_an_anomaly():
    baselines = experienced(up=MUCH)
    assert baselines.record_bytes("next", "migrate", MANY_TIMES * MUCH, 1) is None
    assert baselines.record_bytes("next", "migrate", 1, 1) == Anomaly("bytes_up", MANY_TIMES * MUCH + 1, MUCH, ENOUGH)
    assert baselines.record_bytes("next", "migrate", MUCH, 1) is None
    assert experienced(up=1).record_bytes("next", "migrate", MUCH, 1) is None


def test_runs_change_only_the_baseline_of_their_name():
    baselines = experienced()
    for number in range(20):
        ran(baselines, f"other-{number}", "other", places=(NEW,), up=100 * MUCH)
    assert [each.what for each in ran(baselines, "next", places=(NEW,), up=MUCH + 1)] == ["destination", "bytes_up"]


def test_name_with_ever_new_destinations_reports_no_anomaly():
    baselines = experienced()
    reported = [len(ran(baselines, f"n-{number}", places=(f"{number}.example:443",))) for number in range(10)]
    assert reported[:5] == [1] * 5
    assert reported[5:] == [0] * 5


def test_names_destinations_runs_and_findings_are_bounded():
    baselines = experienced()
    for number in range(MOST_NAMES + 50):
        ran(baselines, f"n-{number}", f"name-{number}", at=number + 2)
    assert len(baselines.names) == MOST_NAMES
    assert "migrate" in baselines.names  # it is known better than those that were made up
    found = [
        baselines.record_destination("wild", "migrate", f"{number}.example:443", 1)
        for number in range(10 * MOST_PLACES)
    ]
    assert sum(each is not None for each in found) == MOST_TOLD
    assert len(baselines.runs["wild"].places) == MOST_PLACES
    baselines.ended("wild", "migrate", 1)
    baselines.settle(2)
    assert len(baselines.names["migrate"].places) == MOST_PLACES
    for number in range(MOST_RUNS + 50):
        baselines.record_destination(f"endless-{number}", "migrate", USUAL, number)
    assert len(baselines.runs) == MOST_RUNS
    runs = baselines.names["migrate"].runs
    for number in range(MOST_RUNS):
        baselines.ended(f"short-{number}", "migrate", number)
    assert len(baselines.runs) == MOST_RUNS
    assert baselines.names["migrate"].runs == runs + MOST_RUNS - 1  # learned from, and not lost
    assert baselines.record_destination("long", "migrate", "x" * 5000, 1) is None


def test_saved_baselines_are_read_back_and_malformed_ones_refused():
    baselines = experienced()
    baselines.record_destination("open", "migrate", NEW, 7)
    written = msgspec.to_builtins(baselines)
    assert msgspec.json.decode(msgspec.json.encode(baselines), type=Baselines) == baselines
    wrong = [None, [], {}, {"version": 2}, {**written, "names": []}, {**written, "names": {"a": [1]}},
             {**written, "names": {"a": [1, 2, 3, ["x"], {}]}}, {**written, "names": {"a": [-1, 2, 3, [], {}]}},
             {**written, "runs": {"a": ["n", 1, None, 0, 0, False, False, 7]}}]  # fmt: skip
    for value in wrong:
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(value, Baselines)


# --- in a journal ---


class AnomalyLab:
    """Journal and state of a keeper, with runs of tasks at chosen times."""

    def __init__(self, base: Path) -> None:
        self.journal, self.state = base / "journal", base / "state" / "journal"
        self.state.mkdir(parents=True, mode=0o700)
        self._ids = IdMaker()

    def run(self, task, *places, name="migrate", up=100, ago=200, ends=True):
        now = time.time_ns() - ago * SECOND
        origin = Origin.of(task, name, {}, "s", "host.example")._asdict()
        if ends:  # recorded by the supervisor in its own segment, which may be read first
            writer = Journal(self.journal)
            writer.append(encode(Event(now, self._ids.make(now), Kind.TASK_ENDED, **origin, duration=1.0)), now)
            writer.close()
        writer = Journal(self.journal)
        for place in places:
            at = Destination(place, "192.0.2.1", 443)
            cause = self._ids.make(now)
            for event in (
                Event(now, cause, Kind.CONNECTION_DECIDED, Verdict.ALLOW, Outcome.PASSED, destination=at, **origin),
                Event(now, self._ids.make(now), Kind.CONNECTION_DECIDED, Verdict.DENY, Outcome.BLOCKED, **origin,
                      destination=Destination(f"not.{place}", None, 443)),
                Event(now, self._ids.make(now), Kind.CONNECTION_CLOSED, **origin, outcome=Outcome.PASSED, cause=cause,
                      destination=at, bytes=Transferred(up, 1), duration=1.0),
            ):  # fmt: skip
                writer.append(encode(event), now)
        writer.close()

    def experience(self):
        for number in range(ENOUGH):
            self.run(f"t-{number}", "usual.example")
        assert not find_anomalies(self.journal, self.state, HOST)

    def recorded(self, kind=Kind.ANOMALY_DETECTED):
        return [entry.event for entry in read_events(self.journal) if entry.event.kind is kind]


@pytest.fixture
def lab(tmp_path):
    return AnomalyLab(tmp_path)


def test_anomaly_is_recorded_once_with_its_cause(lab):
    lab.experience()
    lab.run("next", "usual.example", "new.example", ago=5, up=MUCH)
    assert find_anomalies(lab.journal, lab.state, HOST)
    place, sent = lab.recorded()
    assert (place.task.id, place.unusual) == ("next", Anomaly("destination", 1, 0, ENOUGH))
    assert place.destination == Destination("new.example", "192.0.2.1", 443)
    assert place.cause in {entry.event.id for entry in read_events(lab.journal)}
    assert sent.unusual == Anomaly("bytes_up", 2 * MUCH, 100, ENOUGH)
    assert not find_anomalies(lab.journal, lab.state, HOST)
    assert len(lab.recorded()) == 2
    assert read_numbers(lab.state / TOLD) == AnomalyCounts({"next": {"destination": 1, "bytes_up": 1}})


def test_old_events_are_learned_and_not_reported(lab):
    lab.experience()
    lab.run("next", "new.example", ago=3600)
    assert not find_anomalies(lab.journal, lab.state, HOST)
    lab.run("later", "new.example", ago=5)
    assert not find_anomalies(lab.journal, lab.state, HOST)
    assert count_earlier_runs(lab.state, "migrate", Destination("new.example", None, 443)) == EarlierRuns(ENOUGH + 1, 1)
    assert count_earlier_runs(lab.state, "migrate", Destination("other.example", None, 443)) == EarlierRuns(
        ENOUGH + 1, 0
    )
    assert count_earlier_runs(lab.state, "unknown", Destination("new.example", None, 443)) is None


@pytest.mark.parametrize("spoiled", ["", "{", "[]", "[" * 100_000, '{"habits":{"version":1}}', "\xff"])
def test_unreadable_baselines_are_reported_and_started_again(lab, spoiled):
    lab.experience()
    good = (lab.state / FILE).read_text()
    (lab.state / FILE).write_text(spoiled, encoding="latin-1")
    assert count_earlier_runs(lab.state, "migrate", Destination("a.example", None, 443)) is None
    assert find_anomalies(lab.journal, lab.state, HOST)
    (error,) = lab.recorded(Kind.GATE_ERROR)
    assert "learned anew" in error.fault.detail
    assert json.loads((lab.state / FILE).read_text())["habits"] == json.loads(good)["habits"]


def test_second_scan_learns_no_event_twice(lab):
    lab.experience()
    for _ in range(3):
        find_anomalies(lab.journal, lab.state, HOST)
    assert json.loads((lab.state / FILE).read_text())["habits"]["names"]["migrate"][0] == ENOUGH


def test_flags_are_counted_until_they_are_reviewed(lab, tmp_path):
    here = recorder_lab(lab.journal)
    first = connect(here.recorder, FLAGGED)
    request = here.recorder.decided(
        Kind.REQUEST_DECIDED, FLAGGED, name="a.example", address=None, port=443, protocol=None, http=Http("GET"),
        cause=connect(here.recorder, FLAGGED),
    )  # fmt: skip
    connect(here.recorder, FLAGGED._replace(verdict=Verdict.DENY, outcome=Outcome.BLOCKED))
    here.recorder.decided(
        Kind.REQUEST_DECIDED, FLAGGED._replace(verdict=Verdict.ALLOW), name="a.example", address=None, port=443,
        protocol=None, http=Http("POST"), cause=connect(here.recorder, FLAGGED),
    )  # fmt: skip
    find_anomalies(lab.journal, lab.state, HOST)
    numbers = read_numbers(lab.state / TOLD)
    assert (numbers.flags, abs(time.time() - numbers.oldest) < 60) == (2, True)
    metrics = Metrics()
    metrics.flags = numbers.flags, numbers.oldest
    assert b"exeat_flags_unreviewed 2.0" in metrics.render()
    people = ApprovalRecorder(HOST, Journal(lab.journal))
    for event in (first, request, first):
        people.looked_at(event, "ada")
    find_anomalies(lab.journal, lab.state, HOST)
    left = read_numbers(lab.state / TOLD)
    assert (left.flags, left.oldest) == (0, 0)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_of_tasks_and_destinations_stay_distinct(lab, name):
    lab.experience()
    lab.run("next", HOSTILE[name], name=HOSTILE[name], ago=5)
    find_anomalies(lab.journal, lab.state, HOST)
    assert lab.recorded() == []
    assert lab.recorded(Kind.GATE_ERROR) == []
    lab.run("last", HOSTILE[name], ago=5)
    find_anomalies(lab.journal, lab.state, HOST)
    assert len(lab.recorded()) <= 1


def test_keeper_starts_the_scan_and_signs_its_events(lab):
    lab.experience()
    lab.run("next", "new.example", ago=5)
    keeper = Keeper(lab.journal, lab.state, pytest.fail)
    (lab.state / "looked").touch()
    os.utime(lab.state / "looked", (1, 1))
    keeper.turn()
    wait_until((lab.state / TOLD).exists, "the file of counts")
    wait_until(lambda: len(lab.recorded()) == 1, "the event of the anomaly")
    wait_until(lambda: verify(lab.journal, load_public_keys(lab.state.parent / "keys")).intact, "the signature")
    keeper.close()
