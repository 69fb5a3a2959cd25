"""The list of stages, and what is left of those that a request went through when one of them raises."""

from types import SimpleNamespace

import pytest
from mitmproxy.proxy.layers.http._events import ErrorCode, RequestProtocolError

from proxy.inspection import session as sessions
from proxy.inspection.stages.pending_body import PendingContent
from proxy.inspection.stages.request_context import RequestContext
from proxy.inspection.stages.secret_scan import scan_ahead
from proxy.inspection.stages.stage import Stage
from proxy.inspection.stream import Stream
from proxy.inspection.stream_states import RequestState, ResponseState
from proxy.request.messages import WebOrigin
from proxy.request.mitmproxy_messages import RequestHeaders
from proxy.request.request_head import Head
from rules.names import HostName
from rules.verdicts import Outcome, Scan, Trust

ENDED = []


class Holding(Stage):
    def end(self):
        ENDED.append("holding")


class Broken(Stage):
    def admit(self, ruling):
        raise ValueError(f"a stage has a fault: {ruling}")


def test_a_stage_that_raises_leaves_nothing_taken_of_those_before_it(monkeypatch):
    monkeypatch.setattr(sessions, "stages_for", lambda _needs: (Holding, Broken))
    sandbox = SimpleNamespace(secret_injector=None)
    session = sessions.Session(SimpleNamespace(sandbox=sandbox), WebOrigin(HostName("good.example"), 443, tls=True), "")
    request = RequestContext("1", Head(b"HTTP/1.1", b"GET", b"", b"", b"/", ()), body=False)
    decision = SimpleNamespace(outcome=Outcome.PASSED, scan=Scan.OFF, trust=Trust.TRUSTED, limits=())
    with pytest.raises(ValueError, match="a fault"):
        session._through_stages(request, SimpleNamespace(decision=decision, asked=True, grants=()))
    assert ENDED == ["holding"]


def test_a_long_head_is_looked_through_once_although_its_request_is_decided_twice():
    needs = SimpleNamespace(strict_scan=False, names_host=lambda _target: False)
    sandbox = SimpleNamespace(own_secrets=None, secret_injector=None, policy=SimpleNamespace(needs=needs))
    session = sessions.Session(SimpleNamespace(sandbox=sandbox), WebOrigin(HostName("good.example"), 443, tls=True), "")
    request = RequestContext("1", Head(b"HTTP/1.1", b"POST", b"", b"", b"/", ((b"a", b"b" * 8192),)), body=True)
    list(scan_ahead(session, request))
    first = request.seen[False]
    needs.strict_scan = True  # other rules, while it was held
    list(scan_ahead(session, request))
    assert request.seen[False] is first
    assert set(request.seen) == {False, True}


def test_a_held_request_whose_client_left_while_it_was_decided_is_over_and_recorded():
    abandoned = []
    session = SimpleNamespace(complete=lambda *_: None, abandon=abandoned.append)
    dropped = []
    router = SimpleNamespace(session=session, client=None, send_to_client=lambda _event: None, drop=dropped.append)
    stream = Stream(router, 1)

    def decide(stream):
        stream.request.held = PendingContent()
        stream.queue.append(RequestProtocolError(1, "reset", ErrorCode.CANCEL))
        return True

    router.decide = decide
    head = Head(b"HTTP/2.0", b"POST", b"", b"", b"/", ())
    assert list(stream.state_request_head(RequestHeaders(1, head, end_stream=False))) == []
    assert (stream.request_state, stream.response_state) == (RequestState.OVER, ResponseState.OVER)
    assert (abandoned, dropped) == ([stream.request], [stream])
