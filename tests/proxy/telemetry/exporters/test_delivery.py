"""Delivery: every line at least once and in order, whatever the receiver answers and wherever delivery is stopped."""

import json
import resource

import pytest

from proxy.telemetry.exporters import delivery
from proxy.telemetry.exporters.delivery import LONGEST_WAIT, METRICS, MOST_BYTES, Delivery, DeliveryMetrics
from proxy.telemetry.exporters.exporter import FORMATS, FileExporter, RefusedError, UnavailableError
from proxy.telemetry.journal.bookmark import Bookmark, Reader
from tests.proxy.telemetry.exporters.export_lab import ids, in_order, write


class Stopped(Exception):  # noqa: N818
    pass


class Scripted:
    """Takes what `judge` lets it take: that returns an error to raise, or None."""

    name = "scripted"

    def __init__(self, judge=lambda _items: None):
        self.judge, self.received, self.sizes = judge, [], []

    def send(self, items):
        error = self.judge(items)
        if error is not None:
            raise error
        self.received += [item.record["id"] for item in items if item.line]
        self.sizes.append(sum(len(item.line) for item in items))


@pytest.fixture
def delivery_lab(tmp_path, monkeypatch):
    """Start a new delivery, as a new process would; it records its waits and messages. There are two batches."""
    monkeypatch.setattr(delivery, "MOST_LINES", 100)
    write(tmp_path / "journal", wanted := ids(110))

    def make(sink, wait=None):
        waits, said = [], []

        def waited(seconds):
            waits.append(seconds)
            if wait is not None:
                wait(seconds)

        numbers = DeliveryMetrics(sink.name)
        reader = Reader(tmp_path / "journal", Bookmark(tmp_path / "position.json"))
        lab = Delivery(reader, sink, numbers, said.append, waited)
        lab.waits, lab.said, lab.numbers = waits, said, numbers
        return lab

    make.wanted, make.journal = wanted, tmp_path / "journal"
    return make


def test_existing_and_new_lines_are_delivered_once(delivery_lab):
    sink = Scripted()
    delivery_lab(sink).once()
    assert sink.received[1:] == delivery_lab.wanted  # the first line is the journal's own: its writer
    more = ids(5)
    write(delivery_lab.journal, more)
    before = len(sink.received)
    delivery_lab(sink).once()
    assert sink.received[before + 1 :] == more


def test_delivery_stopped_at_any_point_resumes_there(delivery_lab):
    """At every third send the process dies, before or after the receiver has it."""
    received, count, ended = [], 0, False
    while not ended:

        class Dying(Scripted):
            def send(self, items):
                nonlocal count
                count += 1
                if count % 3 == 1:
                    raise Stopped
                super().send(items)
                received.extend(item.record["id"] for item in items)
                if count % 3 == 2:
                    raise Stopped

        try:
            delivery_lab(Dying()).once()
            ended = True
        except Stopped:
            assert count < 100
    assert in_order(received, delivery_lab.wanted)
    assert len(received) > len(delivery_lab.wanted) + 1


def test_unavailable_receiver_is_retried_with_growing_delays(delivery_lab):
    tries = iter([UnavailableError("down")] * 12)
    sink = Scripted(lambda _items: next(tries, None))
    lab = delivery_lab(sink, wait=_stop_when_idle)
    with pytest.raises(Stopped):
        lab.follow()
    assert sink.received[1:] == delivery_lab.wanted
    waits = lab.waits[:12]
    assert all(
        half <= wait <= 2 * half
        for wait, half in zip(waits, (0.5, 1, 2, 4, 8, 16, 30, 30, 30, 30, 30, 30), strict=True)
    )
    assert max(waits) <= LONGEST_WAIT
    assert lab.numbers.failures == 12
    assert lab.said[-1] == "delivering again"


def _stop_when_idle(seconds):
    if seconds == 0.5:
        raise Stopped


def test_retry_after_is_honoured_up_to_a_limit(delivery_lab):
    tries = iter([UnavailableError("busy", 17.0), UnavailableError("busy", 1e9), None])
    lab = delivery_lab(Scripted(lambda _items: next(tries, None)), wait=_stop_when_idle)
    with pytest.raises(Stopped):
        lab.follow()
    assert lab.waits[:2] == [17.0, 300.0]


def test_refused_event_is_sent_shortened_and_stops_no_other(delivery_lab):
    poison = ids(2)
    write(delivery_lab.journal, poison[:1], "<script>")
    write(delivery_lab.journal, after := ids(3))
    write(delivery_lab.journal, poison[1:], "<script>")
    full = []

    def judge(items):
        if any("<script>" in str(item.record.get("destination")) for item in items):
            return RefusedError("no markup here")
        full.extend(item.record for item in items if not item.line)
        return None

    sink = Scripted(judge)
    lab = delivery_lab(sink)
    lab.once()
    assert in_order(sink.received, [*delivery_lab.wanted, *after])
    assert [record["id"] for record in full if record["kind"] == "connection.decided"] == poison
    assert all(record["verdict"] == "flag" and "in the journal" in record["detail"] for record in full)
    assert lab.numbers.reduced == len(full)


def test_shortened_event_keeps_its_destination(delivery_lab):
    """A receiver that refuses long events gets a short version."""
    (long,) = ids(1)
    write(delivery_lab.journal, [long], "y" * 1000)
    short = []

    def judge(items):
        short.extend(item.record for item in items if not item.line)
        return RefusedError("too long") if any(len(str(item.record)) > 8192 for item in items) else None

    delivery_lab(Scripted(judge)).once()
    assert [record["id"] for record in short] == [long]
    cut = "y" * 61 + "..."
    assert short[0]["destination"] == {"name": "y" * 253 + "...", "address": cut, "port": 443, "via": cut}
    assert short[0]["rules"] == ["y" * 125 + "...", "web:pages"]
    assert "in the journal, under this id: yyy" in short[0]["detail"]


def test_receiver_that_refused_everything_gets_all_later(delivery_lab):
    sink = Scripted(lambda _items: RefusedError("misconfigured"))
    for _ in range(2):
        with pytest.raises(UnavailableError, match="refuses everything: misconfigured"):
            delivery_lab(sink).once()
    assert sink.received == []
    sink.judge = lambda _items: None
    delivery_lab(sink).once()
    assert sink.received[1:] == delivery_lab.wanted


WRONG = {
    "no JSON": b"nonsense", "another JSON": b"[1]", "no kind": b'{"time":"2026-11-21T01:15:37.603903692Z","id":"x"}',
    "no time": b'{"id":"x","kind":"tampering.detected"}', "a time of another kind": b'{"id":"x","kind":"tampering.detected","time":7}',
    "an id of another kind": b'{"time":"2026-11-21T01:15:37.603903692Z","id":7,"kind":"tampering.detected"}',
    "too deep": b'{"a":' * 100_000, "not ASCII": b"\xff\xfe",
}  # fmt: skip


def test_line_that_is_no_event_is_logged_counted_and_skipped(delivery_lab):
    (segment,) = delivery_lab.journal.glob("*/*.jsonl")
    lines = segment.read_bytes().splitlines(keepends=True)
    segment.write_bytes(b"".join([*lines[:7], *(wrong + b"\n" for wrong in WRONG.values()), *lines[7:]]))
    sink = Scripted()
    lab = delivery_lab(sink)
    lab.once()
    assert sink.received[1:] == delivery_lab.wanted
    assert lab.numbers.dropped == len(lab.said) == len(WRONG)
    assert all(segment.stem in said and "not an event" in said for said in lab.said)


def test_torn_last_line_is_sent_once_complete(delivery_lab):
    (segment,) = delivery_lab.journal.glob("*/*.jsonl")
    complete = segment.read_bytes()
    segment.write_bytes(complete[:-20])
    sink = Scripted()
    delivery_lab(sink).once()
    assert sink.received[1:] == delivery_lab.wanted[:-1]
    segment.write_bytes(complete)
    delivery_lab(sink).once()
    assert sink.received[1:] == delivery_lab.wanted


def test_batches_are_bounded_except_for_a_single_event(delivery_lab):
    write(delivery_lab.journal, wide := ids(60), "\U0001f4a9" * 1000)
    sink = Scripted()
    delivery_lab(sink).once()
    assert in_order(sink.received, [*delivery_lab.wanted, *wide])
    assert max(sink.sizes) <= MOST_BYTES
    assert len(sink.sizes) > 3


def test_every_format_has_the_id_in_one_printable_line(delivery_lab):
    class Formatted(Scripted):
        def send(self, items):
            for item in items:
                for name, shape in FORMATS.items():
                    line = shape(item)
                    assert line.isprintable(), name
                    assert item.record["id"] in line, name
                assert f"{FORMATS['event'](item)}\n".encode() == item.line  # its hash can be checked there

    delivery_lab(Formatted()).once()


def test_lag_is_the_age_of_the_oldest_undelivered_event(delivery_lab):
    lab = delivery_lab(Scripted(lambda _items: UnavailableError("down")))
    with pytest.raises(UnavailableError):
        lab.once()
    shown = lab.numbers.render().decode()
    assert 'exeat_journal_lag_seconds{sink="scripted"} 0.000' not in shown
    assert 'exeat_export_failures_total{sink="scripted"} 1\n' in shown
    lab = delivery_lab(Scripted())
    lab.once()
    shown = lab.numbers.render().decode()
    assert 'exeat_journal_lag_seconds{sink="scripted"} 0.000\n' in shown
    assert 'exeat_exported_total{sink="scripted"} 111\n' in shown
    assert [line.split()[2] for line in shown.splitlines() if line.startswith("# TYPE")] == [
        name for name, *_ in METRICS
    ]


def test_file_has_complete_lines_after_faults_and_may_be_renamed(delivery_lab, tmp_path):
    out = tmp_path / "out.jsonl"
    sink = FileExporter(out, FORMATS["event"])
    delivery_lab(sink).once()
    assert out.stat().st_mode & 0o777 == 0o600
    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:50]) + lines[50][:30])  # killed while it wrote
    out.rename(tmp_path / "out.1")
    write(delivery_lab.journal, more := ids(2))
    delivery_lab(sink).once()
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()][1:] == more
    (tmp_path / "out.1").rename(out)
    write(delivery_lab.journal, more := ids(2))
    delivery_lab(sink).once()
    assert out.read_bytes().startswith(b"".join(lines[:50]) + b"{")
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()][-2:] == more


def test_file_exporter_refuses_what_is_no_regular_file(delivery_lab, tmp_path):
    (tmp_path / "real").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "directory").mkdir()
    for name in ("link", "directory", "missing/file"):
        with pytest.raises(UnavailableError):
            delivery_lab(FileExporter(tmp_path / name, FORMATS["ecs"])).once()
    assert (tmp_path / "real").read_text() == "kept"


def test_full_disk_has_complete_lines_and_gets_all_later(delivery_lab, tmp_path):
    out = tmp_path / "out.jsonl"
    lab = delivery_lab(FileExporter(out, FORMATS["event"]))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))  # setrlimit(2): EFBIG beyond it, as ENOSPC elsewhere
    try:
        with pytest.raises(UnavailableError):
            lab.once()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert out.read_bytes()[-1:] in {b"", b"\n"}
    lab.once()
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()][1:] == delivery_lab.wanted
