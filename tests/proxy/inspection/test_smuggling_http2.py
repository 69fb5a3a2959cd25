"""HTTP/2 smuggling corpus, sent through one gate to an HTTP/1 origin that records every byte."""

import contextlib
import ssl

import h2.events
import h2.exceptions
import pytest

from tests.proxy.inspection.clients import Client
from tests.proxy.inspection.smuggling import Forwarded, Refused, raw
from tests.proxy.inspection.smuggling_http2 import CASES, AtMost
from tests.proxy.inspection.test_smuggling import SmugglingLab
from tests.support.waiting import wait_until

ENDS = (h2.events.StreamEnded, h2.events.StreamReset, h2.events.ConnectionTerminated)


@pytest.fixture(scope="module")
def lab(tmp_path_factory, origins):
    lab = SmugglingLab(tmp_path_factory.mktemp("wire"), origins, tls=True)
    yield lab
    lab.origin.close()
    lab.gate.close()


def send(client, case, host, pause):
    """Send the frames of a case, with a pause after the head."""
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


def run_case(lab, case, pause=lambda _: None):
    """Return the bytes of each connection at the origin, and outcome and reason of each decision."""
    before, closed = len(lab.origin.connections), len(lab.gate.closed)
    lab.speak_http2()
    client = Client(lab.site)
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        send(client, case, lab.site.host, pause)
        while not any(event is None or isinstance(event, ENDS) for event in client.events):
            client.read()
    client.close()
    wait_until(lambda: len(lab.gate.closed) > closed and not lab.origin.open)
    return [bytes(received) for received in lab.origin.connections[before:]], [each[2:] for each in lab.decisions()]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_smuggled_http2_request_is_refused_or_has_one_reading(lab, case):
    """Sends all frames in one piece."""
    arrived, decisions = run_case(lab, case)
    match case.outcome:
        case Refused(reason):
            assert arrived == []
            assert decisions in ([("blocked", reason)], [("blocked", "protocol_mismatch")])
        case Forwarded(arrives):
            assert arrived == [raw(arrives, lab.site.host)]
            assert decisions == [("passed", "rule")]
        case AtMost(arrives):
            assert raw(arrives, lab.site.host).startswith(b"".join(arrived))
            assert decisions == [("passed", "rule")]


LATE = [case for case in CASES if isinstance(case.outcome, AtMost)]


@pytest.mark.parametrize("case", LATE, ids=[case.name for case in LATE])
def test_late_frames_send_no_more_than_was_decided(lab, case):
    def pause(client):
        before = sum(map(len, lab.origin.connections))
        client.flush()
        wait_until(lambda: sum(map(len, lab.origin.connections)) > before)

    arrived, decisions = run_case(lab, case, pause)
    assert arrived
    assert raw(case.outcome.arrives, lab.site.host).startswith(b"".join(arrived))
    assert decisions[0] == ("passed", "rule")
    assert decisions[1:] in ([], [("blocked", "ambiguous_request")])  # the trailers


def test_http2_smuggling_corpus_has_unique_names():
    assert len({case.name for case in CASES}) == len(CASES)
