"""Event ids (UUIDv7), and the former names of event kinds in journals of earlier versions."""

import json
import os
import time
import uuid

import pytest

from enforcer.cli import main
from proxy.sandbox.recorder import _ids
from proxy.telemetry.encoding import decode, encode
from proxy.telemetry.events import FORMER_KINDS, IdMaker, Kind
from proxy.telemetry.formats.decoded_event import read
from proxy.telemetry.formats.ecs import ecs
from proxy.telemetry.views.report import gather
from tests.support import event_schema
from tests.support.telemetry_lab import full_event


def test_id_is_a_uuid_version_7_with_its_time():
    now = time.time_ns()
    made = uuid.UUID(IdMaker().make(now))
    assert made.variant == uuid.RFC_4122
    assert made.version == 7
    assert made.int >> 80 == now // 1_000_000


def test_ids_grow_within_an_instant_and_after_a_clock_change():
    ids = IdMaker()
    made = [ids.make(1_000_000_000_000) for _ in range(5000)] + [ids.make(1_000), ids.make(0), ids.make()]
    assert made == sorted(made)
    assert len(set(made)) == len(made)


def test_ids_of_two_processes_differ_at_the_same_time():
    first, second = IdMaker(), IdMaker()
    assert not {first.make(5) for _ in range(1000)} & {second.make(5) for _ in range(1000)}


def test_every_id_has_the_variant_bits():
    ids = IdMaker()
    assert {ids.make()[19] for _ in range(500)} == set("89ab")


def test_forked_processes_use_separate_random_bytes():
    reader, writer = os.pipe()
    before = _ids.make()
    child = os.fork()
    if not child:
        os.write(writer, "".join(_ids.make()[-16:] for _ in range(32)).encode())
        os._exit(0)
    os.close(writer)
    here = {_ids.make()[-16:] for _ in range(32)}
    with os.fdopen(reader) as said:
        there = said.read()
    os.waitpid(child, 0)
    assert before
    assert len(there) == 32 * 16
    assert not here & {there[at : at + 16] for at in range(0, len(there), 16)}


RENAMED = [
    ("leak.found", "secret.detected"),
    ("call.refused", "syscall.denied"),
    ("task.unusual", "anomaly.detected"),
    ("tamper", "tampering.detected"),
]


def former_line(former):
    """A line as an earlier version wrote it."""
    now = FORMER_KINDS[former].value
    return encode(full_event(FORMER_KINDS[former])).replace(f'"kind":"{now}"'.encode(), f'"kind":"{former}"'.encode())


@pytest.fixture
def journal(tmp_path):
    day = tmp_path / "2026-11-18"
    day.mkdir()
    lines = [line for former, _ in RENAMED for line in (former_line(former), encode(full_event(FORMER_KINDS[former])))]
    (day / "0001.jsonl").write_bytes(b"".join([*lines, encode(full_event(Kind.TASK_STARTED))]))
    return tmp_path


@pytest.mark.parametrize(("former", "now"), RENAMED)
def test_line_of_an_earlier_version_is_read_as_the_current_kind(former, now):
    line = former_line(former)
    assert json.loads(line)["kind"] == former
    assert decode(line) == full_event(Kind(now))
    assert json.loads(encode(decode(line)))["kind"] == now
    event_schema.hold([json.loads(line)])


@pytest.mark.parametrize(("former", "now"), RENAMED)
def test_line_of_an_earlier_version_is_exported_as_the_current_kind(former, now):
    record = read(former_line(former))
    assert record["kind"] == now
    assert ecs(record) == ecs(read(encode(full_event(Kind(now)))))


def test_report_counts_events_of_earlier_versions_among_the_warnings():
    events = [decode(former_line(former)) for former, _ in RENAMED]
    assert [event.kind for event in gather(events).warnings] == [now for _, now in RENAMED]


@pytest.mark.parametrize(("former", "now"), RENAMED)
def test_log_kind_finds_both_names_and_warns_once_of_the_former(capfd, journal, former, now):
    command = ["log", "--journal", str(journal), "--format", "jsonl", "--kind"]
    assert main([*command, now]) == 0
    out, err = capfd.readouterr()
    assert ([json.loads(line)["kind"] for line in out.splitlines()], err) == ([former, now], "")
    assert main([*command, former, "--kind", former]) == 0
    said = f"exeat: `--kind {former}` is now `--kind {now}`; the next release no longer takes `--kind {former}`\n"
    assert capfd.readouterr() == (out, said)


def test_verdict_blocked_finds_tampering_of_earlier_versions(capfd, journal):
    assert main(["log", "--journal", str(journal), "--format", "jsonl", "--verdict", "blocked"]) == 0
    kinds = {json.loads(line)["kind"] for line in capfd.readouterr().out.splitlines()}
    assert {"tamper", "tampering.detected"} <= kinds
