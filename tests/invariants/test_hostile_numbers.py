"""No number that another process says, or a state file, raises what its reader's caller doesn't expect.

A worker reads what tasks and servers send, so its words are taken for a task's; a state file may be half written. Each
reader has one error of its own for what is none of ours, and every number in it is tried.
"""

import contextlib
import io
import json

import msgspec
import pytest

from enforcer.system.errors import HostError
from enforcer.workspace import change_store
from proxy.approvals import protocol as words
from proxy.approvals.approval_request import MalformedMessageError
from proxy.supervisor_channel import messages
from proxy.telemetry.baseline.anomalies import load, read_numbers
from proxy.telemetry.baseline.baselines import no_baselines
from proxy.telemetry.encoding import MalformedEventError, decode, encode
from proxy.telemetry.events import Kind
from proxy.telemetry.exporters.exporter import FORMATS, Item
from proxy.telemetry.formats.decoded_event import read
from proxy.telemetry.formats.otlp import logs_request
from proxy.telemetry.journal import retention, segments
from proxy.telemetry.journal.bookmark import Bookmark
from proxy.telemetry.prometheus import totals
from proxy.telemetry.prometheus.metrics import ProcessUse
from proxy.telemetry.summary import Summary
from proxy.telemetry.views.report import gather, page
from proxy.telemetry.views.table import Table
from proxy.wire import message, strict_json
from tests.proxy.approvals.test_protocol import REPLIES, WORDS
from tests.proxy.telemetry.prometheus.test_totals import sandbox
from tests.support.hostile_numbers import in_each_part, in_each_place
from tests.support.telemetry_lab import full_event


def file_with(read, name="file"):
    """Make a reader of a file one of a text."""

    def of(text, tmp_path):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(text)
        return read(tmp_path / name)

    return of


def over_a_pair(text, _tmp_path):
    ours, theirs = message.socket.socketpair(message.socket.AF_UNIX, message.socket.SOCK_SEQPACKET)
    with ours, theirs:
        theirs.send(text.encode())
        return message.receive(ours)


def an_index(text, _tmp_path):
    body = text.encode()
    return segments.read_index(io.BytesIO(body + segments._FOOTER.pack(len(body), segments._MAGIC)))


def a_word(text, _tmp_path):
    return words.read_worker_message(strict_json.loads(text))


def a_reply(text, _tmp_path):
    return words.read_registry_message(strict_json.loads(text))


def counted():
    """Numbers of a worker, with something of each kind."""
    found = totals.total()
    totals.add(found, sandbox("one"))
    found.flags = 1, 2.0
    found.processes = {"worker": ProcessUse(1.5, 2, 3, 4.5, 5, 6)}
    return found


def everything_about_an_event(text, _tmp_path):
    """What is shown, summed up and exported of a line that a worker wrote."""
    with contextlib.suppress(MalformedEventError):
        event = decode(text.encode())
        Table().row(event)
        assert page(gather([event]), "", "1")
        encode(event)
    record = read(text.encode())
    for shape in FORMATS.values():
        shape(Item(text.encode(), record))
    return logs_request([record])


def experience():
    baselines = no_baselines()
    for number in range(3):
        baselines.record_destination(f"t{number}", "name", "a.example:443", number + 1)
        baselines.ended(f"t{number}", "name", number + 1)
    baselines.record_destination("open", "name", "b.example:443", 9)
    return msgspec.to_builtins(baselines)


META = {
    "id": "t1", "name": "t", "labels": {}, "sandbox": "s", "workspace": "/w", "device": 1, "inode": 2, "uid": 3, "gid": 4,
    "began": 5, "start": 6, "protected": [], "journal": "/j", "started_by": 7,
}  # fmt: skip
COUNTED = {"version": 1, "ended": {"2026-01-01": ["0001-0003"]}, "within": [["2026-01-01/0004", 17, "x"]]}
LOOKED = {"habits": experience(), "bookmark": COUNTED, "flags": {"event": 7}}
# Reader: what it reads, and what it may raise for anything else.
READERS = {
    "a pair's end": (over_a_pair, {"of": "box", "left": 0}, ValueError),
    "a worker's numbers": (
        lambda text, _: totals.from_json(strict_json.loads(text), "worker"),
        totals.to_json(counted()),
        (ValueError, TypeError, KeyError, AttributeError),
    ),
    "a worker's last words": (
        lambda text, _: Summary.decode(text.encode()),
        json.loads(Summary().encode()),
        ValueError,
    ),
    "a bookmark": (file_with(Bookmark), COUNTED, ValueError),
    "how long to keep": (file_with(retention.RetentionPolicy.load), {"age": 1, "size": 2}, ValueError),
    "baselines": (file_with(load), LOOKED, ValueError),
    "numbers of baselines": (file_with(read_numbers), {"tasks": {"t": {"x": 1}}, "flags": 2, "oldest": 3}, ()),
    "an index": (an_index, [[1, 2, "a", "b"]], ()),
    "a task's changes": (file_with(lambda _: change_store.find(), "changes/t1/meta.json"), META, HostError),
    **{
        f"a word: {type(word).__name__}": (a_word, word.packed(), (MalformedMessageError, ValueError)) for word in WORDS
    },
    **{
        f"a reply: {type(reply).__name__}": (a_reply, reply.packed(), (MalformedMessageError, ValueError))
        for reply in REPLIES
    },
    "a line": (everything_about_an_event, json.loads(encode(full_event(Kind.CONNECTION_CLOSED))), ValueError),
}


@pytest.mark.parametrize("name", READERS)
def test_unusual_numbers_are_refused_or_parsed(name, tmp_path, monkeypatch):
    read, said, refused = READERS[name]
    monkeypatch.setattr(change_store, "directory", lambda: tmp_path / "changes")
    for number, text in in_each_place(said):
        try:
            read(text, tmp_path)
        except refused:
            pass
        except Exception as error:
            raise AssertionError(f"{type(error).__name__} by {number[:30]} in {text[:200]}") from error


WHO = messages.ProcessInfo(7, 1000, b"/bin/sh", (b"sh",))
PACKETS = [
    messages.StartRequest(1, WHO, (b"sh",), (b"sh",), whole=True),
    messages.StartDecision(1, go=True),
    messages.StartPending(1, 2.0),
    messages.CheckStart(1),
    messages.StartGone(1),
    messages.CheckResult(1),
    messages.SyscallDenied(b"mount", WHO, 3),
    messages.SyscallCounts(((b"mount", 3),)),
    messages.ProcessLookup(1, 2),
    messages.ProcessFound(1, WHO, (messages.Ancestor(2, b"x"),)),
]


@pytest.mark.parametrize("packet", PACKETS, ids=lambda packet: type(packet).__name__)
def test_numbers_fit_64_bits_or_raise_a_value_error(packet):
    assert messages.unpack(messages.pack(packet)) == packet
    for number, said in in_each_part(messages.pack(packet)):
        try:
            found = messages.unpack(said)
        except ValueError:
            continue
        assert messages.unpack(messages.pack(found)) == found, number
