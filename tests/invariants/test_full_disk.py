"""Invariants 2 and 6: attempts that cannot be recorded are blocked. The disk of the journal is full, then has room again."""

import os
import shutil

import pytest

from tests.support.ports import free_port

from .attempt_network import RULES, UNREACHABLE, dns_names
from .lab_runner import Journal, cpu_seconds, worker_of
from .small_disk import SmallDisk

SIZE = 192 * 1024
MOST_ROUNDS = 20  # rounds of attempts that fit into the last page of the disk


@pytest.fixture(scope="module")
def full_disk_run(runner):
    """Results of the task with room, without, and with room again; records of the origins, metrics and journal."""
    origin = runner.lab.origin
    origin.name(dns_names())
    disk, port = SmallDisk(runner, SIZE), free_port()
    seen = {}
    rules = runner.rules(RULES)
    options = ("--journal", disk.path, "--metrics", f"127.0.0.1:{port}")
    with runner.start_steps("full", rules, "cut_short", options=options) as steps:
        seen["with room"] = steps("begin")
        worker = worker_of(steps.process)
        disk.fill()
        for _ in range(MOST_ROUNDS):
            if not _passed(steps("attempts", "burning")):
                break
        origin.forget()
        before = runner.scrape(port)
        seen["full"] = steps("attempts", "stolen")
        seen["counted"] = _difference(before, runner.scrape(port))
        cpu = cpu_seconds(worker)
        steps("rest")
        seen["cpu"] = cpu_seconds(worker) - cpu
        seen["arrived"] = origin.requests(), origin.queries(), origin.packets_to(*UNREACHABLE)
        seen["connections"] = origin.connections()
        disk.empty()
        steps("keep")
        seen["room again"] = steps("attempts", "again")
        seen["last"] = runner.scrape(port)
    seen["torn"] = [path for path in disk.host_path.glob("*/*.jsonl") if not path.read_bytes().endswith(b"\n")]
    shutil.copytree(disk.host_path, runner.journal("full"))
    seen["journal"] = Journal(runner.journal("full"))
    disk.fill()
    words = runner.command_line("full", rules, "touch", "ran", options=options)
    refused = runner.lab.run(words, user=runner.user, cwd=runner.workspace("full"))
    seen["start"] = refused.returncode, refused.stderr, os.path.exists(runner.workspace("full") / "ran")
    return seen


def _passed(results):
    return [way for way, one in results.items() if one in {200, "220", 0, "no_rule"}]


def _difference(before, after):
    """Return the decisions counted between two scrapes."""
    was = before.of("exeat_decisions_total", "kind", "outcome", "reason")
    now = after.of("exeat_decisions_total", "kind", "outcome", "reason")
    return {key: now[key] - was.get(key, 0) for key in now if now[key] != was.get(key, 0)}


WITH_ROOM = {
    "inspected": 200, "clear": 200, "spliced": 200, "raw": "220", "kept inspected": 200, "kept clear": 200,
    "lookup": 0, "lookup by tcp": 0, "udp": "ECONNREFUSED", "denied": "no_rule",
}  # fmt: skip


def test_attempts_pass_while_the_disk_has_room(full_disk_run):
    assert full_disk_run["with room"] == WITH_ROOM


def test_full_disk_blocks_every_attempt(full_disk_run):
    servfail = 2
    kept = {way: full_disk_run["full"].pop(way) for way in ("kept inspected", "kept clear")}
    assert full_disk_run["full"] == {
        "inspected": "ECONNRESET", "clear": "ECONNRESET", "spliced": "ECONNRESET", "raw": "ECONNRESET",
        "lookup": servfail, "lookup by tcp": servfail, "udp": "ECONNREFUSED", "denied": "ECONNRESET",
    }  # fmt: skip
    assert set(kept.values()) <= {"journal_failed", "eof", "ECONNRESET"}


def test_full_disk_lets_nothing_reach_an_origin(full_disk_run):
    requests, queries, packets = full_disk_run["arrived"]
    assert (requests, queries, packets, full_disk_run["connections"]) == ([], [], 0, [])


def test_unrecorded_decisions_are_counted_in_metrics(full_disk_run):
    """Six connections and datagrams (inspected, clear, spliced, raw, denied, UDP) and two lookups."""
    counted = full_disk_run["counted"]
    assert counted["connection.decided", "blocked", "journal_failed"] == 6
    assert counted["dns.decided", "blocked", "journal_failed"] == 2
    assert {reason for _, _, reason in counted} == {"journal_failed"}


def test_dropped_events_are_counted(full_disk_run):
    last = full_disk_run["last"]
    failed = last.of("exeat_decisions_total", "reason")["journal_failed",]
    assert last.of("exeat_events_dropped_total")[()] >= failed > 0
    assert last.of("exeat_gate_errors_total", "where")["journal",] == last.of("exeat_events_dropped_total")[()]


def test_worker_uses_no_cpu_while_the_disk_is_full(full_disk_run):
    """The worker does not retry failed writes in a loop: half an idle second takes almost no CPU."""
    assert full_disk_run["cpu"] < 0.1


def test_attempts_pass_again_once_there_is_room(full_disk_run):
    assert full_disk_run["room again"] == WITH_ROOM


def test_no_journal_line_is_torn(full_disk_run):
    assert full_disk_run["torn"] == []
    assert len(full_disk_run["journal"].of(kind="task.ended")) == 1


def test_task_does_not_start_with_a_full_disk(full_disk_run):
    status, error, ran = full_disk_run["start"]
    assert (status, ran) == (125, False)
    *_, results = error.splitlines()
    assert results.startswith("exeat: the journal `")
    assert results.endswith(
        "` cannot be written, so nothing may run: No space left on device; free space on that file system"
    )
