"""Request smuggling corpus, sent through one gate: bytes at the origin, and decisions."""

import contextlib
import json
import re
import socket
import threading
from dataclasses import dataclass, field

import pytest

from proxy.telemetry.prometheus.metrics import CONNECTED
from tests.proxy.inspection.clients import read_until
from tests.proxy.inspection.inspection_lab import GateLab, make_site
from tests.proxy.inspection.origins import stop
from tests.proxy.inspection.smuggling import (
    ASKS,
    CHUNKS,
    HOSTS,
    LINES,
    NEXT,
    TWO_ENDS,
    Broken,
    Forwarded,
    Refused,
    Unfinished,
    raw,
)
from tests.support.harness import whole_lines
from tests.support.waiting import wait_until

CASES = [*TWO_ENDS, *LINES, *HOSTS, *CHUNKS, *ASKS]

_LENGTH = re.compile(rb"\r\ncontent-length: ([0-9]+)\r\n", re.IGNORECASE)


@dataclass
class RawOrigin:
    """A server that records every byte and answers each complete request."""

    port: int = 0
    connections: list = field(default_factory=list)  # the bytes of each
    open: int = 0

    def start(self, context):
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                received = bytearray()
                self.open += 1
                self.connections.append(received)
                threading.Thread(target=self._serve, args=(connection, received), daemon=True).start()

    def _serve(self, connection, received):
        answered = 0
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.enter_context(connection).settimeout(10)
            if self._context is not None:
                connection = stack.enter_context(self._context.wrap_socket(connection, server_side=True))
            while data := connection.recv(65536):
                received += data
                while end := whole(received, answered):
                    body = b"" if received[answered:].startswith(b"HEAD ") else b"ok"
                    answered = end
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n" + body)
        self.open -= 1

    def close(self):
        stop(self._listener)


def whole(received, start):
    """Return the end of the message that starts at `start` by RFC 9112; 0 if it is incomplete."""
    end = received.find(b"\r\n\r\n", start) + 4
    if end < 4:
        return 0
    head = bytes(received[start:end])
    if b"\r\ntransfer-encoding: chunked\r\n" in head.lower():
        last = received.find(b"\r\n0\r\n", end - 2)
        return received.find(b"\r\n\r\n", last + 3) + 4 if last >= 0 else 0
    length = _LENGTH.search(head)
    end += int(length[1]) if length else 0
    return end if end <= len(received) else 0


class SmugglingLab:
    """One gate and one recording origin for all cases."""

    def __init__(self, directory, origins, *, tls=False):
        self.gate = GateLab(directory, origins)
        self.origin = RawOrigin().start(origins.context("good.example", alpn=["http/1.1"]) if tls else None)
        where = f"to: good.example, ports: [{self.origin.port}/{'tls' if tls else 'http'}], http"
        self.site = make_site(
            self.gate, self.origin, tls=tls, http="{paths: ['/**'], body: true}",
            more=f", {{id: d, {where}: {{paths: [/next, /smuggled]}}, action: deny}}",
        )  # fmt: skip
        self._read = 0

    def decisions(self):
        """Return method, path, outcome and reason of the requests decided since the last call."""
        (journal,) = (self.gate.directory / "journal").rglob("*.jsonl")
        events = [json.loads(line) for line in whole_lines(journal)[self._read :]]
        self._read += len(events)
        assert [event for event in events if event["kind"] == "gate.error"] == []
        return [
            (e["http"]["method"], e["http"]["path"], e["outcome"], e["reason"])
            for e in events
            if e["kind"] == "request.decided"
        ]

    def speak_http2(self):
        """Forget that the origin speaks only HTTP/1, so that the gate offers HTTP/2 to the next client."""
        if self.gate.inspection._engine is not None:
            self.gate.loop.run(self.gate.inspection._engine.tls_contexts.known_protocols._only_http1.clear)

    def request(self, sent, *, ends=False):
        """Send bytes on a new connection; returns the answers, and the bytes of each connection at the origin."""
        before, closed = len(self.origin.connections), len(self.gate.closed)
        answer = b""
        with contextlib.suppress(ConnectionResetError), self.site.connect() as connection:
            connection.sendall(sent)
            if ends:
                connection.shutdown(socket.SHUT_WR)
            while piece := connection.recv(65536):
                answer += piece
        wait_until(lambda: len(self.gate.closed) > closed)
        # The origin may still accept a connection that the gate has closed; it would count for the next case
        wait_until(lambda: len(self.origin.connections) == self._dialled() and not self.origin.open)
        return answer, [bytes(received) for received in self.origin.connections[before:]]

    def _dialled(self):
        found = self.gate.recorder.metrics.dial_seconds.get(CONNECTED)
        return 0 if found is None else sum(found.counts)


@pytest.fixture(scope="module")
def lab(tmp_path_factory, origins):
    lab = SmugglingLab(tmp_path_factory.mktemp("wire"), origins)
    yield lab
    lab.origin.close()
    lab.gate.close()


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_smuggled_request_is_refused_or_has_one_reading(lab, case):
    ends = isinstance(case.outcome, Unfinished)
    sent = raw(case.sent, lab.site.host) + (b"" if ends else raw(NEXT, lab.site.host))
    answer, arrived = lab.request(sent, ends=ends)
    decisions = lab.decisions()
    match case.outcome:
        case Refused(reason, status):
            assert arrived == []
            assert answer.startswith(b"HTTP/1.1 %d Blocked by Exeat: %s\r\n" % (status, reason.encode()))
            assert re.findall(rb"HTTP/1.1 [0-9]{3} ", answer) == [b"HTTP/1.1 %d " % status]
            assert [each[2:] for each in decisions] == [("blocked", reason)]
        case Forwarded(arrives):
            assert arrived == [raw(arrives, lab.site.host)]
            assert re.findall(rb"HTTP/1.1 ([2-9]..)", answer) == [b"200", b"403"]
            assert [each[1:] for each in decisions[1:]] == [("/next", "blocked", "rule")]
            assert decisions[0][2:] == ("passed", "rule")
        case Broken(arrives) | Unfinished(arrives):
            assert len(arrived) <= 1
            assert raw(arrives, lab.site.host).startswith(b"".join(arrived))
            assert b"HTTP/1.1 200" not in answer
            assert [each[2:] for each in decisions] == [("passed", "rule")]


def test_body_sent_after_an_early_answer_is_not_forwarded(gate, origins):
    """Pause-based desync (Kettle 2022): a server that has answered takes later bytes for the next request."""
    arrived = []

    def answer(connection, head):
        arrived.append(head)
        connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno")
        with contextlib.suppress(OSError):
            while data := connection.recv(65536):
                arrived.append(data)
        arrived.append(None)

    site = make_site(gate, origins.script(answer), tls=False)
    body = raw("GET /smuggled HTTP/1.1\nHost: HOST\n\n", site.host)
    with site.connect() as connection:
        connection.sendall(raw(f"POST / HTTP/1.1\nHost: HOST\nContent-Length: {len(body)}\n\n", site.host))
        assert read_until(connection, b"\r\n\r\nno").endswith(b"no")
        with contextlib.suppress(OSError):
            connection.sendall(body)
    wait_until(lambda: arrived[-1:] == [None])
    assert len(arrived) == 2


@pytest.mark.parametrize(
    "last", ["Connection: close", "connection: Keep-Alive, CLOSE", "Connection: x\nConnection: close"]
)
def test_request_behind_connection_close_is_not_read(lab, last):
    """RFC 9112 section 9.6: bytes behind the last request are not processed."""
    head = f"GET / HTTP/1.1\nHost: HOST\n{last}\n\n"
    answer, arrived = lab.request(raw(head + NEXT, lab.site.host))
    assert answer.count(b"HTTP/1.1 200 OK") == 1
    assert arrived == [raw(head, lab.site.host)]
    assert [each[1:] for each in lab.decisions()] == [("/", "passed", "rule")]


def test_smuggling_corpus_has_unique_cases_with_sources():
    assert len(CASES) >= 120
    assert len({case.name for case in CASES}) == len(CASES)
    assert len({case.sent for case in CASES}) == len(CASES)
    assert all(case.source for case in CASES)
