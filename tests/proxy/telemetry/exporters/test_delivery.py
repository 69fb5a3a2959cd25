"""Lines go to a sink at least once, in order, none left out; whatever the receiver says, and wherever we are stopped."""

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
        self.judge, self.took, self.sizes = judge, [], []

    def send(self, items):
        error = self.judge(items)
        if error is not None:
            raise error
        self.took += [item.record["id"] for item in items if item.line]
        self.sizes.append(sum(len(item.line) for item in items))


@pytest.fixture
def rig(tmp_path, monkeypatch):
    """Makes a delivery anew, as another process would; `waits` and `said` are what it did. There are two batches."""
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
        made = Delivery(reader, sink, numbers, said.append, waited)
        made.waits, made.said, made.numbers = waits, said, numbers
        return made

    make.wanted, make.journal = wanted, tmp_path / "journal"
    return make


def test_existing_and_new_lines_are_delivered_once(rig):
    sink = Scripted()
    rig(sink).once()
    assert sink.took[1:] == rig.wanted  # the first is the journal's own: who writes it
    more = ids(5)
    write(rig.journal, more)
    before = len(sink.took)
    rig(sink).once()
    assert sink.took[before + 1 :] == more


def test_delivery_stopped_at_any_point_resumes_there(rig):
    """At every third send the process dies, before or after the receiver has it."""
    took, count, ended = [], 0, False
    while not ended:

        class Dying(Scripted):
            def send(self, items):
                nonlocal count
                count += 1
                if count % 3 == 1:
                    raise Stopped
                super().send(items)
                took.extend(item.record["id"] for item in items)
                if count % 3 == 2:
                    raise Stopped

        try:
            rig(Dying()).once()
            ended = True
        except Stopped:
            assert count < 100
    assert in_order(took, rig.wanted)
    assert len(took) > len(rig.wanted) + 1


def test_unavailable_receiver_is_retried_with_growing_delays(rig):
    tries = iter([UnavailableError("down")] * 12)
    sink = Scripted(lambda _items: next(tries, None))
    made = rig(sink, wait=_stop_when_idle)
    with pytest.raises(Stopped):
        made.follow()
    assert sink.took[1:] == rig.wanted
    waits = made.waits[:12]
    assert all(
        half <= wait <= 2 * half
        for wait, half in zip(waits, (0.5, 1, 2, 4, 8, 16, 30, 30, 30, 30, 30, 30), strict=True)
    )
    assert max(waits) <= LONGEST_WAIT
    assert made.numbers.failures == 12
    assert made.said[-1] == "delivering again"


def _stop_when_idle(seconds):
    if seconds == 0.5:
        raise Stopped


def test_retry_after_is_honoured_up_to_a_limit(rig):
    tries = iter([UnavailableError("busy", 17.0), UnavailableError("busy", 1e9), None])
    made = rig(Scripted(lambda _items: next(tries, None)), wait=_stop_when_idle)
    with pytest.raises(Stopped):
        made.follow()
    assert made.waits[:2] == [17.0, 300.0]


def test_refused_event_is_sent_shortened_and_stops_no_other(rig):
    poison = ids(2)
    write(rig.journal, poison[:1], "<script>")
    write(rig.journal, after := ids(3))
    write(rig.journal, poison[1:], "<script>")
    full = []

    def judge(items):
        if any("<script>" in str(item.record.get("destination")) for item in items):
            return RefusedError("no markup here")
        full.extend(item.record for item in items if not item.line)
        return None

    sink = Scripted(judge)
    made = rig(sink)
    made.once()
    assert in_order(sink.took, [*rig.wanted, *after])
    assert [record["id"] for record in full if record["kind"] == "connection.decided"] == poison
    assert all(record["verdict"] == "flag" and "in the journal" in record["detail"] for record in full)
    assert made.numbers.reduced == len(full)


def test_shortened_event_keeps_its_destination(rig):
    """Who refuses what is long still hears of it."""
    (long,) = ids(1)
    write(rig.journal, [long], "y" * 1000)
    short = []

    def judge(items):
        short.extend(item.record for item in items if not item.line)
        return RefusedError("too long") if any(len(str(item.record)) > 8192 for item in items) else None

    rig(Scripted(judge)).once()
    assert [record["id"] for record in short] == [long]
    cut = "y" * 61 + "..."
    assert short[0]["destination"] == {"name": "y" * 253 + "...", "address": cut, "port": 443, "via": cut}
    assert short[0]["rules"] == ["y" * 125 + "...", "web:pages"]
    assert "in the journal, under this id: yyy" in short[0]["detail"]


def test_receiver_that_refused_everything_gets_all_later(rig):
    sink = Scripted(lambda _items: RefusedError("misconfigured"))
    for _ in range(2):
        with pytest.raises(UnavailableError, match="refuses everything: misconfigured"):
            rig(sink).once()
    assert sink.took == []
    sink.judge = lambda _items: None
    rig(sink).once()
    assert sink.took[1:] == rig.wanted


WRONG = {
    "no JSON": b"nonsense", "another JSON": b"[1]", "no kind": b'{"time":"2026-11-21T01:15:37.603903692Z","id":"x"}',
    "no time": b'{"id":"x","kind":"tampering.detected"}', "a time of another kind": b'{"id":"x","kind":"tampering.detected","time":7}',
    "an id of another kind": b'{"time":"2026-11-21T01:15:37.603903692Z","id":7,"kind":"tampering.detected"}',
    "too deep": b'{"a":' * 100_000, "not ASCII": b"\xff\xfe",
}  # fmt: skip


def test_line_that_is_no_event_is_logged_counted_and_skipped(rig):
    (segment,) = rig.journal.glob("*/*.jsonl")
    lines = segment.read_bytes().splitlines(keepends=True)
    segment.write_bytes(b"".join([*lines[:7], *(wrong + b"\n" for wrong in WRONG.values()), *lines[7:]]))
    sink = Scripted()
    made = rig(sink)
    made.once()
    assert sink.took[1:] == rig.wanted
    assert made.numbers.dropped == len(made.said) == len(WRONG)
    assert all(segment.stem in said and "not an event" in said for said in made.said)


def test_torn_last_line_is_sent_once_complete(rig):
    (segment,) = rig.journal.glob("*/*.jsonl")
    whole = segment.read_bytes()
    segment.write_bytes(whole[:-20])
    sink = Scripted()
    rig(sink).once()
    assert sink.took[1:] == rig.wanted[:-1]
    segment.write_bytes(whole)
    rig(sink).once()
    assert sink.took[1:] == rig.wanted


def test_batches_are_bounded_except_for_a_single_event(rig):
    write(rig.journal, wide := ids(60), "\U0001f4a9" * 1000)
    sink = Scripted()
    rig(sink).once()
    assert in_order(sink.took, [*rig.wanted, *wide])
    assert max(sink.sizes) <= MOST_BYTES
    assert len(sink.sizes) > 3


def test_every_format_has_the_id_in_one_printable_line(rig):
    class Formatted(Scripted):
        def send(self, items):
            for item in items:
                for name, shape in FORMATS.items():
                    line = shape(item)
                    assert line.isprintable(), name
                    assert item.record["id"] in line, name
                assert f"{FORMATS['event'](item)}\n".encode() == item.line  # its hash can be checked there

    rig(Formatted()).once()


def test_lag_is_the_age_of_the_oldest_undelivered_event(rig):
    made = rig(Scripted(lambda _items: UnavailableError("down")))
    with pytest.raises(UnavailableError):
        made.once()
    shown = made.numbers.render().decode()
    assert 'exeat_journal_lag_seconds{sink="scripted"} 0.000' not in shown
    assert 'exeat_export_failures_total{sink="scripted"} 1\n' in shown
    made = rig(Scripted())
    made.once()
    shown = made.numbers.render().decode()
    assert 'exeat_journal_lag_seconds{sink="scripted"} 0.000\n' in shown
    assert 'exeat_exported_total{sink="scripted"} 111\n' in shown
    assert [line.split()[2] for line in shown.splitlines() if line.startswith("# TYPE")] == [
        name for name, *_ in METRICS
    ]


def test_file_has_complete_lines_after_faults_and_may_be_renamed(rig, tmp_path):
    out = tmp_path / "out.jsonl"
    sink = FileExporter(out, FORMATS["event"])
    rig(sink).once()
    assert out.stat().st_mode & 0o777 == 0o600
    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:50]) + lines[50][:30])  # killed while it wrote
    out.rename(tmp_path / "out.1")
    write(rig.journal, more := ids(2))
    rig(sink).once()
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()][1:] == more
    (tmp_path / "out.1").rename(out)
    write(rig.journal, more := ids(2))
    rig(sink).once()
    assert out.read_bytes().startswith(b"".join(lines[:50]) + b"{")
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()][-2:] == more


def test_file_exporter_refuses_what_is_no_regular_file(rig, tmp_path):
    (tmp_path / "real").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "directory").mkdir()
    for name in ("link", "directory", "missing/file"):
        with pytest.raises(UnavailableError):
            rig(FileExporter(tmp_path / name, FORMATS["ecs"])).once()
    assert (tmp_path / "real").read_text() == "kept"


def test_full_disk_has_complete_lines_and_gets_all_later(rig, tmp_path):
    out = tmp_path / "out.jsonl"
    made = rig(FileExporter(out, FORMATS["event"]))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))  # setrlimit(2): EFBIG beyond it, as ENOSPC elsewhere
    try:
        with pytest.raises(UnavailableError):
            made.once()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert out.read_bytes()[-1:] in {b"", b"\n"}
    made.once()
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()][1:] == rig.wanted
