"""Invariants 2 and 6: what can't be told doesn't pass. The journal's disk is full, and later it is not."""

import os
import shutil

import pytest

from tests.support.ports import free_port

from .attempt_network import NEVER, RULES, names
from .lab_runner import Journal, cpu_seconds, worker_of
from .small_disk import Disk

SIZE = 192 * 1024
MOST_ROUNDS = 20  # rounds of attempts that the disk's last page has room for


@pytest.fixture(scope="module")
def full(place):
    """What the task saw with room, without, and with room again; what arrived in between; the metrics; the journal."""
    origin = place.lab.origin
    origin.name(names())
    disk, port = Disk(place, SIZE), free_port()
    seen = {}
    rules = place.rules(RULES)
    options = ("--journal", disk.path, "--metrics", f"127.0.0.1:{port}")
    with place.stepping("full", rules, "cut_short", options=options) as steps:
        seen["with room"] = steps("begin")
        worker = worker_of(steps.process)
        disk.fill()
        for _ in range(MOST_ROUNDS):
            if not _lets_out(steps("attempts", "burning")):
                break
        origin.forget()
        before = place.scrape(port)
        seen["full"] = steps("attempts", "stolen")
        seen["counted"] = _more(before, place.scrape(port))
        cpu = cpu_seconds(worker)
        steps("rest")
        seen["cpu"] = cpu_seconds(worker) - cpu
        seen["arrived"] = origin.requests(), origin.queries(), origin.packets_to(*NEVER)
        seen["connections"] = origin.connections()
        disk.empty()
        steps("keep")
        seen["room again"] = steps("attempts", "again")
        seen["last"] = place.scrape(port)
    seen["torn"] = [path for path in disk.seen.glob("*/*.jsonl") if not path.read_bytes().endswith(b"\n")]
    shutil.copytree(disk.seen, place.journal("full"))
    seen["journal"] = Journal(place.journal("full"))
    disk.fill()
    words = place.words("full", rules, "touch", "ran", options=options)
    refused = place.lab.run(words, user=place.user, cwd=place.workspace("full"))
    seen["start"] = refused.returncode, refused.stderr, os.path.exists(place.workspace("full") / "ran")
    return seen


def _lets_out(said):
    return [way for way, one in said.items() if one in {200, "220", 0, "no_rule"}]


def _more(before, after):
    """How much was counted between two scrapes."""
    was = before.of("exeat_decisions_total", "kind", "outcome", "reason")
    now = after.of("exeat_decisions_total", "kind", "outcome", "reason")
    return {key: now[key] - was.get(key, 0) for key in now if now[key] != was.get(key, 0)}


WITH_ROOM = {
    "inspected": 200, "clear": 200, "spliced": 200, "raw": "220", "kept inspected": 200, "kept clear": 200,
    "lookup": 0, "lookup by tcp": 0, "udp": "ECONNREFUSED", "denied": "no_rule",
}  # fmt: skip


def test_attempts_pass_while_the_disk_has_room(full):
    assert full["with room"] == WITH_ROOM


def test_full_disk_blocks_every_attempt(full):
    servfail = 2
    kept = {way: full["full"].pop(way) for way in ("kept inspected", "kept clear")}
    assert full["full"] == {
        "inspected": "ECONNRESET", "clear": "ECONNRESET", "spliced": "ECONNRESET", "raw": "ECONNRESET",
        "lookup": servfail, "lookup by tcp": servfail, "udp": "ECONNREFUSED", "denied": "ECONNRESET",
    }  # fmt: skip
    assert set(kept.values()) <= {"journal_failed", "eof", "ECONNRESET"}


def test_full_disk_lets_nothing_reach_an_origin(full):
    requests, queries, packets = full["arrived"]
    assert (requests, queries, packets, full["connections"]) == ([], [], 0, [])


def test_unrecorded_decisions_are_counted_in_metrics(full):
    """Inspected, clear, spliced, raw and denied connections and a datagram; two lookups."""
    counted = full["counted"]
    assert counted["connection.decided", "blocked", "journal_failed"] == 6
    assert counted["dns.decided", "blocked", "journal_failed"] == 2
    assert {reason for _, _, reason in counted} == {"journal_failed"}


def test_dropped_events_are_counted(full):
    last = full["last"]
    failed = last.of("exeat_decisions_total", "reason")["journal_failed",]
    assert last.of("exeat_events_dropped_total")[()] >= failed > 0
    assert last.of("exeat_gate_errors_total", "where")["journal",] == last.of("exeat_events_dropped_total")[()]


def test_worker_uses_no_cpu_while_the_disk_is_full(full):
    """Nobody tries over and over to tell what can't be told: half a second of nothing to do costs next to nothing."""
    assert full["cpu"] < 0.1


def test_attempts_pass_again_once_there_is_room(full):
    assert full["room again"] == WITH_ROOM


def test_no_journal_line_is_torn(full):
    assert full["torn"] == []
    assert len(full["journal"].of(kind="task.ended")) == 1


def test_task_does_not_start_with_a_full_disk(full):
    status, error, ran = full["start"]
    assert (status, ran) == (125, False)
    *_, said = error.splitlines()
    assert said.startswith("exeat: the journal `")
    assert said.endswith(
        "` cannot be written, so nothing may run: No space left on device; free space on that file system"
    )
