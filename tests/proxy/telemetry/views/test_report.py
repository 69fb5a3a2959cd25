"""Report page: its numbers equal the journal, and hostile texts stay text."""

import html
import os
import re
from html.parser import HTMLParser
from ipaddress import ip_address

import pytest

from enforcer.cli import main
from proxy.telemetry.events import Component, Dns, Kind
from proxy.telemetry.journal.query import read_events
from proxy.telemetry.views.report import MOST, AttemptTimes, ReportData, gather, page
from rules.attempt import Protocol
from rules.verdicts import Outcome, Reason
from tests.support.telemetry_lab import ALLOWED, DENIED, HOSTILE, close, connect, full_event, recorder_lab

VOID = {"meta", "br", "line", "rect"}
TAGS = {
    "html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "div", "b", "code", "span", "br", "table",
    "thead", "tbody", "tr", "th", "td", "details", "summary", "svg", "rect", "line", "text",
}  # fmt: skip
ATTRIBUTES = {
    "lang", "charset", "http-equiv", "content", "name", "class", "viewbox", "role", "aria-label", "x", "y", "x1", "x2",
    "y1", "y2", "width", "height",
}  # fmt: skip


class Reader(HTMLParser):
    """Reads a page, holds it to the tags and attributes that it may have, and gives its rows back as text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.rows, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert tag in TAGS
        assert {name for name, _ in attrs} <= ATTRIBUTES
        if tag == "tr":
            self.rows.append([])
        elif tag in {"td", "th"}:
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert tag in VOID or self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def row(self, *begins):
        [found] = [row for row in self.rows if row[: len(begins)] == list(begins)]
        return found


def written(all_):
    return page(all_, "task t", "1.0")


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A journal of a task with allowed and blocked attempts."""
    monkeypatch.chdir(tmp_path)
    lab = recorder_lab(tmp_path / "journal")
    recorder = lab.recorder
    recorder.rules_loaded()
    started = recorder.task_started(["pip", "download", "six"])
    close(recorder, connect(recorder), up=3, down=5000)
    close(recorder, connect(recorder), up=4, down=6000)
    for _ in range(3):
        connect(recorder, DENIED, name="evil.example", address=ip_address("198.18.0.9"))
    recorder.decided(
        Kind.DNS_DECIDED, DENIED, name="odd.example", address=None, port=53, protocol=Protocol.UDP,
        dns=Dns("odd.example", "TXT"),
    )  # fmt: skip
    recorder.error(Component.DIAL, "something broke")
    recorder.task_ended(started, seconds=1.0, status=3)
    return lab


def test_report_shows_the_outcome_of_a_task(lab):
    reader = Reader(written(gather(entry.event for entry in read_events(lab.directory))))
    assert reader.row("migratet-1")[1:] == ["team=data", "pip download six", reader.row("migratet-1")[3], "ended with status 3", "2", "", "", "4"]  # fmt: skip
    assert reader.row("www.example.com:443 tls")[1:8] == ["2", "", "", "", "7", "11,000", "web:pages"]
    assert reader.row("evil.example:443 tls")[1:7] == ["", "", "", "3", "", ""]
    assert reader.row("3", "evil.example:443 tls")[2] == "no_rule"
    assert reader.row("1", "odd.example dns")[2] == "no_rule"
    assert [row[4] for row in reader.rows if row[1:2] == ["gate.error"]] == ["something broke"]
    assert {"2allowed", "4blocked"} <= set(re.findall(r"\d+(?:allowed|blocked)", "".join(reader.texts)))
    assert any(row[3:] == ["/rules/web.yaml"] for row in reader.rows)


@pytest.mark.parametrize(
    "text", [*HOSTILE.values(), "</td></style><script>alert(1)</script>", "' onload='x", "&lt;b&gt;"]
)
def test_hostile_text_is_escaped_in_the_page(text):
    events = [full_event(kind, text, 1_795_000_000_000_000_000 + number) for number, kind in enumerate(Kind)]
    reported = written(gather(events))
    Reader(reported)
    assert "<script" not in reported.lower()
    assert all(character == "\n" or character.isprintable() for character in reported)
    assert "default-src 'none'" in reported


def test_escaped_text_reads_back_from_the_page():
    reader = Reader(written(gather([full_event(Kind.TAMPERING_DETECTED, "<b>&amp; 'x'")])))
    assert any("<b>&amp; 'x'" in cell for row in reader.rows for cell in row)


def test_flood_of_events_is_counted_within_a_bounded_page():
    one = full_event(Kind.CONNECTION_DECIDED)._replace(outcome=Outcome.BLOCKED)
    where = one.destination
    events = (
        one._replace(destination=where._replace(name=f"n{number}.example"), time=one.time + number)
        for number in range(MOST + 500)
    )
    all_ = gather(events)
    assert (len(all_.places), len(all_.refusals)) == (MOST, MOST)
    assert all_.left_out == {"places": 500, "refusals": 500}
    assert "1,000 rows are shown; 500 events belong to others." in written(all_)


def test_flood_displaces_no_traffic_or_leak():
    """Not in front of it, and not behind: thousands of names, and of warnings, that cost a task nothing."""
    one = full_event(Kind.CONNECTION_DECIDED)._replace(outcome=Outcome.PASSED)
    where = one.destination._replace(name="drop.example")
    left = full_event(Kind.CONNECTION_CLOSED)._replace(destination=where)
    looked = full_event(Kind.DNS_DECIDED)._replace(outcome=Outcome.PASSED)
    refused = one._replace(outcome=Outcome.BLOCKED)
    called = full_event(Kind.SYSCALL_DENIED)
    flood = [
        event
        for number in range(3 * MOST)
        for event in (
            looked._replace(dns=Dns(f"n{number}.example", "A", ("198.18.0.1",))),
            refused._replace(destination=where._replace(name=f"n{number}.example")),
            called,
        )
    ]
    leak = full_event(Kind.SECRET_DETECTED)._replace(outcome=Outcome.BLOCKED, reason=Reason.LEAK, destination=where)
    for events in ([*flood, one._replace(destination=where), left, leak], [one, left, leak, *flood]):
        all_ = gather(events)
        assert max(len(all_.places), len(all_.refusals), len(all_.warnings)) == MOST
        assert all_.places["drop.example", 443, "tls"].up == left.bytes.up
        assert leak in all_.warnings
        assert leak in [refusal.event for refusal in all_.refusals.values()]
        reported = sum(place.attempts.total() for place in all_.places.values())
        attempts = sum(event.kind in {Kind.DNS_DECIDED, Kind.CONNECTION_DECIDED} for event in events)
        assert reported + all_.left_out["places"] == attempts


def test_long_period_keeps_every_attempt():
    moments = AttemptTimes()
    for number in range(200_000):
        moments.add(1_795_000_000_000_000_000 + number * 86_400_000_000, Outcome.PASSED)
    assert sum(moments.counts.values()) == 200_000
    assert len(moments.counts) <= 20_001


@pytest.mark.parametrize("seconds", [0, 0.001, 1, 59, 3600, 86_400, 400 * 86_400])
def test_chart_has_every_attempt(seconds):
    moments = AttemptTimes()
    for number in range(100):
        outcome = list(Outcome)[number % len(Outcome)]
        moments.add(1_795_000_000_000_000_000 + int(number * seconds * 10**7), outcome)
    drawn = written(ReportData(moments=moments))
    Reader(drawn)
    assert sum(map(int, re.findall(r"<title>(\d+) ", drawn))) == 100
    for x, y, height in re.findall(
        r'<rect class="\w+" x="([\d.]+)" y="([\d.]+)" width="[\d.]+" height="([\d.]+)"', drawn
    ):
        assert 0 <= float(x) <= 960
        assert 0 <= float(y) <= float(y) + float(height) <= 160.2
    assert 0 < len(re.findall("<text", drawn)) <= 8


def test_report_of_no_events_is_a_page():
    assert "no attempts" in written(gather([]))


# --- the command ---


def test_command_writes_a_new_file_and_prints_its_name(lab, tmp_path, capsys):
    words = ["report", "migrate", "--journal", str(lab.directory)]
    assert main(words) == 0
    assert capsys.readouterr().out == "exeat-report-migrate.html\n"
    first = (tmp_path / "exeat-report-migrate.html").read_text()
    assert "<h1>Exeat: task migrate</h1>" in first
    assert main(words) == 2
    assert "file exists; name another file with `-o`" in capsys.readouterr().err
    assert main([*words, "-o", "-"]) == 0
    assert capsys.readouterr().out == first
    assert main(["report", "--last", "--journal", str(lab.directory), "-o", "again.html"]) == 0
    assert (tmp_path / "again.html").read_text() == first
    (tmp_path / "mine.html").write_text("mine")
    assert main([*words, "-o", "mine.html"]) == 2
    assert "overwrite it with `--force`" in capsys.readouterr().err
    assert (tmp_path / "mine.html").read_text() == "mine"
    assert main([*words, "-o", "mine.html", "--force"]) == 0
    assert main([*words, "-o", os.devnull]) == 0
    assert (tmp_path / "mine.html").read_text() == first


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no task or period to report: name a task, or write `--last` or `--since 1h`"),
        (["migrate", "--last"], "`--last` and TASK both name a task"),
        (["nobody"], "there is nothing of a task `nobody` in the journal"),
        (["migrate", "-o", "nowhere/a.html"], "cannot write `nowhere/a.html`: no such file or directory"),
    ],
    ids=["nothing", "two tasks", "nobody", "nowhere"],
)
def test_misuse_of_report_is_reported(lab, capsys, words, message):
    assert main(["report", *words, "--journal", str(lab.directory)]) == 2
    assert message in capsys.readouterr().err


def test_task_name_cannot_choose_the_path_of_the_report(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    connect(recorder_lab(tmp_path / "journal", name="../../etc/x y").recorder, ALLOWED)
    assert main(["report", "--last", "--journal", str(tmp_path / "journal")]) in {0, 2}
    assert main(["report", "t-1", "--journal", str(tmp_path / "journal")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "exeat-report-etc-x-y.html"
    assert html.escape("../../etc/x y") in (tmp_path / "exeat-report-etc-x-y.html").read_text()
