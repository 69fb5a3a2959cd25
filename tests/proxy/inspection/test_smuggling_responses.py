"""Response smuggling corpus, sent through one gate: no response reaches a client with another framing."""

import contextlib
import re

import pytest

from tests.proxy.inspection.clients import read_all
from tests.proxy.inspection.inspection_lab import GateLab, make_site
from tests.proxy.inspection.smuggling import raw
from tests.proxy.inspection.smuggling_responses import CASES, Cut, Failed, Passed, PassedAndEnded

NEXT = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnext"


class ResponseSmugglingLab:
    """A gate, and an origin that answers as the current case says."""

    def __init__(self, directory, origins):
        self.gate = GateLab(directory, origins)
        self.case = None
        self.origin = origins.script(self._answer)
        self.site = make_site(self.gate, self.origin, tls=False)

    def _answer(self, connection, head):
        if b" /next " in head:
            connection.sendall(NEXT)
            return False
        connection.sendall(raw(self.case.answer, ""))
        return isinstance(self.case.outcome, Passed)  # others end the connection

    def request(self, case):
        """Send two requests on one connection; returns the answers, and whether the connection was reset."""
        self.case = case
        got, cut = b"", False
        with self.site.connect() as connection:
            one = f"%s %s HTTP/1.1\r\nHost: {self.site.host}\r\n%s\r\n"
            connection.sendall(
                (one % (case.method, "/", "") + one % ("GET", "/next", "Connection: close\r\n")).encode()
            )
            try:
                while piece := connection.recv(65536):
                    got += piece
            except ConnectionResetError:
                cut = True
        return got, cut


@pytest.fixture(scope="module")
def lab(tmp_path_factory, origins):
    lab = ResponseSmugglingLab(tmp_path_factory.mktemp("wire"), origins)
    yield lab
    with contextlib.suppress(OSError):
        lab.origin.listener.close()
    lab.gate.close()


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_smuggled_response_arrives_as_meant_or_is_cut(lab, case):
    got, cut = lab.request(case)
    match case.outcome:
        case Passed(gets):
            assert got == raw(gets, "") + NEXT
            assert not cut
        case PassedAndEnded(gets):
            assert got == raw(gets, "")
            assert not cut
        case Failed():
            assert re.match(rb"HTTP/1.1 502 Failed by Exeat: upstream_failed\r\n", got)
            assert got.endswith(NEXT)  # the client's own connection is none the worse
        case Cut(gets):
            assert cut
            assert raw(gets, "").startswith(got)
    assert lab.gate.events("gate.error") == []


@pytest.mark.parametrize("last", ["close", "Close", "keep-alive, CLOSE"])
def test_server_connection_with_connection_close_is_not_reused(gate, origins, last):
    """RFC 9112 section 9.6: a request sent on that connection would fail and could not be repeated."""

    def answer(connection, _head):
        connection.sendall(f"HTTP/1.1 200 OK\r\nConnection: {last}\r\nContent-Length: 4\r\n\r\npage".encode())
        return len(origin.requests) < 2  # and does not close at once

    origin = origins.script(answer)
    site = make_site(gate, origin, tls=False)
    with site.connect() as connection:
        connection.sendall(f"POST / HTTP/1.1\r\nHost: {site.host}\r\nContent-Length: 0\r\n\r\n".encode())
        assert read_all(connection).endswith(b"\r\n\r\npage")


def test_response_smuggling_corpus_has_unique_cases():
    assert len({case.name for case in CASES}) == len({(case.answer, case.method) for case in CASES}) == len(CASES)
