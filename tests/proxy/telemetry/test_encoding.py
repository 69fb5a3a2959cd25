"""Events as lines: every kind, hostile texts, and parts that must not be recorded."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.telemetry.encoding import LONGEST_LINE, MalformedEventError, decode, encode, timestamp
from proxy.telemetry.events import Destination, Event, Git, Http, Kind, Process, Task, Transferred, bare_path
from proxy.telemetry.masking import LONGEST_LIST, LONGEST_TEXT, MASK, cut, cut_list
from rules.values.names import HostName
from tests.support.telemetry_lab import HOSTILE, full_event


def is_one_plain_line(line: bytes) -> bool:
    return line.endswith(b"\n") and line[:-1].decode("ascii").isprintable()


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_survives_encoding_as_one_json_line(kind):
    event = full_event(kind)
    line = encode(event)
    assert is_one_plain_line(line)
    assert json.loads(line)["kind"] == kind.value
    assert decode(line) == event


def test_str_subclass_is_encoded_as_its_text():
    event = Event(time=0, id="x", kind=Kind.GATE_ERROR, destination=Destination(HostName("a.example")))
    assert json.loads(encode(event))["destination"] == {"name": "a.example"}
    assert json.loads(encode(event._replace(detail="é" * 2000)))["destination"] == {"name": "a.example"}


def test_empty_event_has_only_required_members():
    event = Event(time=0, id="x", kind=Kind.GATE_ERROR)
    assert json.loads(encode(event)) == {"time": "1970-01-01T00:00:00.000000000Z", "id": "x", "kind": "gate.error"}
    assert decode(encode(event)) == event


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_breaks_no_line_and_adds_no_member(text):
    line = encode(full_event(Kind.TASK_STARTED, text))
    assert is_one_plain_line(line)
    assert len(line) < LONGEST_LINE
    plain = json.loads(encode(full_event(Kind.TASK_STARTED)))
    hostile = json.loads(line)
    assert hostile.keys() <= plain.keys()  # empty values are left out
    assert hostile["verdict"] == plain["verdict"]
    assert encode(decode(line)) == line


GOLDEN = (Path(__file__).parent / "golden_events.jsonl").read_bytes().splitlines(keepends=True)
TEXTS = ("ansi", "quotes", "del", "c1", "astral", "not utf-8", "lone surrogate", "empty")


@pytest.mark.parametrize(("line", "text"), list(zip(GOLDEN, TEXTS, strict=True)), ids=TEXTS)
def test_line_equals_that_of_earlier_versions(line, text):
    """Readers outside parse these lines, and hashes of older journals are over them."""
    assert encode(full_event(Kind.TASK_STARTED, HOSTILE[text])) == line
    assert encode(decode(line)) == line


def test_list_and_text_at_their_bounds_are_not_cut():
    event = Event(time=0, id="x", kind=Kind.GATE_ERROR, argv=("",) * LONGEST_LIST, detail="é" * LONGEST_TEXT)
    said = json.loads(encode(event))
    assert (said["argv"], said["detail"]) == ([""] * LONGEST_LIST, "é" * LONGEST_TEXT)
    longer = json.loads(encode(event._replace(argv=("",) * (LONGEST_LIST + 1))))
    assert longer["argv"] == [""] * (LONGEST_LIST - 1) + ["[2 more]"]
    assert json.loads(encode(event._replace(argv=(), detail="é" * (LONGEST_TEXT + 1))))["detail"].endswith("[25 more]")


@settings(max_examples=150, deadline=None)
@given(st.text(st.characters(exclude_categories=()), max_size=60))
def test_any_encoded_text_decodes_to_itself(text):
    line = encode(full_event(Kind.REQUEST_DECIDED, text))
    assert is_one_plain_line(line)
    assert encode(decode(line)) == line


def test_non_utf8_bytes_are_escaped_for_every_json_reader():
    event = full_event(Kind.TASK_STARTED, b"caf\xc3\xa9\xff".decode("utf-8", "surrogateescape"))
    assert json.loads(encode(event))["argv"] == ["café\\xff"]
    encode(event).decode("ascii").encode("utf-8")


def test_del_is_escaped():
    assert b"\x7f" not in encode(full_event(Kind.TASK_STARTED, "a\x7fb"))
    assert decode(encode(full_event(Kind.TASK_STARTED, "a\x7fb"))).argv == ("a\x7fb",)


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/a/b", "/a/b"),
        ("/a?token=secret", "/a"),
        ("/a#secret", "/a"),
        ("/?secret", "/"),
        ("?secret", ""),
        ("*", "*"),
        ("http://user:secret@host/a?secret", "/a"),
        ("https://user:secret@host", "/"),
        ("user:secret@host:443", "host:443"),
        ("/a/http://x", "/a/http://x"),
        ("", ""),
    ],
)
def test_path_is_recorded_without_query_and_fragment(target, path):
    assert bare_path(target) == path
    assert Http(path=target).path == path


def test_host_is_recorded_without_the_user():
    assert Http(host="user:secret@host:80").host == "host:80"


def test_copies_of_values_are_masked_too():
    assert Process(1, "curl")._replace(argv=("--password", "hunter2")).argv == ("--password", MASK)
    assert Http("GET", "a.example")._replace(host="user:hunter2@a.example", path="/a?token=x") == Http(
        "GET", "a.example", "/a"
    )
    assert MASK in Git("push", "a")._replace(repository="https://user:hunter2@a.example/a").repository


def test_process_arguments_are_masked_on_creation():
    assert Process(1, "/usr/bin/curl", ("curl", "-u", "me:hunter2")).argv == ("curl", "-u", "me:***")


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), float("-inf"), -1.0, 1e300])
def test_impossible_duration_is_valid_json(seconds):
    line = encode(full_event(Kind.CONNECTION_CLOSED)._replace(duration=seconds))
    assert json.loads(line, parse_constant=pytest.fail)["duration"] == 0


def test_longest_event_fits_the_line_limit():
    huge = "\U0001f4a9" * 5000
    many = tuple(huge for _ in range(500))
    event = full_event(Kind.TASK_STARTED, huge)._replace(
        task=Task(huge, huge, dict.fromkeys((f"{n}{huge}" for n in range(500)), huge)),
        sandbox=huge,
        host=huge,
        rules=many,
        argv=many,
        sources=many,
        problems=many,
        process=Process(1, huge, many, 1, many),
        bytes=Transferred(2**63 - 1, 2**63 - 1),
    )
    line = encode(event)
    assert len(line) < LONGEST_LINE
    assert is_one_plain_line(line)


def test_cut_text_is_marked_and_not_cut_again():
    short = cut("x" * 5000)
    assert len(short) <= LONGEST_TEXT
    assert short.endswith("[4000 more]")
    assert cut(short) == short
    few = cut_list([str(n) for n in range(1000)])
    assert len(few) == LONGEST_LIST
    assert few[-1] == "[937 more]"
    assert cut_list(few) == few
    filling = cut_list(["y" * 1000] * 20)
    assert sum(map(len, filling)) <= 4096
    assert filling[-1] == "[16 more]"


def test_time_is_text_that_sorts():
    assert timestamp(1_795_000_000_000_000_001) == "2026-11-18T11:06:40.000000001Z"
    assert timestamp(999_999_999) < timestamp(1_000_000_000) < timestamp(10_000_000_000)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"time":"2026-11-18T10:26:40.000000001Z","id":"x","kind":"no.such"}',
        b'{"time":"2026-11-18T10:26:40Z","id":"x","kind":"gate.error"}',
        b'{"time":"2026-13-18T10:26:40.000000001Z","id":"x","kind":"gate.error"}',
        b'{"time":"0026-11-18T10:26:40.000000001Z","id":"x","kind":"gate.error"}',
        '{"time":"\uff12026-11-18T10:26:40.000000001Z","id":"x","kind":"gate.error"}'.encode(),
        b'{"time":5,"id":"x","kind":"gate.error"}',
        b'{"time":"2026-11-18T10:26:40.000000001Z","id":"x","kind":"gate.error","rules":["a",1]}',
        b'{"time":"2026-11-18T10:26:40.000000001Z","id":"x","kind":"gate.error","duration":true}',
        b'{"time":"2026-11-18T10:26:40.000000001Z","id":"x","kind":"gate.error","verdict":"maybe"}',
        b'{"time":"2026-11-18T10:26:40.000000001Z","id":"x","kind":"gate.error","tls":[]}',
        b'{"time":"2026-11-18T10:26:40.000000001Z","id":"x","kind":"gate.error","bytes":{"up":"1","down":2}}',
        b'{"time":"2026-11-18T10:26:40.000000001Z","id":"x","kind":"gate.error","duration":1e9}',
        b'{"time":"2026-11-18T10:26:40.000000001Z","id":"x","kind":"gate.error","duration":1e999}',
        b'{"time":"2026-11-18T10:26:40.000000001Z","id":"x","kind":"gate.error","http":{"status":9223372036854775808}}',
        b'{"time":"2026-11-18T10:26:40.000000001Z","id":"x","kind":"gate.error","detail":NaN}',
        b"[" * 100_000,
        b"\xff\xfe",
        b'{"time":' + b"9" * 10_000 + b"}",
    ],
)
def test_lines_that_are_no_events_are_refused(line):
    with pytest.raises(MalformedEventError):
        decode(line)


def test_members_of_a_newer_version_are_ignored():
    line = encode(full_event(Kind.TASK_ENDED))
    newer = line.replace(b'"kind"', b'"previous":"ab","kind"')
    assert decode(newer) == decode(line)
