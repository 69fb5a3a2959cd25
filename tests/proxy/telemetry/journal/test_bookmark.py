"""Bookmark of a reader: every line at least once and in order, while segments are closed and compressed."""

import json

import pytest

from proxy.telemetry.encoding import encode
from proxy.telemetry.events import Kind, Mark
from proxy.telemetry.journal.bookmark import Bookmark, Reader, lags
from proxy.telemetry.journal.segments import compress
from proxy.telemetry.journal.writer import Journal
from tests.support.telemetry_lab import full_event

NOON = 1_795_003_200_000_000_000  # 2026-11-18T12:00Z
DAY = 86_400_000_000_000


def write(journal, *texts, when=NOON):
    for text in texts:
        journal.append(encode(full_event(Kind.DNS_DECIDED, text, when)), when)


def seal(journal, when=NOON):
    """Seal a segment as the keeper does."""
    event = full_event(Kind.JOURNAL_SEALED, "x", when)._replace(journal=Mark("x", closed=True))
    journal.append(encode(event), when)
    journal.close()


def said(records):
    """What events say, with the segment that each is in; of bookkeeping the kind."""
    found = []
    for line, position in records:
        event = json.loads(line)
        text = event["kind"] if event["kind"].startswith("journal.") else event["dns"]["question"]
        found.append(f"{position.segment[-4:]} {text}")
    return found


@pytest.fixture
def place(tmp_path):
    (tmp_path / "journal").mkdir()
    return tmp_path / "journal", tmp_path / "bookmark"


def reader(place):
    directory, mark = place
    return Reader(directory, Bookmark(mark))


def test_reader_returns_every_line_once_then_new_ones(place):
    first, second = Journal(place[0]), Journal(place[0])
    write(first, "a", "b")
    write(second, "c")
    here = reader(place)
    assert said(here.read()) == ["0001 journal.opened", "0001 a", "0001 b", "0002 journal.opened", "0002 c"]
    assert here.read() == []
    write(second, "d", when=NOON + DAY)
    write(first, "e")
    assert said(here.read()) == ["0001 e", "0001 journal.opened", "0001 d"]
    assert here.read() == []


@pytest.mark.parametrize("most", [1, 2, 3, 1000])
def test_killed_reader_resumes_at_the_last_commit(place, most):
    """A reader that dies after each batch, before half of them is committed: nothing is missing, nothing is late."""
    journals = [Journal(place[0]) for _ in range(3)]
    for number, journal in enumerate(journals):
        write(journal, *(f"{number}{text}" for text in "abcde"))
    seal(journals[1])
    seen = []
    for turn in range(100):
        here = reader(place)
        records = here.read(most)
        if not records:
            break
        seen += said(records)
        if turn % 2:
            here.commit(records)
    for number in range(3):
        mine = [text for text in dict.fromkeys(seen) if text.startswith(f"000{number + 1} {number}")]
        assert mine == [f"000{number + 1} {number}{text}" for text in "abcde"]


@pytest.mark.parametrize("committed", range(5))
def test_reader_continues_in_a_segment_compressed_meanwhile(place, committed):
    journal = Journal(place[0])
    write(journal, "a", "b")
    here = reader(place)
    records = here.read(committed) if committed else []
    here.commit(records)
    write(journal, "c")
    seal(journal)
    compress(place[0] / "2026-11-18" / "0001.jsonl")
    for each in (here, reader(place)):
        rest = each.read()
        assert said(records + rest) == [
            "0001 journal.opened",
            *(f"0001 {text}" for text in "abc"),
            "0001 journal.sealed",
        ]
    here.commit(rest)
    assert reader(place).read() == []
    assert not lags(reader(place).bookmark, place[0], "2026-11-18")


def test_unfinished_line_is_read_once_complete(place):
    journal = Journal(place[0])
    write(journal, "a")
    path = place[0] / "2026-11-18" / "0001.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    here = reader(place)
    assert said(here.read()) == ["0001 journal.opened"]
    path.write_bytes(whole)
    assert said(here.read()) == ["0001 a"]


def test_bookmark_of_many_segments_stays_small(place):
    live = None
    for number in range(40):
        journal = Journal(place[0])
        write(journal, str(number))
        if number == 7:
            live = journal
        else:
            seal(journal)
    here = reader(place)
    here.commit(here.read())
    kept = json.loads(place[1].read_text())
    assert kept["ended"] == {"2026-11-18": ["0001-0007", "0009-0040"]}
    assert [name for name, *_ in kept["within"]] == ["2026-11-18/0008"]
    assert not lags(here.bookmark, place[0], "2026-11-18")
    write(live, "more")
    assert lags(here.bookmark, place[0], "2026-11-18/0008")
    assert not lags(here.bookmark, place[0], "2026-11-18/0009")


def test_removed_segments_are_skipped_and_forgotten(place):
    journal = Journal(place[0])
    write(journal, "a")
    write(journal, "b", when=NOON + DAY)
    here = reader(place)
    here.commit(here.read())
    day = place[0] / "2026-11-18"
    (day / "0001.jsonl").unlink()
    day.rmdir()
    write(journal, "c", when=NOON + DAY)
    records = here.read()
    assert said(records) == ["0001 c"]
    here.commit(records)
    assert "2026-11-18" not in place[1].read_text()


def test_changed_line_at_the_position_restarts_the_segment(place):
    journal = Journal(place[0])
    write(journal, "a", "b")
    here = reader(place)
    here.commit(here.read())
    journal.close()
    (place[0] / "2026-11-18" / "0001.jsonl").unlink()
    write(Journal(place[0]), "other", "other", "other")
    again = reader(place)
    assert said(again.read())[1:] == ["0001 other"] * 3


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"version": 2}', '{"version":1,"ended":3,"within":[]}', "\0"])
def test_malformed_bookmark_is_an_error(place, text):
    place[1].write_text(text)
    with pytest.raises(ValueError):
        Bookmark(place[1])


def test_overlong_and_malformed_lines_do_not_stop_the_reader(place):
    journal = Journal(place[0])
    write(journal, "a")
    with (place[0] / "2026-11-18" / "0001.jsonl").open("ab") as file:
        file.write(b"x" * (3 << 20) + b"\ngar\rbage\n")
    write(journal, "b")
    here = reader(place)
    records = here.read()
    assert [line for line, _ in records if not line.startswith(b"{")] == [b"\n", b"gar\rbage\n"]
    assert said([records[-1]]) == ["0001 b"]
    here.commit(records)
    write(journal, "c")
    assert said(reader(place).read()) == ["0001 c"]
