"""Journal writer: one write an event, segments of its own, nothing lost on a kill; and the disk quota of a task."""

import errno
import itertools
import os
import resource
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from proxy.telemetry.encoding import encode
from proxy.telemetry.events import Agent, Component, Kind
from proxy.telemetry.journal import writer
from proxy.telemetry.journal.query import Progress, read_events
from proxy.telemetry.journal.writer import UNLIMITED_BYTES, DiskQuota, Journal, JournalWriteError
from rules.verdicts import OnJournalFailure, Outcome, Reason, Verdict
from tests.support.telemetry_lab import (
    ALLOWED,
    FakePolicy,
    FakeSettings,
    close,
    connect,
    full_event,
    missing,
    recorder_lab,
)

NOON = 1_795_003_200_000_000_000  # 2026-11-18T12:00Z
ROOT = Path(__file__).parents[4]
DAY = 86_400_000_000_000


def write(journal, when, text="text"):
    journal.append(encode(full_event(Kind.DNS_DECIDED, text, when)), when)


def fails(number):
    def call(*_):
        raise OSError(number, os.strerror(number))

    return call


def segments(directory):
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*.jsonl"))


def test_segment_is_created_private_with_its_first_event(tmp_path):
    directory = tmp_path / "state" / "journal"
    journal = Journal(directory)
    assert segments(directory) == []
    write(journal, NOON)
    assert segments(directory) == ["2026-11-18/0001.jsonl"]
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (directory, *sorted(directory.rglob("*")))]
    assert modes == [0o700, 0o700, 0o600]


def test_a_segment_holds_one_day(tmp_path):
    journal = Journal(tmp_path)
    for when in (NOON, NOON + DAY - 1, NOON + 1, NOON + 3 * DAY, NOON):
        write(journal, when)
    assert segments(tmp_path) == [
        "2026-11-18/0001.jsonl",
        "2026-11-18/0002.jsonl",
        "2026-11-18/0003.jsonl",
        "2026-11-19/0001.jsonl",
        "2026-11-21/0001.jsonl",
    ]


def test_event_at_midnight_starts_the_new_day(tmp_path):
    journal = Journal(tmp_path)
    midnight = NOON // DAY * DAY
    write(journal, midnight - 1)
    write(journal, midnight)
    assert segments(tmp_path) == ["2026-11-17/0001.jsonl", "2026-11-18/0001.jsonl"]


def test_full_segment_is_followed_by_the_next(tmp_path):
    journal = Journal(tmp_path, segment_bytes=1)
    for _ in range(3):
        write(journal, NOON)
    assert segments(tmp_path) == [f"2026-11-18/000{number}.jsonl" for number in (1, 2, 3)]
    assert journal.written == sum(path.stat().st_size for path in tmp_path.rglob("*.jsonl"))


def test_segment_numbers_exceed_four_digits_and_skip_other_files(tmp_path):
    day = tmp_path / "2026-11-18"
    day.mkdir()
    for name in ("9999.jsonl", "README", "1e9.jsonl", "77777.jsonl.gz", ".jsonl"):
        (day / name).touch()
    write(Journal(tmp_path), NOON)
    assert (day / "10000.jsonl").stat().st_size > 0


def test_cached_number_needs_few_checks_of_new_segments(tmp_path, monkeypatch):
    write(Journal(tmp_path), NOON)
    day = tmp_path / "2026-11-18"
    for number in range(2, 2500):
        (day / f"{number:04d}.jsonl").touch()
    monkeypatch.setattr(os, "listdir", fails(errno.EIO))
    looked, stat_of = [], os.stat
    monkeypatch.setattr(os, "stat", lambda path, **how: (looked.append(path), stat_of(path, **how))[1])
    write(Journal(tmp_path), NOON)
    assert (day / "2500.jsonl").read_bytes()
    assert len(looked) < 50


@pytest.mark.parametrize("later", [-1, 301], ids=["before", "long after"])
def test_cached_number_expires(tmp_path, monkeypatch, later):
    write(Journal(tmp_path), NOON)
    (tmp_path / "2026-11-18" / "0041.jsonl").touch()  # those before it were removed since
    looked = writer._number_cache[0]
    monkeypatch.setattr(writer, "_number_cache", [looked._replace(when=looked.when - later)])
    write(Journal(tmp_path), NOON)
    assert segments(tmp_path)[-1] == "2026-11-18/0042.jsonl"


def test_number_of_a_compressed_segment_is_not_reused(tmp_path):
    for _ in range(2):
        write(Journal(tmp_path), NOON)
    (tmp_path / "2026-11-18" / "0002.jsonl").rename(tmp_path / "2026-11-18" / "0002.jsonl.zst")
    write(Journal(tmp_path), NOON)
    assert segments(tmp_path) == ["2026-11-18/0001.jsonl", "2026-11-18/0003.jsonl"]


def test_journal_duplicates_the_descriptor_of_its_directory(tmp_path):
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    journal = Journal(descriptor)
    write(journal, NOON)
    journal.close()
    journal.close()
    os.fstat(descriptor)
    os.close(descriptor)
    assert segments(tmp_path) == ["2026-11-18/0001.jsonl"]


def test_close_leaves_no_descriptor_open(tmp_path):
    before = os.listdir("/proc/self/fd")
    journal = Journal(tmp_path, segment_bytes=1)
    for _ in range(5):
        write(journal, NOON)
    journal.close()
    assert os.listdir("/proc/self/fd") == before


def test_child_process_inherits_no_segment(tmp_path):
    journal = Journal(tmp_path)
    write(journal, NOON)
    held = [int(name) for name in os.listdir("/proc/self/fd")]
    ours = [fd for fd in held if os.path.realpath(f"/proc/self/fd/{fd}").startswith(str(tmp_path))]
    assert len(ours) == 2
    assert not any(map(os.get_inheritable, ours))


@pytest.mark.parametrize("target", ["elsewhere", "missing"])
def test_link_in_place_of_a_segment_is_not_followed(tmp_path, target):
    (tmp_path / "elsewhere").write_text("mine")
    day = tmp_path / "journal" / "2026-11-18"
    day.mkdir(parents=True)
    (day / "0001.jsonl").symlink_to(tmp_path / target)
    write(Journal(tmp_path / "journal"), NOON)
    assert (tmp_path / "elsewhere").read_text() == "mine"
    assert not (tmp_path / "missing").exists()
    assert (day / "0002.jsonl").stat().st_size > 0


def test_link_in_place_of_a_day_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal" / "2026-11-18").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(JournalWriteError) as caught:
        write(Journal(tmp_path / "journal"), NOON)
    assert caught.value.errno in (errno.ENOTDIR, errno.ELOOP)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_impossible_directory_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(JournalWriteError, match=r"Not a directory: '.*/file/journal'") as caught:
        Journal(tmp_path / "file" / "journal")
    assert caught.value.errno == errno.ENOTDIR


def test_concurrent_writers_use_separate_segments(tmp_path):
    """Four processes begin in the same day at the same moment, each event in a segment of its own."""
    program = (
        "import sys, pathlib, time; from proxy.telemetry.journal.writer import Journal\n"
        "journal = Journal(pathlib.Path(sys.argv[1]), segment_bytes=1)\n"
        "sys.stdin.buffer.readline()\n"
        "for line in sys.stdin.buffer: journal.append(line, int(sys.argv[2]))\n"
    )
    line = encode(full_event(Kind.DNS_DECIDED, "text", NOON))
    writers = [
        subprocess.Popen([sys.executable, "-c", program, tmp_path, str(NOON)], stdin=subprocess.PIPE) for _ in range(4)
    ]
    for process in writers:
        process.stdin.write(b"go\n" + line * 100)
        process.stdin.close()
    assert [process.wait(30) for process in writers] == [0] * 4
    progress = Progress()
    assert [encode(entry.event) for entry in read_events(tmp_path, progress=progress)] == [line] * 400
    assert len(segments(tmp_path)) == 400
    assert (progress.torn, progress.malformed) == (0, 0)


def test_killed_writer_loses_no_appended_event(tmp_path):
    program = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[2])\n"
        "from tests.support.telemetry_lab import recorder_lab, connect\n"
        "recorder = recorder_lab(pathlib.Path(sys.argv[1])).recorder\n"
        "while True: sys.stdout.write(connect(recorder) + '\\n'); sys.stdout.flush()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, tmp_path, ROOT], stdout=subprocess.PIPE, text=True) as child:
        reported = list(itertools.islice(child.stdout, 200))
        child.send_signal(signal.SIGKILL)
        reported += [line for line in child.stdout if line.endswith("\n")]
    written = {entry.event.id for entry in read_events(tmp_path)}
    assert {line.strip() for line in reported} <= written


def test_file_size_limit_leaves_no_partial_line(tmp_path):
    journal = Journal(tmp_path)
    write(journal, NOON)
    length = journal.written
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (length + length // 2, before[1]))
    try:
        # Each time the kernel takes half of the line, and then no more.
        for _ in range(3):
            with pytest.raises(JournalWriteError) as caught:
                write(journal, NOON)
            assert caught.value.errno == errno.EFBIG
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert journal.written == length
    write(journal, NOON)
    progress = Progress()
    assert len(list(read_events(tmp_path, progress=progress))) == 2
    assert (progress.torn, progress.malformed) == (0, 0)


def test_segment_with_an_irremovable_partial_line_is_ended(tmp_path, monkeypatch):
    journal = Journal(tmp_path)
    write(journal, NOON)
    real = os.write
    with monkeypatch.context() as broken:
        # The last 20 bytes are what can't be written any more.
        broken.setattr(
            writer.os,
            "write",
            lambda fd, data: fails(errno.EIO)() if len(data) <= 20 else real(fd, data[:-20]),
        )
        broken.setattr(writer.os, "ftruncate", fails(errno.EROFS))
        with pytest.raises(JournalWriteError) as caught:
            write(journal, NOON)
        assert caught.value.errno == errno.EIO
    write(journal, NOON)
    assert segments(tmp_path) == ["2026-11-18/0001.jsonl", "2026-11-18/0002.jsonl"]
    progress = Progress()
    assert len(list(read_events(tmp_path, progress=progress))) == 2
    assert progress.torn == 1


@pytest.mark.kernel
def test_full_disk_is_an_error_and_freed_space_is_used(tmp_path):
    """On a real file system of 64 KiB, in a mount namespace of its own."""
    program = """
import ctypes, os, pathlib, sys
sys.path.insert(0, sys.argv[2])
uid, gid = os.getuid(), os.getgid()
try:
    os.unshare(os.CLONE_NEWUSER | os.CLONE_NEWNS)
except OSError:
    sys.exit(77)
for name, text in ("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1"):
    pathlib.Path("/proc/self", name).write_text(text)
if ctypes.CDLL(None, use_errno=True).mount(b"none", sys.argv[1].encode(), b"tmpfs", 0, b"size=65536"):
    sys.exit(77)

import errno
from tests.support.telemetry_lab import connect, recorder_lab
from proxy.telemetry.journal.writer import JournalWriteError
from proxy.telemetry.journal.query import Progress, read_events
directory = pathlib.Path(sys.argv[1])
filler = directory / "filler"
filler.write_bytes(b"x" * 40000)
here = recorder_lab(directory / "journal")
told = []
try:
    while True:
        told.append(connect(here.recorder))
except JournalWriteError as error:
    assert error.errno == errno.ENOSPC, error
assert told
for _ in range(5):
    try:
        connect(here.recorder)
        raise SystemExit("let out without an event")
    except JournalWriteError as error:
        assert error.errno == errno.ENOSPC, error
assert here.recorder.failed
filler.unlink()
told.append(connect(here.recorder))
assert not here.recorder.failed
progress = Progress()
assert [entry.event.id for entry in read_events(here.directory, progress=progress)] == told
assert (progress.torn, progress.malformed) == (0, 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path, ROOT],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode == 77:
        missing("a user namespace with a mount of its own can't be made here")
    assert done.returncode == 0, done.stderr


def test_short_write_is_completed(tmp_path, monkeypatch):
    journal = Journal(tmp_path)
    real = os.write
    monkeypatch.setattr(writer.os, "write", lambda fd, data: real(fd, data[:100]))
    write(journal, NOON)
    write(journal, NOON)
    assert len(list(read_events(tmp_path))) == 2


def test_append_makes_one_write(tmp_path, monkeypatch):
    journal = Journal(tmp_path)
    write(journal, NOON)
    calls = []
    real = os.write
    monkeypatch.setattr(writer.os, "write", lambda fd, data: calls.append(data) or real(fd, data))
    write(journal, NOON + 1)
    assert len(calls) == 1
    assert calls[0].endswith(b"\n")


def test_day_follows_the_time_of_the_event(tmp_path):
    now = time.time_ns()
    write(Journal(tmp_path), now)
    assert next(read_events(tmp_path)).event.time == now


class Disk:
    """Disk of a given size that only the quota's task fills."""

    def __init__(self, size):
        self.size = size
        self.looks = 0

    def free(self):
        self.looks += 1
        return self.size


@pytest.fixture
def clock(monkeypatch):
    """Seconds since 1970 and of the monotonic clock, as they are set."""
    now = {"time": 1_795_000_000.0, "monotonic": 1000.0}
    monkeypatch.setattr(writer.time, "time", lambda: now["time"])
    monkeypatch.setattr(writer.time, "monotonic", lambda: now["monotonic"])
    return now


def fill(quota, disk, piece):
    """Write as long as there is room; how much that was."""
    before = quota.taken
    while quota.has_room():
        quota.taken += piece
        disk.size -= piece
    return quota.taken - before


def test_first_megabytes_are_never_limited():
    disk = Disk(0)
    quota = DiskQuota(disk)
    assert fill(quota, disk, 4096) == UNLIMITED_BYTES


def test_one_task_fills_a_third_of_the_free_disk():
    size = 900 << 20
    disk = Disk(size)
    assert size // 3 <= fill(DiskQuota(disk), disk, 4096) <= size // 3 + (2 << 20)


def test_each_of_several_tasks_leaves_room_for_the_others():
    disk = Disk(900 << 20)
    for _ in range(5):
        fill(DiskQuota(disk), disk, 4096)
    assert disk.size > 100 << 20
    assert DiskQuota(disk).has_room()


def test_free_space_is_checked_rarely():
    disk = Disk(1 << 40)
    quota = DiskQuota(disk)
    for _ in range(10_000):
        quota.has_room()
        quota.taken += 4096
    assert disk.looks <= (10_000 * 4096 - UNLIMITED_BYTES >> 20) + 1


def test_full_quota_is_checked_once_a_second(clock):
    disk = Disk(0)
    quota = DiskQuota(disk)
    quota.taken = UNLIMITED_BYTES
    assert [quota.has_room() for _ in range(100)] == [False] * 100
    assert disk.looks == 1
    disk.size = 1 << 40
    assert not quota.has_room()
    clock["monotonic"] += 1
    assert quota.has_room()
    assert disk.looks == 2


def test_quota_starts_again_each_day(clock):
    disk = Disk(0)
    quota = DiskQuota(disk)
    quota.taken = 2 * UNLIMITED_BYTES
    assert not quota.has_room()
    clock["time"] += 86_400
    clock["monotonic"] += 86_400
    assert quota.has_room()
    assert quota.taken == 0


@pytest.fixture(params=OnJournalFailure)
def used_up(request, tmp_path, monkeypatch):
    """A task that has had its portion, and a connection of its own that is open; whatever the rules want of failures."""
    lab = recorder_lab(tmp_path)
    lab.recorder.sandbox.policy = FakePolicy(settings=FakeSettings(on_journal_failure=request.param))
    monkeypatch.setattr(type(lab.recorder.journal), "free", lambda _: 0)
    lab.recorder._quota.taken = UNLIMITED_BYTES
    return lab


@pytest.fixture
def opened(used_up):
    """The event of a connection that it has still."""
    used_up.recorder._quota.taken = 0
    event = connect(used_up.recorder)
    used_up.recorder._quota.taken = UNLIMITED_BYTES
    return event


def test_attempts_beyond_the_quota_are_blocked_and_not_recorded(used_up):
    recorder, metrics = used_up.recorder, used_up.metrics
    for _ in range(3):
        with pytest.raises(JournalWriteError) as failed:
            connect(recorder)
        assert failed.value.errno == errno.EDQUOT
    with pytest.raises(JournalWriteError):
        recorder.command_decided(ALLOWED, ["/bin/true"], None)
    with pytest.raises(JournalWriteError):
        recorder.agent_said(Agent("span", "an agent"))
    assert metrics.decisions[Kind.CONNECTION_DECIDED, Verdict.DENY, Outcome.BLOCKED, Reason.JOURNAL_FAILED] == 3
    assert metrics.events_dropped == 5
    assert [line["kind"] for line in used_up.lines()] == ["gate.error"]


def test_exceeded_quota_is_recorded_once_with_its_size(used_up):
    for _ in range(3):
        with pytest.raises(JournalWriteError):
            connect(used_up.recorder)
    assert used_up.metrics.gate_errors == {Component.JOURNAL: 1}
    [error] = used_up.lines()
    assert error["fault"]["detail"].startswith("16 MiB were recorded of the task today")


def test_close_of_an_allowed_connection_is_recorded_beyond_the_quota(used_up, opened):
    with pytest.raises(JournalWriteError):
        connect(used_up.recorder)
    close(used_up.recorder, opened)
    assert [line["kind"] for line in used_up.lines()] == ["connection.decided", "gate.error", "connection.closed"]


def test_freed_space_is_used(used_up, monkeypatch):
    with pytest.raises(JournalWriteError):
        connect(used_up.recorder)
    monkeypatch.setattr(type(used_up.recorder.journal), "free", lambda _: 1 << 40)
    used_up.recorder._quota._next_check_time = time.monotonic()
    connect(used_up.recorder)
    assert used_up.metrics.decisions[Kind.CONNECTION_DECIDED, Verdict.ALLOW, Outcome.PASSED, Reason.RULE] == 1


def test_each_task_of_a_worker_has_its_own_quota(used_up, tmp_path):
    with pytest.raises(JournalWriteError):
        connect(used_up.recorder)
    connect(recorder_lab(tmp_path).recorder)


def test_free_space_is_that_of_the_disk(tmp_path):
    free = recorder_lab(tmp_path).recorder.journal.free()
    assert 0 < free < 1 << 60
