"""The corpus of HTTP/2 on the wire, over one gate, in front of an origin that speaks HTTP/1 and keeps every byte."""

import contextlib
import ssl

import h2.events
import h2.exceptions
import pytest

from tests.proxy.inspection.clients import Client, wait_for
from tests.proxy.inspection.smuggling import Forwarded, Refused, raw
from tests.proxy.inspection.smuggling_http2 import CASES, AtMost
from tests.proxy.inspection.test_smuggling import Wire

ENDS = (h2.events.StreamEnded, h2.events.StreamReset, h2.events.ConnectionTerminated)


@pytest.fixture(scope="module")
def wire(tmp_path_factory, origins):
    made = Wire(tmp_path_factory.mktemp("wire"), origins, tls=True)
    yield made
    made.origin.close()
    made.gate.close()


def send(client, case, host, pause):
    """Send the frames of a case, with a pause behind the head."""
    pseudo = {":method": "POST", ":scheme": "https", ":authority": host, ":path": "/", **case.pseudo}
    head = [(name, value.replace("HOST", host)) for name, value in pseudo.items() if value is not None]
    head += [(name, value.replace("HOST", host)) for name, value in case.fields]
    bare = not case.body and not case.trailers
    client.h2.send_headers(1, [(name.encode("latin-1"), value.encode()) for name, value in head], end_stream=bare)
    if not bare:
        pause(client)
    if case.body:
        client.h2.send_data(1, case.body, end_stream=not case.trailers)
    if case.trailers:
        client.h2.send_headers(1, list(case.trailers), end_stream=True)
    client.flush()


def ask(wire, case, pause=lambda _: None):
    """Return what arrived on each connection, and how what was decided ended."""
    had, closed = len(wire.origin.connections), len(wire.gate.closed)
    wire.speak_http2()
    client = Client(wire.site)
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        send(client, case, wire.site.host, pause)
        while not any(event is None or isinstance(event, ENDS) for event in client.events):
            client.read()
    client.close()
    wait_for(lambda: len(wire.gate.closed) > closed and not wire.origin.open)
    return [bytes(came) for came in wire.origin.connections[had:]], [each[2:] for each in wire.told()]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_smuggled_http2_request_is_refused_or_has_one_reading(wire, case):
    """All frames in one piece."""
    arrived, told = ask(wire, case)
    match case.outcome:
        case Refused(reason):
            assert arrived == []
            assert told in ([("blocked", reason)], [("blocked", "protocol_mismatch")])
        case Forwarded(arrives):
            assert arrived == [raw(arrives, wire.site.host)]
            assert told == [("passed", "rule")]
        case AtMost(arrives):
            assert raw(arrives, wire.site.host).startswith(b"".join(arrived))
            assert told == [("passed", "rule")]


LATE = [case for case in CASES if isinstance(case.outcome, AtMost)]


@pytest.mark.parametrize("case", LATE, ids=[case.name for case in LATE])
def test_late_frames_send_no_more_than_was_decided(wire, case):
    def pause(client):
        had = sum(map(len, wire.origin.connections))
        client.flush()
        wait_for(lambda: sum(map(len, wire.origin.connections)) > had)

    arrived, told = ask(wire, case, pause)
    assert arrived
    assert raw(case.outcome.arrives, wire.site.host).startswith(b"".join(arrived))
    assert told[0] == ("passed", "rule")
    assert told[1:] in ([], [("blocked", "ambiguous_request")])  # the trailers


def test_http2_smuggling_corpus_has_unique_names():
    assert len({case.name for case in CASES}) == len(CASES)
