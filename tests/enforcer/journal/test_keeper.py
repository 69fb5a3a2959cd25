"""Journal keeper: checkpoints of open segments, one active keeper, compression, retention, kill -9."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from enforcer.journal.keeper import Keeper, tend_now
from proxy.telemetry.encoding import encode
from proxy.telemetry.events import Kind
from proxy.telemetry.journal import keys as keyring
from proxy.telemetry.journal import ledger as journal_ledger
from proxy.telemetry.journal import segments
from proxy.telemetry.journal.bookmark import Bookmark, Reader, lags
from proxy.telemetry.journal.ledger import Ledger, sweep
from proxy.telemetry.journal.query import LineFilter, read_events
from proxy.telemetry.journal.retention import HELD, RetentionPolicy
from proxy.telemetry.journal.segments import compress, days, find, opened, read_index
from proxy.telemetry.journal.verify import verify
from proxy.telemetry.journal.writer import Journal, JournalWriteError
from rules.verdicts import OnJournalFailure
from tests.support.telemetry_lab import DENIED, FakePolicy, FakeSettings, connect, full_event, recorder_lab

ROOT = Path(__file__).parents[3]
DAY = 86_400_000_000_000


@pytest.fixture(autouse=True)
def seal_without_delay(monkeypatch):
    """Repair segments of other writers without the grace period."""
    monkeypatch.setattr(journal_ledger, "_QUIET", 0.0)


@pytest.fixture
def paths(tmp_path):
    state = tmp_path / "keeper" / "journal"
    state.mkdir(parents=True)
    (tmp_path / "journal").mkdir()
    return tmp_path / "journal", state


def keeper(paths):
    return Keeper(*paths, pytest.fail)


def write(journal, text, when=None):
    now = time.time_ns() if when is None else when
    journal.append(encode(full_event(Kind.DNS_DECIDED, text, now)), now)


def verify_journal(paths):
    return verify(paths[0], keyring.load_public_keys(paths[1].parent / "keys"))


def checkpoints(journal):
    lines = [json.loads(line) for path in journal.rglob("ledger.jsonl") for line in path.read_text().splitlines()]
    return [(each["kind"], each["journal"].get("lines")) for each in lines[1:]]


def test_open_segment_is_signed_as_it_grows_and_sealed_at_its_end(paths):
    journal, active_keeper = Journal(paths[0]), keeper(paths)
    write(journal, "a")
    active_keeper.turn()
    write(journal, "b")
    active_keeper.turn()  # it is not due
    active_keeper._due = 0.0
    active_keeper.turn()
    active_keeper._due = 0.0
    active_keeper.turn()  # nothing new
    assert checkpoints(paths[0]) == [("journal.checkpoint", 2), ("journal.checkpoint", 3)]
    journal.close()
    active_keeper.close()
    assert checkpoints(paths[0])[2:] == [("journal.checkpoint", 4)]
    assert verify_journal(paths).findings == []


def test_only_one_keeper_is_active_and_the_next_takes_over(paths):
    journal, first, second = Journal(paths[0]), keeper(paths), keeper(paths)
    write(journal, "a")
    first.turn()
    write(journal, "b")
    second.turn()
    assert checkpoints(paths[0]) == [("journal.checkpoint", 2)]
    first.close()
    assert checkpoints(paths[0])[1:] == [("journal.checkpoint", 3)]
    write(journal, "c")
    second._due = 0.0
    second.turn()
    assert checkpoints(paths[0])[2:] == [("journal.checkpoint", 4)]


def test_open_segment_that_lost_lines_is_never_signed(paths):
    """A process with the worker's rights rewrites a signed line: reported once, and the segment is signed no more."""
    journal, reported = Journal(paths[0]), []
    active_keeper = Keeper(*paths, reported.append)
    write(journal, "a")
    active_keeper.turn()
    path = next(paths[0].rglob("0001.jsonl"))
    path.write_bytes(path.read_bytes().replace(b'"question":"a"', b'"question":"x"'))
    write(journal, "b")
    journal.close()
    active_keeper._due = 0.0
    active_keeper.turn()
    assert [text for text in reported if "was changed: not signed" in text] == reported != []
    assert not verify_journal(paths).intact


def test_segment_of_a_killed_writer_is_complete_and_repaired(paths):
    """After repeated SIGKILLs during writes, every confirmed event is in the journal, chained and signed."""
    program = (
        "import sys, pathlib, os; sys.path.insert(0, sys.argv[2])\n"
        "from tests.support.telemetry_lab import recorder_lab, connect\n"
        "recorder = recorder_lab(pathlib.Path(sys.argv[1])).recorder\n"
        "while True: os.write(1, (connect(recorder) + '\\n').encode())\n"
    )
    reported = []
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", program, paths[0], ROOT], stdout=subprocess.PIPE) as child:
            reported += [child.stdout.readline() for _ in range(50)]
            child.send_signal(signal.SIGKILL)
            reported += [line for line in child.stdout if line.endswith(b"\n")]
        keeper(paths).close()
    stored = {entry.event.id for entry in read_events(paths[0])}
    assert {line.decode().strip() for line in reported} <= stored
    assert verify_journal(paths).findings == []
    repaired = [entry.event for entry in read_events(paths[0]) if entry.event.kind is Kind.JOURNAL_REPAIRED]
    assert [event.journal.segment[-4:] for event in repaired] == ["0001", "0002", "0003"]


def test_compressed_segment_reads_the_same_from_any_offset(paths, monkeypatch):
    monkeypatch.setattr(segments, "_FRAME", 1 << 17)
    journal = Journal(paths[0])
    now = time.time_ns()
    for number in range(900):  # more than one frame
        write(journal, f"n{number}", now + number)
    journal.close()
    path = next(paths[0].rglob("0001.jsonl"))
    complete, before = path.read_bytes(), [entry.line for entry in read_events(paths[0])]
    packed = compress(path)
    assert packed.stat().st_size < len(complete) / 5
    with packed.open("rb", buffering=0) as file:
        frames = read_index(file)
    assert len(frames) > 1
    segment = find(paths[0], path.parent.name + "/0001")
    for offset in (0, 1, frames[1].offset - 1, frames[1].offset, len(complete) - 7, len(complete)):
        with opened(segment, offset) as file:
            assert file.read() == complete[offset:]
    assert [entry.line for entry in read_events(paths[0])] == before
    assert [entry.event.dns.question for entry in read_events(paths[0], LineFilter(since=now + 898))] == [
        "n898",
        "n899",
    ]
    sought = LineFilter(((b'"question":"n5"', b'"question":"n800"'),), until=now + 700)
    assert [entry.event.dns.question for entry in read_events(paths[0], sought)] == ["n5"]


def old_day(paths, name, ago):
    """A closed day of the past."""
    journal = Journal(paths[0])
    write(journal, name, time.time_ns() - ago * DAY)
    journal.close()
    keeper(paths).close((os.getpid(),))
    return min(paths[0].iterdir()).name


def test_old_days_are_removed_with_a_signed_record(paths):
    for ago in (40, 20, 1):
        old_day(paths, f"d{ago}", ago)
    RetentionPolicy(age=10 * 86_400).save(paths[1] / "keep.json")
    tend_now(*paths)
    assert len(days(paths[0])) == 2  # yesterday, and today with the ledger
    assert verify_journal(paths).findings == []
    removed = [entry.event for entry in read_events(paths[0]) if entry.event.kind is Kind.JOURNAL_REMOVED]
    assert [event.detail for event in removed] == ["a segment: older than what is kept"] * 2


def test_day_removed_without_a_record_is_reported(paths):
    name = old_day(paths, "d40", 40)
    (paths[0] / name / "0001.jsonl").unlink()
    (paths[0] / name).rmdir()
    assert [f"{name}/0001: it is missing" in str(each) for each in verify_journal(paths).findings] == [True]


def test_reader_of_a_whole_ledger_does_not_lag(paths):
    """A ledger has no last line: a reader that has read all of it does not lag."""
    journal = Journal(paths[0])
    write(journal, "a")
    journal.close()
    keeper(paths).close((os.getpid(),))
    [day] = days(paths[0])
    reader = Reader(paths[0], Bookmark(paths[1] / "siem.json"))
    assert lags(reader.bookmark, paths[0], day.name)
    records = reader.read()
    reader.commit(records[:-1])
    assert lags(reader.bookmark, paths[0], day.name)
    assert not lags(reader.bookmark, paths[0], f"{day.name}/0001")
    reader.commit(records)
    assert not lags(reader.bookmark, paths[0], day.name)
    assert reader.read() == []


@pytest.mark.parametrize(("ago", "stays"), [(20, False), (12, True), (10 + HELD // 86_400 + 2, False)])
def test_undelivered_day_is_kept_for_a_while(paths, ago, stays):
    name = old_day(paths, "old", ago)
    (paths[1] / "sinks").mkdir()
    reader = Reader(paths[0], Bookmark(paths[1] / "sinks" / "siem.json"))
    reader.commit([])
    RetentionPolicy(age=10 * 86_400).save(paths[1] / "keep.json")
    tend_now(*paths)
    assert (paths[0] / name).exists() == stays
    if stays:
        reader.commit(reader.read())
        tend_now(*paths)
        assert not (paths[0] / name).exists()


def test_size_limit_removes_the_oldest_first(paths):
    for ago in (3, 2, 1):
        old_day(paths, f"d{ago}", ago)
    one = sum(path.stat().st_size for path in days(paths[0])[0].iterdir())
    total = sum(path.stat().st_size for path in paths[0].rglob("*.jsonl"))
    RetentionPolicy(size=total - one // 2).save(paths[1] / "keep.json")
    before = [day.name for day in days(paths[0])]
    tend_now(*paths)
    assert [day.name for day in days(paths[0])] == before[1:]
    assert verify_journal(paths).findings == []


def test_by_default_a_day_is_removed_after_a_year(paths):
    old_day(paths, "d4000", 4000)
    old_day(paths, "d360", 360)
    before = days(paths[0])
    tend_now(*paths)
    assert days(paths[0]) == before[1:]


def test_policy_without_limits_keeps_everything(paths):
    old_day(paths, "d4000", 4000)
    RetentionPolicy(age=None).save(paths[1] / "keep.json")
    tend_now(*paths)
    assert len(days(paths[0])) == 2
    (paths[1] / "keep.json").write_text('{"age": "all"}')
    with pytest.raises(ValueError):
        RetentionPolicy.load(paths[1] / "keep.json")


def test_signing_error_is_reported_once_and_stops_nothing(paths):
    reported = []
    (paths[1].parent / "keys").write_text("in the way")
    journal, active_keeper = Journal(paths[0]), Keeper(*paths, reported.append)
    for _ in range(2):
        write(journal, "a")
        active_keeper._due = 0.0
        active_keeper.turn()
    assert len(reported) == 1
    assert reported[0].startswith("the journal cannot be signed: cannot ")
    assert len(list(read_events(paths[0]))) == 2


@pytest.mark.parametrize("settle", OnJournalFailure)
def test_full_disk_blocks_or_counts_as_the_rules_set(tmp_path, monkeypatch, settle):
    active_keeper = recorder_lab(tmp_path)
    active_keeper.recorder.sandbox.policy = FakePolicy(settings=FakeSettings(on_journal_failure=settle))
    connect(active_keeper.recorder)

    def full(*_):
        raise JournalWriteError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(Journal, "append", full)
        if settle is OnJournalFailure.BLOCK:
            with pytest.raises(JournalWriteError):
                connect(active_keeper.recorder)
        else:
            connect(active_keeper.recorder, DENIED)
        assert active_keeper.recorder.failed
    assert active_keeper.metrics.events_dropped == 1
    connect(active_keeper.recorder)
    assert not active_keeper.recorder.failed
    assert len(list(read_events(tmp_path))) == 2


def _reachable(tmp_path):
    """Files that an attacker with write access to a journal may create for its readers."""
    victim = tmp_path / "victim"
    victim.mkdir()
    for name in ("0001.jsonl", "ledger.jsonl", "secret"):
        (victim / name).write_text("mine\n")
    return victim


@pytest.mark.parametrize("way", ["day", "segment", "ledger", "part", "fifo", "fifo for a ledger"])
def test_links_and_pipes_in_a_journal_are_not_followed(paths, tmp_path, way):
    """A compromised worker can create any file there; the keeper follows no link and opens no pipe."""
    victim = _reachable(tmp_path)
    before = {path.name: (path.read_text(), path.stat().st_mode) for path in victim.iterdir()}
    today = paths[0] / time.strftime("%Y-%m-%d", time.gmtime())
    old = paths[0] / "2020-01-01"
    if way == "day":
        old.symlink_to(victim)
        today.symlink_to(victim)
    else:
        today.mkdir()
        if way == "segment":
            (today / "0001.jsonl").symlink_to(victim / "secret")
        elif way == "ledger":
            (today / "ledger.jsonl").symlink_to(victim / "secret")
        elif way == "part":
            (today / ".0001.jsonl.part").symlink_to(victim / "secret")
        else:
            os.mkfifo(today / ("0001.jsonl" if way == "fifo" else "ledger.jsonl"))
    reported = []
    journal, active_keeper = Journal(paths[0]), Keeper(*paths, reported.append)
    with contextlib.suppress(JournalWriteError):
        write(journal, "a")
    active_keeper.turn()
    journal.close()
    active_keeper.close()
    RetentionPolicy(age=86_400, size=1).save(paths[1] / "keep.json")
    for segment in today.glob("0*.jsonl"):
        if segment.is_file() and not segment.is_symlink() and not today.is_symlink():
            os.utime(segment, (time.time() - 3600,) * 2)
    with contextlib.suppress(OSError):
        tend_now(*paths)
    list(read_events(paths[0]))
    verify_journal(paths)
    assert {path.name: (path.read_text(), path.stat().st_mode) for path in victim.iterdir()} == before


def test_fresh_segment_of_another_writer_is_left_to_its_supervisor(paths, monkeypatch):
    monkeypatch.setattr(journal_ledger, "_QUIET", 10.0)
    program = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[2])\n"
        "from tests.support.telemetry_lab import recorder_lab, connect\n"
        "connect(recorder_lab(pathlib.Path(sys.argv[1])).recorder)\n"
    )
    subprocess.run([sys.executable, "-c", program, paths[0], ROOT], check=True)
    keeper(paths).close()
    assert list(paths[0].rglob("ledger.jsonl")) == []
    [segment] = paths[0].rglob("0001.jsonl")
    os.utime(segment, (time.time() - 11,) * 2)
    keeper(paths).close()
    assert [kind for kind, _ in checkpoints(paths[0])] == ["journal.checkpoint", "journal.repaired"]


@pytest.mark.parametrize(
    ("end", "repaired"),
    [("journal.close()", []), ("", ["0002"]), ("os.write(journal.segment, b'{'); journal.close()", ["0002"])],
)
def test_only_unclosed_segments_are_recorded_as_repaired(paths, end, repaired):
    program = (
        "import os, sys, time; sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path\n"
        "from tests.enforcer.journal.test_keeper import Journal, write\n"
        "journal = Journal(Path(sys.argv[1]), segment_bytes=1)\n"  # the second event is for the next segment
        "write(journal, 'a'); write(journal, 'b')\n"
        f"{end}\n"
        "os._exit(0)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", program, paths[0], ROOT], check=True, env=environment)
    keeper(paths).close()
    ledger = [json.loads(line) for path in paths[0].rglob("ledger.jsonl") for line in path.read_text().splitlines()]
    reported = [each["journal"]["segment"][-4:] for each in ledger if each["kind"] == "journal.repaired"]
    assert reported == repaired
    assert verify_journal(paths).findings == []


def test_segment_with_a_writer_is_not_sealed(tmp_path):
    journal = Journal(tmp_path / "journal")
    write(journal, "a")
    ledger = Ledger(tmp_path / "journal", keyring.load_signer(tmp_path / "keys"), tmp_path / "lock")
    (segment,) = (tmp_path / "journal").glob("*/0001.jsonl")
    assert list(sweep(tmp_path / "journal", ledger)) == []
    assert b"journal.sealed" not in segment.read_bytes()
    write(journal, "b")
    journal.close()
    assert list(sweep(tmp_path / "journal", ledger)) == []  # its writer closed it: no repair to record
    assert b"journal.sealed" in segment.read_bytes()
