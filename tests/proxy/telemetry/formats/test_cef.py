"""CEF and syslog: one line per event that parsers written from the specifications read back."""

import re

import pytest

from proxy.telemetry.events import Kind
from proxy.telemetry.exporters.syslog import frame_message, syslog
from proxy.telemetry.formats.cef import cef
from tests.proxy.telemetry.formats.sample_records import event, everything, harmful, record, unknown
from tests.support.telemetry_lab import HOSTILE


def read_cef(line):
    """Header fields and extension: a backslash escapes `|` in the header, `=` in a value, and itself."""
    assert line.startswith("CEF:")
    head, rest = [""], line[4:]
    while len(head) < 8:
        if rest[0] == "\\":
            head[-1], rest = head[-1] + rest[1], rest[2:]
        elif rest[0] == "|":
            head.append("")
            rest = rest[1:]
        else:
            head[-1], rest = head[-1] + rest[0], rest[1:]
    parts = re.split(r"(?:^| )([A-Za-z0-9]+)=", rest)
    assert parts[0] == ""
    return head[:7], dict(zip(parts[1::2], map(_plain, parts[2::2]), strict=True))


def _plain(text):
    return re.sub(r"\\([\\=])", r"\1", text)


# Keys of the CEF dictionary ("Implementing ArcSight Common Event Format", version 26) that are written.
KEYS = {"rt", "externalId", "dvchost", "act", "reason", "cat", "dhost", "dst", "c6a2", "c6a2Label", "dpt", "proto", "app",
        "requestMethod", "request", "spid", "sproc", "suid", "in", "out", "cn1", "cn1Label", "msg",
        "suser", "flexString1", "flexString1Label",
        *(f"cs{n}" for n in range(1, 7)), *(f"cs{n}Label" for n in range(1, 7))}  # fmt: skip


def test_every_event_is_a_cef_line_with_known_keys():
    for each in everything():
        head, pairs = read_cef(cef(each))
        assert head[:3] == ["0", "Exeat", "Exeat"]
        assert head[4] == each["kind"]
        assert 0 <= int(head[6]) <= 10
        assert set(pairs) <= KEYS
        assert pairs["externalId"] == each["id"]
        assert {key for key in pairs if key.endswith("Label")} == {
            f"{key}Label" for key in pairs if re.match(r"(?:c[nsf6]|flex)\w*\d$", key)
        }


@pytest.mark.parametrize(
    "text", ["a|b", "a=b", r"a\|b", r"a\=b", "x act=passed", "|9|CEF:0|", "\\", r"\\", "a\nb=c", "a\\"]
)
def test_hostile_text_adds_no_key_or_field(text):
    sample = record("request.decided", text, outcome="blocked")
    head, pairs = read_cef(cef(sample))
    assert len(head) == 7
    assert pairs["act"] == "blocked"
    assert pairs["msg"] == sample["detail"]
    assert pairs["dhost"] == sample["destination"]["name"]
    assert set(pairs) <= KEYS


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_neither_ends_a_line_nor_controls_a_terminal(name):
    for kind in Kind:
        sample = record(kind, HOSTILE[name])
        line = cef(sample)
        assert harmful(line) == []
        message = syslog(sample, line)
        assert message.isascii()
        assert message.decode().isprintable()
        assert HEADER.fullmatch(message.decode())


# RFC 5424 section 6: PRI VERSION SP TIMESTAMP SP HOSTNAME SP APP-NAME SP PROCID SP MSGID SP STRUCTURED-DATA SP MSG
HEADER = re.compile(
    r"<(\d{1,3})>1 \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{1,6}Z ([!-~]{1,255}) ([!-~]{1,48}) ([!-~]{1,128}) ([!-~]{1,32}) "
    r'\[origin software="exeat" swVersion="[^"\]\\]+"\] .*'
)


def test_every_event_is_an_rfc_5424_message():
    for each in everything():
        found = HEADER.fullmatch(syslog(each, "x").decode())
        facility, severity = divmod(int(found[1]), 8)
        assert (facility, 0 <= severity <= 7) == (13, True)
        assert found[3] == "exeat"
        assert found[5] == each["kind"]


@pytest.mark.parametrize("host", ["", "a b", "é", "a\x00b", "h" * 300, "<1>1 - -"])
def test_host_name_is_one_printable_word(host):
    assert HEADER.fullmatch(syslog(event(host=host), "x").decode())


SEVERITIES = [
    ("connection.decided", {"outcome": "passed", "reason": "rule", "verdict": "allow"}, 6),
    ("connection.decided", {"outcome": "blocked", "reason": "no_rule", "verdict": "deny"}, 5),
    ("connection.decided", {"outcome": "passed", "reason": "rule", "verdict": "flag"}, 5),
    ("request.decided", {"outcome": "blocked", "reason": "secret_misuse", "verdict": "deny"}, 2),
    ("rules.rejected", {}, 4),
    ("secret.detected", {}, 2),
    ("tampering.detected", {}, 2),
]


@pytest.mark.parametrize(("kind", "members", "severity"), SEVERITIES)
def test_severity_grows_with_the_need_for_review(kind, members, severity):
    assert syslog(record(kind, **members), "").startswith(b"<%d>1 " % (13 * 8 + severity))


def test_frame_starts_with_its_length_in_octets():
    assert frame_message(b"x" * 12) == b"12 " + b"x" * 12
    assert frame_message(syslog(unknown(), "é")).endswith(b"\\xe9")
