"""Reading the journal: in order over all writers, after crashes and edits."""

import itertools

import pytest

from proxy.telemetry.encoding import LONGEST_LINE, encode
from proxy.telemetry.events import Kind
from proxy.telemetry.journal import query
from proxy.telemetry.journal.query import LineFilter, Progress, follow, read_events
from tests.support.telemetry_lab import full_event

NOON = 1_795_003_200_000_000_000  # 2026-11-18T12:00Z
DAY = 86_400_000_000_000


def line(when, text="text"):
    return encode(full_event(Kind.DNS_DECIDED, text, when))


def segment(directory, name, *lines):
    path = directory / name
    path.parent.mkdir(exist_ok=True, parents=True)
    with path.open("ab") as file:
        file.writelines(lines)
    return path


def times(entries):
    return [entry.event.time - NOON for entry in entries]


def test_segments_of_several_writers_are_merged_by_time(tmp_path):
    segment(tmp_path, "2026-11-18/0002.jsonl", line(NOON + 1), line(NOON + 4), line(NOON + 5))
    segment(tmp_path, "2026-11-18/0001.jsonl", line(NOON), line(NOON + 2), line(NOON + 8))
    segment(tmp_path, "2026-11-18/10000.jsonl", line(NOON + 3), line(NOON + 6), line(NOON + 7))
    segment(tmp_path, "2026-11-19/0001.jsonl", line(NOON + DAY))
    assert times(read_events(tmp_path)) == [*range(9), DAY]


def test_only_segments_that_overlap_are_open_at_once(tmp_path, monkeypatch):
    for number in range(50):
        segment(tmp_path, f"2026-11-18/{number:04d}.jsonl", line(NOON + 2 * number), line(NOON + 2 * number + 1))
    open_now, most = 0, 0
    real = query._read_segment

    def counted(path, progress, sought):
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        try:
            yield from real(path, progress, sought)
        finally:
            open_now -= 1

    monkeypatch.setattr(query, "_read_segment", counted)
    assert times(read_events(tmp_path)) == list(range(100))
    assert open_now == 0
    assert most <= 3


def test_clock_set_back_loses_no_event(tmp_path):
    segment(tmp_path, "2026-11-18/0001.jsonl", line(NOON + 5), line(NOON), line(NOON + 6))
    segment(tmp_path, "2026-11-18/0002.jsonl", line(NOON + 3))
    assert sorted(times(read_events(tmp_path))) == [0, 3, 5, 6]


def test_since_skips_earlier_days_and_events(tmp_path):
    segment(tmp_path, "2026-11-17/0001.jsonl", b"not even read\n")
    segment(tmp_path, "2026-11-18/0001.jsonl", line(NOON), line(NOON + 1), line(NOON + 2))
    progress = Progress()
    assert times(read_events(tmp_path, LineFilter(since=NOON + 1), progress)) == [1, 2]
    assert progress.malformed == 0


def test_torn_last_line_is_counted_and_skipped(tmp_path):
    segment(tmp_path, "2026-11-18/0001.jsonl", line(NOON), line(NOON + 1)[:-1])
    segment(tmp_path, "2026-11-18/0002.jsonl", line(NOON + 2)[:30])
    progress = Progress()
    assert times(read_events(tmp_path, progress=progress)) == [0]
    assert (progress.torn, progress.malformed) == (2, 0)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\n",
        b"garbage\n",
        b"\0\0\0\n",
        b"\xff\xfe\n",
        b"{}\n",
        b"x" * (LONGEST_LINE + 5) + b"\n",
        b"[" * 50_000 + b"\n",
    ],
    ids=["empty", "text", "nul", "not utf-8", "no event", "endless", "deep"],
)
def test_malformed_line_is_counted_and_the_rest_is_read(tmp_path, garbage):
    segment(tmp_path, "2026-11-18/0001.jsonl", garbage, line(NOON), garbage, line(NOON + 1))
    progress = Progress()
    assert times(read_events(tmp_path, progress=progress)) == [0, 1]
    assert (progress.torn, progress.malformed) == (0, 2)


def test_other_files_in_a_day_are_ignored(tmp_path):
    segment(tmp_path, "2026-11-18/0001.jsonl", line(NOON))
    for name in ("2026-11-18/x.jsonl", "2026-11-18/0002.jsonl.gz", "20261118/0001.jsonl", "lost+found/0001.jsonl"):
        segment(tmp_path, name, line(NOON + 1))
    (tmp_path / "2026-11-19").touch()
    progress = Progress()
    assert times(read_events(tmp_path, progress=progress)) == [0]
    assert progress.malformed == 0


def test_an_empty_journal_has_no_events(tmp_path):
    assert list(read_events(tmp_path)) == []
    segment(tmp_path, "2026-11-18/0001.jsonl")
    assert list(read_events(tmp_path)) == []


def test_a_missing_journal_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        list(read_events(tmp_path / "missing"))


def test_follow_yields_new_events_once_in_order(tmp_path):
    first = segment(tmp_path, "2026-11-18/0001.jsonl", line(NOON), line(NOON + 1)[:40])
    steps = iter(
        [
            lambda: first.open("ab").write(line(NOON + 1)[40:] + line(NOON + 3)),
            lambda: None,
            lambda: segment(tmp_path, "2026-11-18/0002.jsonl", line(NOON + 4), line(NOON + 6)),
            lambda: (
                segment(tmp_path, "2026-11-18/0001.jsonl", line(NOON + 7), b"garbage\n"),
                segment(tmp_path, "2026-11-18/0002.jsonl", line(NOON + 5)),
            ),
            lambda: segment(tmp_path, "2026-11-19/0001.jsonl", line(NOON + DAY)),
        ]
    )

    def wait(_seconds):
        next(steps)()

    seen = times(itertools.islice(follow(tmp_path, wait=wait), 8))
    assert seen == [0, 1, 3, 4, 6, 5, 7, DAY]
    assert list(steps) == []


def test_follow_starts_in_an_empty_journal(tmp_path):
    def wait(_seconds):
        segment(tmp_path, "2026-11-18/0001.jsonl", line(NOON))

    assert next(follow(tmp_path, wait=wait)).event.time == NOON
