"""Invariants 2, 6 and 11: silent and half-open connections use little CPU, and each is recorded."""

import resource
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from .attempt_network import RULES, dns_names
from .lab_runner import Journal, cpu_seconds, descriptors, summary, worker_of
from .task.silent import CROWD

HALF = 40
SILENT = 5000  # connections that send nothing
FEW = 1088  # descriptor limit of the ordinary user; a task may have fewer (`limits.resource_limits`)
MOST, RESERVED, EACH = 4096, 64, 2  # connection cap of the gate, reserved descriptors, and descriptors per connection
# `exeat` with a shorter timeout for first bytes, long enough for the measurements.
IMPATIENT = """
import sys
from proxy.gate import connection
connection.FIRST_BYTES_TIMEOUT = 6.0
from enforcer.__main__ import main
sys.exit(main())
"""


@dataclass
class SilentRun:
    """Measurements of a worker, results of the task, and the journal."""

    worked: list = field(default_factory=list)
    busy: dict = field(default_factory=dict)  # share of one CPU
    open: dict = field(default_factory=dict)  # descriptors
    results: dict = field(default_factory=dict)
    cap: int = 0
    journal: Journal = None
    connections: list = field(default_factory=list)


def _cap(worker):
    limits = Path(f"/proc/{worker}/limits").read_text().splitlines()
    (soft,) = [int(line.split()[3]) for line in limits if line.startswith("Max open files")]
    return min(MOST, (soft - RESERVED) // EACH)


def _wait_for_descriptors(worker, number):
    """Wait until a worker has at most `number` descriptors open."""
    while descriptors(worker) > number:
        time.sleep(0.02)


@pytest.fixture(scope="module")
def silent_run(runner):
    seen = SilentRun()
    runner.lab.origin.name(dns_names())
    runner.lab.origin.forget()

    def work(name):
        began, before = time.monotonic(), cpu_seconds(worker)
        seen.worked.append(steps("work"))
        seen.busy[name] = (cpu_seconds(worker) - before) / (time.monotonic() - began)

    # As root the gate has its full cap of connections; as a user the descriptor limit allows fewer.
    fewer = None if runner.user is None else lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (FEW,) * 2)
    exeat = ("python", "-P", "-c", IMPATIENT)
    with runner.start_steps("silence", runner.rules(RULES), "silent", program=exeat, preexec_fn=fewer) as steps:
        seen.worked.append(steps("keep"))
        worker = worker_of(steps.process)
        seen.cap = _cap(worker)
        quiet = seen.open["at first"] = descriptors(worker)
        seen.results["half"] = steps("half", HALF)
        work("half a hello")
        seen.open["half a hello"] = descriptors(worker)
        for which in range(4):
            steps("leave", which)
        work("half a hello and gone")
        seen.results["stay"] = steps("stay")
        _wait_for_descriptors(worker, quiet)
        before = cpu_seconds(worker)
        seen.results["flood"] = steps("flood", SILENT // CROWD)
        seen.open["flood"] = descriptors(worker)
        seen.results["look up"] = steps("look_up")
        work("flood")
        seen.results["go home"] = steps("go_home")
        _wait_for_descriptors(worker, quiet)
        seen.open["after the flood"] = descriptors(worker)
        seen.results["again"] = steps("again")
        seen.results["flood cpu"] = cpu_seconds(worker) - before
    seen.journal = Journal(runner.journal("silence"))
    seen.connections = [one["sni"] for one in runner.lab.origin.connections()]
    return seen


def test_silent_half_hellos_use_little_cpu(silent_run):
    """A busy loop would take a whole CPU."""
    assert silent_run.results["half"] == 2 * HALF
    assert silent_run.open["half a hello"] == silent_run.open["at first"] + 2 * HALF
    assert silent_run.busy["half a hello"] < 0.2


def test_abandoned_half_hellos_use_little_cpu(silent_run):
    assert silent_run.busy["half a hello and gone"] < 0.2


def test_thousands_of_idle_connections_use_little_cpu(silent_run):
    assert silent_run.busy["flood"] < 0.3


def test_other_connections_work_beside_silent_ones(silent_run):
    assert set(silent_run.worked) == {200}
    assert silent_run.results["look up"].startswith("198.18.")
    assert silent_run.results["again"] == [200, 200]


def test_silent_connection_is_reset_after_its_timeout(silent_run):
    assert silent_run.results["stay"] == ["ECONNRESET"]


@pytest.mark.parametrize("zone", ["allowed", "spliced"])
def test_each_half_hello_is_recorded_once(silent_run, zone):
    recorded = silent_run.journal.of(kind="connection.decided", destination__name=f"half.more.{zone}.example")
    assert Counter(map(summary, recorded)) == {("connection", "blocked", "protocol_mismatch"): HALF}


def test_connection_flood_stays_within_the_descriptor_quota(silent_run):
    """A flood takes at most the descriptors of one sandbox."""
    assert silent_run.results["flood"]["last"] == "ECONNRESET"
    assert silent_run.open["flood"] - silent_run.open["at first"] <= silent_run.cap
    assert silent_run.open["after the flood"] == silent_run.open["at first"]
    assert set(silent_run.results["go home"]) == {0}


def test_each_connection_of_a_flood_is_recorded_once(silent_run):
    recorded = silent_run.journal.of(kind="connection.decided", destination__name="flood.more.spliced.example")
    counted = Counter(map(summary, recorded))
    assert set(counted) == {("connection", "blocked", "protocol_mismatch"), ("connection", "blocked", "limit_exceeded")}
    assert sum(counted.values()) == silent_run.results["flood"]["opened"] == SILENT + CROWD + 1
    assert counted["connection", "blocked", "protocol_mismatch"] <= silent_run.cap
    assert silent_run.journal.of(kind="gate.error") == []


def test_silent_connections_reach_no_origin(silent_run):
    assert [sni for sni in silent_run.connections if sni and sni.startswith(("half.", "flood."))] == []
    assert silent_run.connections.count("again.more.spliced.example") == 1
