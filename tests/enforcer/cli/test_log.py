"""`exeat log` as a command."""

import json
import os
import re
import subprocess
import sys
import time
from datetime import UTC, datetime

import pytest

from enforcer.cli import main
from proxy.telemetry.encoding import encode
from proxy.telemetry.events import Http, Kind
from rules.attempt import Protocol
from rules.decision import Decision
from rules.verdicts import Outcome, Reason, Verdict
from tests.support.telemetry_lab import ALLOWED, DENIED, HOSTILE, REVISION, connect, full_event, recorder_lab

AUDITED = Decision(Verdict.DENY, Outcome.WOULD_BLOCK, Reason.NO_RULE, (), REVISION)
NOW = time.time_ns()
HOUR = 3_600_000_000_000


@pytest.fixture
def journal(tmp_path):
    """Three attempts of one task, one of another."""
    first, second = recorder_lab(tmp_path, "t-1", "migrate-7"), recorder_lab(tmp_path, "t-2", "build")
    for recorder, decision in ((first, ALLOWED), (first, DENIED), (second, DENIED), (first, AUDITED)):
        connect(recorder.recorder, decision)
    return tmp_path


def reported(capfdbinary, *arguments):
    """Return the exit status, the events and stderr."""
    status = main(["log", "--format", "jsonl", *map(str, arguments)])
    out, err = capfdbinary.readouterr()
    return status, [json.loads(line) for line in out.splitlines()], err.decode()


def outcomes(capfdbinary, *arguments):
    status, events, err = reported(capfdbinary, *arguments)
    assert (status, err) == (0, "")
    return [(event["task"]["id"], event["outcome"]) for event in events]


ALL = [("t-1", "passed"), ("t-1", "blocked"), ("t-2", "blocked"), ("t-1", "would_block")]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ALL),
        (["--task", "t-2"], ALL[2:3]),
        (["--task", "migrate-7"], [ALL[0], ALL[1], ALL[3]]),
        (["--task", "migrate-*"], [ALL[0], ALL[1], ALL[3]]),
        (["--verdict", "deny"], ALL[1:]),
        (["--verdict", "blocked"], ALL[1:3]),
        (["--verdict", "allow", "--verdict", "would_block"], [ALL[0], ALL[3]]),
        (["--verdict", "failed"], []),
        (["--task", "t-1", "--verdict", "deny"], [ALL[1], ALL[3]]),
        (["--reason", "no_rule"], ALL[1:]),
        (["--reason", "rule"], ALL[:1]),
        (["--reason", "rule", "--reason", "no_rule"], ALL),
        (["--reason", "no_rule", "--verdict", "would_block"], ALL[3:]),
        (["--reason", "leak"], []),
        (["--kind", "connection.decided"], ALL),
        (["--kind", "request.decided"], []),
        (["--kind", "dns.decided", "--kind", "connection.decided", "--verdict", "passed"], ALL[:1]),
        (["--since", "1h"], ALL),
        (["--since", "2d"], ALL),
        (["--since", "2999-01-01"], []),
    ],
)
def test_filters_select_events(capfdbinary, journal, arguments, expected):
    assert outcomes(capfdbinary, "--journal", journal, *arguments) == expected


def test_blocked_filter_includes_tampering_and_leaks(capfdbinary, tmp_path):
    recorder = recorder_lab(tmp_path).recorder
    cause = connect(recorder)
    place = {"name": "a.example", "address": None, "port": 443}
    recorder.record_tampering(cause, "the placeholder of `key`", **place)
    for blocked in (True, False):
        recorder.record_secret(
            cause, "a key", rules=(), blocked=blocked, **place, protocol=Protocol.TLS, http=Http("GET")
        )
    for words, kinds in {
        ("--verdict", "blocked"): ["tampering.detected", "secret.detected"],
        ("--verdict", "blocked", "--reason", "secret_misuse"): ["tampering.detected"],
        ("--verdict", "blocked", "--kind", "secret.detected"): ["secret.detected"],
        ("--verdict", "flag"): ["secret.detected"],
        ("--verdict", "passed"): ["connection.decided", "secret.detected"],
        ("--verdict", "failed"): [],
        ("--kind", "tampering.detected"): ["tampering.detected"],
        ("--reason", "leak"): ["secret.detected", "secret.detected"],
    }.items():
        status, events, err = reported(capfdbinary, "--journal", tmp_path, *words)
        assert (status, [event["kind"] for event in events], err) == (0, kinds, ""), words


def test_unknown_task_is_reported(capfdbinary, journal):
    status, events, err = reported(capfdbinary, "--journal", journal, "--task", "migrate")
    assert (status, events) == (0, [])
    assert err == "exeat: there is nothing of a task `migrate` in the journal; `exeat log` shows all there are\n"
    # The task has events, but none that match.
    assert reported(capfdbinary, "--journal", journal, "--task", "build", "--verdict", "passed") == (0, [], "")
    status, _, err = reported(capfdbinary, "--journal", journal, "--task", "\x1b[2J")
    assert "`\\x1b[2J`" in err


def test_last_selects_the_last_started_task(capfdbinary, tmp_path):
    assert reported(capfdbinary, "--journal", tmp_path, "--last")[1:] == (
        [],
        f"exeat: no task has been started in the journal in `{tmp_path}`\n",
    )
    first, second = recorder_lab(tmp_path, "t-1", "build"), recorder_lab(tmp_path, "t-2", "build")
    first.recorder.task_started(["make"])
    second.recorder.task_started(["make"])
    for recorder, decision in ((first, ALLOWED), (second, DENIED), (first, DENIED)):
        connect(recorder.recorder, decision)
    status, events, err = reported(capfdbinary, "--journal", tmp_path, "--last")
    assert (status, [(event["task"]["id"], event["outcome"]) for event in events], err) == (
        0,
        [("t-2", "passed"), ("t-2", "blocked")],
        "",
    )
    assert reported(capfdbinary, "--journal", tmp_path, "--last", "--task", "t-1")[0] == 2


def test_since_takes_a_duration_or_a_date(capfdbinary, tmp_path):
    now = time.time_ns()
    for ago in (50 * HOUR, 3 * HOUR, HOUR // 4):
        when = now - ago
        day = tmp_path / datetime.fromtimestamp(when // 10**9, UTC).date().isoformat()
        day.mkdir(exist_ok=True)
        with (day / "0001.jsonl").open("ab") as file:
            file.write(encode(full_event(Kind.DNS_DECIDED, "text", when)))
    yesterday = datetime.fromtimestamp(now // 10**9 - 86_400, UTC).isoformat()
    found = {
        since: len(reported(capfdbinary, "--journal", tmp_path, "--since", since)[1])
        for since in ("1000s", "30m", "4h", "2d", "1w", yesterday, "1960-01-01")
    }
    assert found == {"1000s": 1, "30m": 1, "4h": 2, "2d": 2, "1w": 3, yesterday: 2, "1960-01-01": 3}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--since", "yesterday"],
        ["--since", "5"],
        ["--since", "-5m"],
        ["--since", ""],
        ["--since", "h"],
        ["--since", "9" * 400 + "d"],
        ["--since", "2026-13-01"],
        ["--since", "\u0665m"],
        ["--verdict", "denied"],
        ["--verdict", ""],
        ["--reason", ""],
        ["--reason", "no-such"],
        ["--kind", ""],
        ["--kind", "request"],
        ["--format", "xml"],
        ["--color"],
    ],
)
def test_misuse_exits_2_and_is_explained(capfd, tmp_path, arguments):
    with pytest.raises(SystemExit) as ended:
        main(["log", "--journal", str(tmp_path), *arguments])
    assert ended.value.code == 2
    assert "usage: exeat log" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        (["--reason", "norule"], "`norule` is no reason; did you mean `no_rule`?"),
        (["--reason", "zzz"], "`zzz` is no reason; there are gate_error, rule, no_rule, "),
        (["--kind", "request.decide"], "`request.decide` is no kind of event; did you mean `request.decided`?"),
        (["--kind", "dns"], "`dns` is no kind of event; there are gate.error, "),
        (["--verdict", "block"], "`block` is neither a verdict nor an outcome; did you mean `blocked`?"),
        (["--kind", "\x1b[2J"], "`\\x1b[2J` is no kind"),
    ],
)
def test_unknown_value_is_reported_with_the_valid_ones(capfd, tmp_path, arguments, output):
    with pytest.raises(SystemExit):
        main(["log", "--journal", str(tmp_path), *arguments])
    assert output in capfd.readouterr().err


def test_missing_journal_is_reported_with_a_remedy(capfd, tmp_path, monkeypatch):
    assert main(["log", "--journal", str(tmp_path / "no")]) == 2
    assert capfd.readouterr().err == f"exeat: there is no journal in `{tmp_path}/no`; name another with `--journal`\n"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert main(["log"]) == 2
    assert capfd.readouterr().err.startswith("exeat: nothing has been run yet, and there is no journal in ")


def test_default_journal_is_that_of_run(capfdbinary, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    connect(recorder_lab(tmp_path / "exeat" / "journal").recorder)
    assert outcomes(capfdbinary) == [("t-1", "passed")]


def test_jsonl_output_equals_the_journal(capfdbinary, journal):
    written = b"".join(path.read_bytes() for path in journal.rglob("*.jsonl")).splitlines()
    main(["log", "--journal", str(journal), "--format", "jsonl"])
    shown = capfdbinary.readouterr().out.splitlines()
    assert sorted(shown) == sorted(line for line in written if b'"kind":"journal.opened"' not in line)
    assert len(shown) == 4


def test_unreadable_lines_are_reported(capfdbinary, journal):
    [segment, *_] = sorted(journal.rglob("*.jsonl"))
    with segment.open("ab") as file:
        file.write(b"garbage\n" * 3)
    status, events, err = reported(capfdbinary, "--journal", journal)
    assert (status, len(events)) == (1, 4)
    assert err == "exeat: 3 lines are no event this version can read, and not shown\n"
    with segment.open("ab") as file:
        file.write(b'{"time":"2026')
    assert reported(capfdbinary, "--journal", journal)[2].startswith("exeat: a segment ends in an unfinished line")


def test_tampered_line_is_escaped(capfdbinary, journal):
    for segment in journal.rglob("*.jsonl"):
        text = segment.read_text().replace('"migrate-7"', '"\u202e\x7fmigrate\u009b31m"')
        segment.write_text(text)
    main(["log", "--journal", str(journal), "--format", "jsonl"])
    out = capfdbinary.readouterr().out
    assert all(32 <= byte < 127 or byte == 10 for byte in out)
    assert len(out.splitlines()) == 4


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_names_are_shown_escaped(capfd, tmp_path, text):
    connect(recorder_lab(tmp_path, text, text).recorder, DENIED, name=text)
    assert main(["log", "--journal", str(tmp_path)]) == 0
    header, row, end = capfd.readouterr().out.split("\n")
    assert header.startswith("TIME")
    assert row.isprintable()
    assert "no_rule" in row
    assert end == ""


def test_table_explains_the_address_of_a_blocked_name(capfd, tmp_path):
    connect(recorder_lab(tmp_path).recorder, DENIED, detail="`a.example` is 8.8.8.8, which is this host's own")
    assert main(["log", "--journal", str(tmp_path)]) == 0
    assert "`a.example` is 8.8.8.8, which is this host's own" in capfd.readouterr().out


PROGRAM = "import sys; from enforcer.cli import main; sys.exit(main())"


def started(*arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "log", *map(str, arguments)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_terminal_without_unicode_gets_ascii(tmp_path):
    connect(recorder_lab(tmp_path, "t", "日本語").recorder)
    with started("--journal", tmp_path, PYTHONIOENCODING="ascii") as child:
        out, err = child.communicate(timeout=20)
    assert (child.returncode, err) == (0, "")
    assert "\\u65e5\\u672c\\u8a9e" in out


def test_follow_shows_each_event_at_once_even_through_a_pipe(tmp_path):
    lab = recorder_lab(tmp_path)
    connect(lab.recorder)
    with started("--journal", tmp_path, "-f", "--verdict", "blocked") as follower:
        assert follower.stdout.readline().startswith("TIME")
        connect(lab.recorder, DENIED, name="one.example")
        assert "one.example" in follower.stdout.readline()
        connect(lab.recorder)
        connect(lab.recorder, DENIED, name="two.example")
        assert "two.example" in follower.stdout.readline()
        follower.send_signal(2)
        assert follower.wait(10) == 130
        assert follower.stderr.read() == ""


def test_follow_starts_with_the_last_ten_rows_only_for_people(tmp_path):
    lab = recorder_lab(tmp_path)
    for number in range(15):
        connect(lab.recorder, DENIED, name=f"n{number}.example")
    for words, first in ((), 5), (("--since", "1h"), 0), (("--task", "t-1"), 0), (("--format", "jsonl"), 0):
        with started("--journal", tmp_path, "-f", *words) as follower:
            lines = [follower.stdout.readline() for _ in range(15 - first + ("jsonl" not in words))]
            follower.send_signal(2)
            follower.wait(10)
            assert follower.stdout.read() == ""
        names = re.findall(r"\bn(\d+)\.example", "".join(lines))
        assert list(dict.fromkeys(map(int, names))) == list(range(first, 15)), words


def test_closed_output_pipe_of_log_is_no_error(tmp_path):
    lab = recorder_lab(tmp_path)
    for _ in range(2000):
        connect(lab.recorder)
    for form in ("table", "jsonl"):
        with started("--journal", tmp_path, "--format", form) as child:
            child.stdout.readline()
            child.stdout.close()
            assert child.wait(20) == 141
            assert child.stderr.read() == ""
