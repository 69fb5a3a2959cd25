"""Verification of a journal: every manipulation is reported with its line; effects of a crash are not tampering."""

import os
import re
import shutil
import time

import pytest

from proxy.telemetry.encoding import encode
from proxy.telemetry.events import Kind, Mark
from proxy.telemetry.journal import keys as keyring
from proxy.telemetry.journal import ledger as journal_ledger
from proxy.telemetry.journal.ledger import BrokenSegmentError, Ledger, LedgerEntry, LedgerWriteError, seal, sweep
from proxy.telemetry.journal.segment_check import FindingSeverity
from proxy.telemetry.journal.segments import compress, link
from proxy.telemetry.journal.verify import verify
from proxy.telemetry.journal.writer import Journal
from tests.support.telemetry_lab import full_event

DAY = time.strftime("%Y-%m-%d", time.gmtime())


@pytest.fixture(scope="module")
def intact_home(tmp_path_factory):
    """A journal of several writers: sealed segments, and one that its writer left open."""
    home = tmp_path_factory.mktemp("made")
    build(home)
    return home


def build(home):
    journal, key = home / "journal", keyring.load_signer(home / "keys")
    journal.mkdir()
    ledger = Ledger(journal, key, home / "lock")
    first, second = Journal(journal), Journal(journal)
    for number in range(6):
        write(first, f"a{number}")
    ledger.checkpoint(first.news())
    for number in range(6, 10):
        write(first, f"a{number}")
    first.close()
    seal(journal, f"{DAY}/0001", ledger)
    for number in range(5):
        write(second, f"b{number}")
    ledger.checkpoint(second.news())
    write(second, "b5")
    second.close()  # not sealed, as after a kill
    third = Journal(journal)
    write(third, "c0")
    third.close()
    seal(journal, f"{DAY}/0003", ledger)


def write(journal, text):
    now = time.time_ns()
    journal.append(encode(full_event(Kind.DNS_DECIDED, text, now)), now)


@pytest.fixture(autouse=True)
def seal_without_delay(monkeypatch):
    """Repair segments of other writers without the grace period."""
    monkeypatch.setattr(journal_ledger, "_QUIET", 0.0)


@pytest.fixture
def home(intact_home, tmp_path):
    shutil.copytree(intact_home, tmp_path / "home")
    return tmp_path / "home"


def findings(home, **more):
    report = verify(home / "journal", keyring.load_public_keys(home / "keys"), **more)
    return [str(each) for each in report.findings]


def lines_of(home, name):
    return (home / "journal" / DAY / name).read_bytes().splitlines(keepends=True)


def put(home, name, lines):
    path = home / "journal" / DAY / name
    path.chmod(0o600)
    path.write_bytes(b"".join(lines))


def rehash(line, text=b"text"):
    """Return a changed line with a valid new hash."""
    changed = re.sub(rb'"question":"[^"]*"', b'"question":"%b"' % text, line)
    prev = re.search(rb'"prev":"([0-9a-f]{64})"', line)[1]
    return link(changed[: changed.index(b',"prev"')] + b"}\n", prev)


def relink(lines):
    """Return lines with a new chain and without signatures."""
    done, prev = [], b"0" * 64
    for line in lines:
        new, prev = link(line[: line.index(b',"prev"')] + b"}\n", prev)
        done.append(new)
    return done


def test_untouched_journal_and_its_copy_are_intact(home, tmp_path):
    shutil.copytree(home / "journal", tmp_path / "copy")
    pem = keyring.to_pem(keyring.load_signer(home / "keys").public)
    report = verify(tmp_path / "copy", keyring.read_public(pem))
    assert report.findings == []
    assert (report.lines, report.segments) == (1 + 10 + 1 + 1 + 6 + 1 + 1 + 1 + 5, 3)
    assert report.signed.startswith(DAY)
    compress(tmp_path / "copy" / DAY / "0001.jsonl")
    assert verify(tmp_path / "copy", keyring.read_public(pem)).findings == []


def changed(lines):
    lines[4] = lines[4].replace(b'"verdict":"flag"', b'"verdict":"deny"')


def changed_and_hashed(lines):
    lines[4], _ = rehash(lines[4])


def changed_and_all_hashed(lines):
    lines[4] = lines[4].replace(b'"verdict":"flag"', b'"verdict":"deny"')
    lines[:-1] = relink(lines[:-1])


def removed(lines):
    del lines[4]


def removed_two(lines):
    del lines[4:6]


def removed_first(lines):
    del lines[0]


def inserted(lines):
    prev = re.search(rb'"hash":"([0-9a-f]{64})"', lines[3])[1]
    lines.insert(4, link(lines[8][: lines[8].index(b',"prev"')] + b"}\n", prev)[0])


def inserted_three(lines):
    prev = re.search(rb'"hash":"([0-9a-f]{64})"', lines[3])[1]
    for at in range(4, 7):
        line, prev = link(lines[8][: lines[8].index(b',"prev"')] + b"}\n", prev)
        lines.insert(at, line)


def copied(lines):
    lines.insert(4, lines[8])


def swapped(lines):
    lines[4], lines[5] = lines[5], lines[4]


def moved(lines):
    lines.insert(9, lines.pop(4))


def cut(lines):
    del lines[8:]


def cut_within(lines):
    lines[-1] = lines[-1][:-20]


def added(lines):
    prev = re.search(rb'"hash":"([0-9a-f]{64})"', lines[-1])[1]
    lines.append(link(lines[8][: lines[8].index(b',"prev"')] + b"}\n", prev)[0])


def half_added(lines):
    lines.append(lines[8][:50])


def garbage(lines):
    lines[4] = b"\xff\xfe\x1b[2J\r" + b"x" * 10_240 + b"\n"


def other_seal(lines):
    lines[:] = [*lines[:-1], relink(lines)[-1]]


TABLE = [
    (changed, "0001.jsonl:5: it was changed: its hash does not match its content"),
    (changed_and_hashed, "0001.jsonl:5: it was changed, and given a new hash: the line after it follows another"),
    (changed_and_all_hashed, "0001.jsonl:1: from here to line 7 are not the lines that were signed"),
    (removed, "0001.jsonl:5: a line was removed before it"),
    (removed_two, "0001.jsonl:5: 2 lines were removed before it"),
    (removed_first, "0001.jsonl:1: lines before it were removed"),
    (inserted, "0001.jsonl:5: from here to line 5 was inserted: line 6 follows line 4"),
    (inserted_three, "0001.jsonl:5: from here to line 7 was inserted: line 8 follows line 4"),
    (copied, "0001.jsonl:5: it was inserted: it is a copy of another line"),
    (swapped, "0001.jsonl:5: it is in the wrong place: it follows line 6"),
    (moved, "0001.jsonl:5: it is in the wrong place: it follows line 10"),
    (cut, "0001.jsonl:8: it ends here, but 4 more lines were signed"),
    (cut_within, "0001.jsonl:11: it ends here, but 1 more lines were signed"),
    (added, "0001.jsonl:13: it is after the segment's end"),
    (half_added, "0001.jsonl:13: there is half a line after its end"),
    (garbage, "0001.jsonl:5: it is not a line of a journal: it has no `prev` and `hash`"),
    (other_seal, "0001.jsonl:12: it ends the segment, but is not signed"),
]


@pytest.mark.parametrize(("tamper", "named"), TABLE, ids=[tamper.__name__ for tamper, _ in TABLE])
def test_each_change_of_a_segment_is_reported_with_its_line(home, tamper, named):
    lines = lines_of(home, "0001.jsonl")
    tamper(lines)
    put(home, "0001.jsonl", lines)
    found = findings(home)
    assert len(found) == 1, found
    assert found[0].startswith(f"{DAY}/{named}")
    assert not verify(home / "journal", keyring.load_public_keys(home / "keys")).intact


FILES = [
    ("a segment", lambda day: (day / "0001.jsonl").unlink(), ["0001: it is missing: 12 lines of it were signed"]),
    ("the last", lambda day: (day / "0003.jsonl").unlink(), ["0003: it is missing: 3 lines of it were signed"]),
    ("the ledger", lambda day: (day / "ledger.jsonl").unlink(), ["ledger: it is missing", "", "ledger: nothing in this journal is signed"]),
    ("one for another", lambda day: shutil.copy(day / "0003.jsonl", day / "0002.jsonl"), ["0002.jsonl:1: it begins"]),
    ("one more", lambda day: shutil.copy(day / "0003.jsonl", day / "0004.jsonl"), ["0004.jsonl:1: it begins"]),
    ("a gap", lambda day: (day / "0003.jsonl").rename(day / "0005.jsonl"), ["0003: it is missing", "0004: it is missing", "0005.jsonl:1: it begins"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("tamper", "named"), [each[1:] for each in FILES], ids=[each[0].replace(" ", "-") for each in FILES]
)
def test_missing_and_replaced_files_are_reported(home, tamper, named):
    (home / "journal" / DAY / "0001.jsonl").chmod(0o600)
    tamper(home / "journal" / DAY)
    found = findings(home)
    for text in named:
        assert any(text in each for each in found), (text, found)


@pytest.mark.parametrize("tamper", [changed, removed, inserted, swapped, garbage], ids=lambda each: each.__name__)
def test_each_change_of_a_ledger_is_reported(home, tamper):
    lines = lines_of(home, "ledger.jsonl")
    if tamper is changed:
        lines[2] = lines[2].replace(b'"kind"', b'"Kind"')
    elif tamper is removed:
        del lines[2]
    elif tamper is inserted:
        lines.insert(2, lines[3])
    elif tamper is swapped:
        lines[2], lines[3] = lines[3], lines[2]
    else:
        lines[2] = b"\xff\n"
    put(home, "ledger.jsonl", lines)
    found = findings(home)
    assert any(each.startswith(f"{DAY}/ledger.jsonl:3: ") for each in found), found


def test_truncated_ledger_is_reported_by_its_segments(home):
    lines = lines_of(home, "ledger.jsonl")
    put(home, "ledger.jsonl", lines[:3])
    assert any("ledger.jsonl: the line with the hash" in each and "is missing" in each for each in findings(home))


def test_signature_with_an_unknown_key_is_reported(home, tmp_path):
    """Everything written anew, hashes and all, with a key of one's own."""
    shutil.rmtree(home / "journal")
    other = tmp_path / "other"
    other.mkdir()
    build(other)
    shutil.copytree(other / "journal", home / "journal")
    found = findings(home)
    assert any("is not a trusted key" in each for each in found), found
    assert findings(other) == []


def test_torn_line_is_not_tampering(home):
    lines = lines_of(home, "0002.jsonl")
    put(home, "0002.jsonl", [*lines, lines[-1][:40]])
    report = verify(home / "journal", keyring.load_public_keys(home / "keys"))
    assert [each.gravity for each in report.findings] == [FindingSeverity.TORN]
    assert str(report.findings[0]).startswith(f"{DAY}/0002.jsonl:8: an unfinished line")
    assert report.intact
    put(home, "0002.jsonl", [*lines[:-2], lines[-2][:40]])  # this one the ledger knows
    assert not verify(home / "journal", keyring.load_public_keys(home / "keys")).intact


def test_torn_line_of_a_killed_writer_is_repaired_and_recorded(home):
    lines = lines_of(home, "0002.jsonl")
    put(home, "0002.jsonl", [*lines, lines[-1][:40]])
    ledger = Ledger(home / "journal", keyring.load_signer(home / "keys"), home / "lock")
    [reported] = sweep(home / "journal", ledger)
    assert reported == LedgerEntry(
        Kind.JOURNAL_REPAIRED,
        Mark(f"{DAY}/0002", 8, reported.mark.head),
        "its writer ended without closing it; 40 bytes of an unfinished line were cut off",
    )
    assert list(sweep(home / "journal", ledger)) == []
    assert findings(home) == []
    assert lines_of(home, "0002.jsonl")[:-1] == lines


def test_segment_with_a_broken_chain_is_never_signed(home):
    lines = lines_of(home, "0002.jsonl")
    put(home, "0002.jsonl", [*lines[:2], *lines[3:]])
    ledger = Ledger(home / "journal", keyring.load_signer(home / "keys"), home / "lock")
    [broken] = sweep(home / "journal", ledger)
    assert isinstance(broken, BrokenSegmentError)
    assert "line 3 of" in str(broken)
    assert list(sweep(home / "journal", ledger)) == []
    assert any("0002.jsonl:3: " in each for each in findings(home))


@pytest.mark.parametrize("killed", ["before it is in the ledger", "before it is closed for good"])
def test_sealing_killed_at_any_point_is_finished_later(home, monkeypatch, killed):
    ledger = Ledger(home / "journal", keyring.load_signer(home / "keys"), home / "lock")
    with monkeypatch.context() as patch:
        if killed == "before it is in the ledger":
            patch.setattr(ledger, "checkpoint", _be_killed)
        else:
            patch.setattr(journal_ledger.os, "fchmod", _be_killed)
        with pytest.raises(KeyboardInterrupt):
            list(sweep(home / "journal", ledger))
    assert lines_of(home, "0002.jsonl")[-1].count(b"journal.sealed") == 1
    list(sweep(home / "journal", ledger))
    assert findings(home) == []
    signed = f'"segment":"{DAY}/0002","lines":{len(lines_of(home, "0002.jsonl"))},'.encode()
    assert any(b'"kind":"journal.checkpoint"' in line and signed in line for line in lines_of(home, "ledger.jsonl"))
    assert (home / "journal" / DAY / "0002.jsonl").stat().st_mode & 0o777 == 0o400
    assert list(sweep(home / "journal", ledger)) == []


def _be_killed(*_):
    raise KeyboardInterrupt


def test_unsigned_seal_of_a_writer_is_reported(home):
    """A worker has no key, so its own end line does not count."""
    *_, seal_of_another = lines_of(home, "0001.jsonl")
    put(home, "0002.jsonl", relink([*lines_of(home, "0002.jsonl"), seal_of_another]))
    list(sweep(home / "journal", Ledger(home / "journal", keyring.load_signer(home / "keys"), home / "lock")))
    assert any(f"{DAY}/0002" in each and "sign" in each for each in findings(home))


def test_ledger_truncated_between_writes_is_an_error(home):
    ledger = Ledger(home / "journal", keyring.load_signer(home / "keys"), home / "lock")
    ledger.write([LedgerEntry(Kind.JOURNAL_REMOVED, Mark("2020-01-01"))])
    put(home, "ledger.jsonl", lines_of(home, "ledger.jsonl")[:2])
    with pytest.raises(LedgerWriteError, match="missing from the ledger"):
        ledger.write([LedgerEntry(Kind.JOURNAL_REMOVED, Mark("2020-01-02"))])


def test_rotated_keys_are_trusted_through_the_first(home, tmp_path):
    first = keyring.to_pem(keyring.load_signer(home / "keys").public)
    before, after = keyring.rotate_key(home / "keys")
    Ledger(home / "journal", before, home / "lock").write(
        [LedgerEntry(Kind.JOURNAL_KEY, Mark(f"{DAY}/ledger"), keyring.format_public_key(after.public))]
    )
    journal, ledger = Journal(home / "journal"), Ledger(home / "journal", after, home / "lock")
    write(journal, "d0")
    journal.close()
    seal(home / "journal", f"{DAY}/0004", ledger)
    assert verify(home / "journal", keyring.read_public(first)).findings == []
    assert len(keyring.load_public_keys(home / "keys")) == 2
    only_new = keyring.read_public(keyring.to_pem(after.public))
    assert not verify(home / "journal", only_new).intact
    assert sorted(os.stat(path).st_mode & 0o777 for path in (home / "keys").iterdir()) == [0o600] * 3


def test_external_checkpoints_expose_a_rollback(home):
    kept = [("siem", line) for line in lines_of(home, "ledger.jsonl")]
    assert findings(home, external_lines=kept) == []
    shutil.rmtree(home / "journal")
    (home / "journal").mkdir()
    found = findings(home, external_lines=kept)
    assert f"{DAY}/0001: it is missing: 12 lines of it were signed (siem)" in found
    forged = [("siem", line.replace(b'"lines":7', b'"lines":8')) for _, line in kept]
    assert any("not signed with a trusted key" in each for each in findings(home, external_lines=forged))


def test_index_that_hides_lines_is_reported(home):
    packed = compress(home / "journal" / DAY / "0001.jsonl")
    assert findings(home) == []
    text = packed.read_bytes()
    at = text.rindex(f'"{DAY}T'.encode())
    packed.chmod(0o600)
    packed.write_bytes(text[: at + 1] + b"1999" + text[at + 5 :])
    assert [each.endswith("may have skipped some") for each in findings(home)] == [True]
