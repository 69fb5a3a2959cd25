"""Table of events: fits the terminal, shows the reason, escapes hostile text."""

import itertools
import os

import pytest

from proxy.telemetry.descriptions import describe
from proxy.telemetry.events import Agent, Approval, Destination, Event, Http, Kind, Task
from proxy.telemetry.views.table import Table
from proxy.telemetry.visible import fitted, padded, visible, width
from rules.attempt import Protocol
from rules.verdicts import Outcome, Reason, Verdict
from tests.support.telemetry_lab import HOSTILE, full_event

WIDTHS = (None, 40, 80, 131, 132, 200)
ID = "01a1fbac-5503-7e75-bce9-8bc86d516a2a"


def event(kind, **more):
    return Event(time=1_795_003_200_123_456_789, id=ID, kind=kind, task=Task("t-1", "migrate"), **more)


DENIED = event(
    Kind.CONNECTION_DECIDED,
    verdict=Verdict.DENY,
    outcome=Outcome.BLOCKED,
    reason=Reason.NO_RULE,
    destination=Destination("paste.example", None, 443),
    protocol=Protocol.TLS,
)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_row_is_one_escaped_line_that_fits(text):
    for kind, columns in itertools.product(Kind, WIDTHS):
        row = Table(columns).row(full_event(kind, text))
        assert visible(row) == row
        if columns is not None:
            assert width(row) <= max(columns, 73)  # narrower than that, a terminal has to wrap


def test_row_has_attempt_outcome_and_reason():
    assert Table().header() == (
        "TIME (UTC)               ID            TASK            VERDICT  OUTCOME      WHY                           WHAT"
    )
    assert Table().row(DENIED) == (
        "2026-11-18 12:00:00.123  8bc86d516a2a  migrate         deny     blocked      no_rule                       "
        "connect tls paste.example:443"
    )
    assert (
        Table(80, ids=False).row(DENIED)
        == "12:00:00  blocked      no_rule                 connect tls paste.example:443"
    )
    assert Table(80).row(DENIED) == "12:00:00  6d516a2a  blocked      no_rule             connect tls paste.example:…"


@pytest.mark.parametrize(
    ("reason", "rules", "why"),
    [
        (Reason.RULE, ("web:pages", "web:more"), "web:pages"),
        (Reason.RULE, (), "rule"),
        (Reason.DEFAULT_RULE, ("web:rest",), "default_rule web:rest"),
        (Reason.EXPIRED, ("web:old",), "expired web:old"),
        (Reason.NO_RULE, (), "no_rule"),
        (None, (), ""),
    ],
)
def test_why_column_has_the_rule_or_the_reason(reason, rules, why):
    assert Table().row(DENIED._replace(reason=reason, rules=rules))[77:105].strip() == why


def test_long_reason_moves_no_column_and_is_repeated():
    rules = ("a-file-with-a-long-name:a-rule-with-a-long-name",)
    long = DENIED._replace(reason=Reason.APPROVAL_UNAVAILABLE, rules=rules)
    row, usual = Table().row(long), Table().row(DENIED)
    assert row.index("connect") == usual.index("connect")
    assert row.endswith(f"connect tls paste.example:443  [{rules[0]}]")
    assert row.count("approval_unavailable") == 1
    assert Table(130).row(long).index("connect") == Table(130).row(DENIED).index("connect")


@pytest.mark.parametrize(
    ("reported", "output"),
    [
        (DENIED, "connect tls paste.example:443"),
        (
            DENIED._replace(destination=Destination("a.example", "2001:db8::1", 22), protocol=Protocol.TCP),
            "connect tcp a.example:22 (2001:db8::1)",
        ),
        (DENIED._replace(destination=Destination(None, "2001:db8::1", 22)), "connect tls [2001:db8::1]:22"),
        (DENIED._replace(destination=None, protocol=None), "connect ?"),
        (
            DENIED._replace(kind=Kind.REQUEST_DECIDED, http=Http("GET", "paste.example", "/x")),
            "GET https://paste.example/x",
        ),
        (
            DENIED._replace(kind=Kind.REQUEST_DECIDED, http=Http("GET", "evil.example", "/x")),
            "GET https://paste.example/x (Host: evil.example)",
        ),
        *(
            (
                DENIED._replace(
                    kind=Kind.REQUEST_DECIDED,
                    http=Http("GET", host, "/x"),
                    destination=Destination(None, "2001:db8::1", 443),
                ),
                f"GET https://[2001:db8::1]/x{claimed}",
            )
            for host, claimed in (
                ("2001:db8::1", ""),
                ("[2001:db8::1]", ""),
                ("[2001:db8::1]:443", ""),
                ("[2001:db8::2]:443", " (Host: [2001:db8::2]:443)"),
            )
        ),
        (
            DENIED._replace(
                kind=Kind.REQUEST_COMPLETED,
                http=Http("GET", None, "/x", 200),
                protocol=Protocol.HTTP,
                destination=Destination("a.example", None, 8080),
            ),
            "200 to GET http://a.example:8080/x",
        ),
        (DENIED._replace(kind=Kind.REQUEST_DECIDED), "request tls paste.example:443"),
        # what came was no HTTP
        (DENIED._replace(kind=Kind.REQUEST_DECIDED, http=Http("", "", "")), "request tls paste.example:443"),
        (full_event(Kind.CONNECTION_CLOSED), "closed tls text:443 (text) via text, 1 B up, 1.0 TiB down, 0.25 s: text"),
        (full_event(Kind.DNS_DECIDED), "lookup text text is text"),
        (
            full_event(Kind.DNS_DECIDED)._replace(outcome=Outcome.BLOCKED),
            "lookup text text blocked; text serves the block page",
        ),
        (full_event(Kind.TASK_STARTED), "task started: text"),
        (full_event(Kind.TASK_ENDED), "task ended by signal 9, 0.25 s"),
        (full_event(Kind.RULES_LOADED), "rules 0f0f0f0f0f0f loaded instead of 0f0f0f0f0f0f from text"),
        (full_event(Kind.RULES_REJECTED), "rules rejected, 0f0f0f0f0f0f stays: text"),
        (full_event(Kind.GATE_ERROR), "error in dial: text"),
        (event(Kind.CHANGES_MERGED, by="bo", detail="3 left"), "changes merged by bo: 3 left"),
        (event(Kind.CHANGES_KEPT, paths=(*"abcdefgh",)), "changes kept: a, b, c, d, e, f, g, h"),
        (
            event(Kind.CHANGES_KEPT, paths=(*"abcdefghi", "[1634 more]"), detail="1643 added"),
            "changes kept: a, b, c, d, e, f, g, h and others: 1643 added",
        ),
        (
            event(Kind.CHANGES_MERGED, by="bo", paths=("ci.yml",), approval=Approval("k3vw", by=("ada", "cy"))),
            "changes merged by bo: ci.yml (approval k3vw by ada, cy)",
        ),
    ],
)
def test_descriptions_of_events(reported, output):
    assert describe(reported) == output


@pytest.mark.parametrize("kind", Kind)
def test_event_without_fields_has_a_row(kind):
    assert Table(80).row(event(kind)).startswith("12:00:00")


def on_a_terminal(monkeypatch, **environment):
    for name in ("NO_COLOR", "TERM", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    master, slave = os.openpty()
    try:
        with open(slave, "w", encoding="utf-8") as stream:
            return Table.for_output(stream)
    finally:
        os.close(master)


def test_terminal_output_has_its_width_and_colours(monkeypatch):
    table = on_a_terminal(monkeypatch, COLUMNS="100", TERM="xterm")
    assert table == Table(100, coloured=True)
    row = table.row(DENIED)
    assert row.startswith("\x1b[31m")
    assert row.endswith("\x1b[0m")
    assert row.count("\x1b") == 2


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_color_and_dumb_terminals_get_no_colours(monkeypatch, environment):
    assert not on_a_terminal(monkeypatch, **environment).coloured


def test_empty_no_color_keeps_colours(monkeypatch):
    assert on_a_terminal(monkeypatch, NO_COLOR="", TERM="xterm").coloured


def test_output_to_a_file_is_plain_and_complete(tmp_path):
    with (tmp_path / "file").open("w") as stream:
        assert Table.for_output(stream) == Table(None, coloured=False)
    long = DENIED._replace(destination=Destination("a" * 300, None, 443))
    assert "a" * 300 in Table().row(long)


def test_reason_and_rule_too_long_together_appear_once_each():
    rule = "web:a-rule-with-a-long-name"
    row = Table().row(DENIED._replace(outcome=Outcome.FAILED, reason=Reason.UPSTREAM_UNTRUSTED, rules=(rule,)))
    assert row == (
        "2026-11-18 12:00:00.123  8bc86d516a2a  migrate         deny     failed       upstream_untrusted            "
        f"connect tls paste.example:443  [{rule}]"
    )
    named = Table().row(DENIED._replace(task=Task("t-1", "a name that is long")))
    assert named.endswith("connect tls paste.example:443  [a name that is long]")


@pytest.mark.parametrize(
    ("text", "columns", "expected"),
    [
        ("abc", 3, "abc"),
        ("abcd", 3, "ab…"),
        ("日本語", 4, "日…"),
        ("日本語", 6, "日本語"),
        ("abc", 1, "…"),
        ("abc", 0, ""),
    ],
)
def test_text_is_cut_by_its_columns(text, columns, expected):
    assert fitted(text, columns) == expected
    assert width(expected) <= max(columns, 0)


LONG = f"api.good.example.{'a' * 60}.evil.example"


@pytest.mark.parametrize(
    ("text", "columns", "expected"),
    [
        (f"GET https://{LONG}/x", 33, "GET https://…aaaaaa.evil.example…"),
        (f"connect tls {LONG}:443", 33, "connect tls …aaaaaa.evil.example…"),
        (LONG, 20, "…aaaaaa.evil.example"),
        (f"…{LONG}", 20, "…aaaaaa.evil.example"),
        (f"GET https://x.example/{LONG}", 33, "GET https://x.example/api.good.e…"),
        (f"tainted by what it read from {LONG}", 33, "tainted by what …aaa.evil.example"),
    ],
)
def test_long_host_name_keeps_its_end(text, columns, expected):
    assert fitted(text, columns) == expected
    for each in range(100):
        assert width(fitted(text, each)) <= each


def test_terminal_row_keeps_the_end_of_a_long_host_name():
    reported = DENIED._replace(destination=Destination(LONG, None, 443))
    assert Table(80, ids=False).row(reported).endswith("connect tls …aaaaaa.evil.example…")
    assert Table().row(reported).endswith(f"connect tls {LONG}:443")


def test_agent_report_cannot_look_like_another_event():
    agent = Agent("log", "tool_result", "approval k3x9abcd approved by ada", tool="Bash")
    output = event(Kind.AGENT_SAID, agent=agent)
    assert describe(output) == "the task says tool_result Bash (as approval k3x9abcd approved by ada)"


def test_padding_counts_columns():
    assert padded("日", 4) == "日  "
    assert padded("long", 2) == "long"


def test_every_character_is_printable_or_escaped():
    planes = (range(0x10000), range(0x1F000, 0x1FB00), range(0xE0000, 0xE0200), range(0x10FF00, 0x110000))
    every = "".join(map(chr, itertools.chain(*planes)))
    shown = visible(every)
    assert visible(shown) == shown
    assert shown.isprintable()
    shown.encode("utf-8")
