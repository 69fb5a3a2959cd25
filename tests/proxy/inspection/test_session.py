"""Sessions: stages of each request, and reviews of open requests under new rules or on a new day."""

import contextlib
import threading
from datetime import UTC, date, datetime
from types import SimpleNamespace

import pytest
from mitmproxy.proxy.layers.http._events import ErrorCode, RequestProtocolError

from proxy.dialing.dialer import Dialer
from proxy.inspection import session
from proxy.inspection import session as sessions
from proxy.inspection.connection import InspectedConnection
from proxy.inspection.decide_request import decide_request_again
from proxy.inspection.router import HttpRouter
from proxy.inspection.stages.pending_body import PendingContent
from proxy.inspection.stages.request_context import RequestContext
from proxy.inspection.stages.secret_scan import scan_ahead
from proxy.inspection.stages.stage import Stage
from proxy.inspection.stream import Stream
from proxy.inspection.stream_states import RequestState, ResponseState
from proxy.request.messages import WebOrigin
from proxy.request.mitmproxy_messages import RequestHeaders
from proxy.request.request_head import Head
from proxy.sandbox.sandbox_state import Calendar
from rules.attempt import Attempt, Protocol
from rules.values.names import HostName
from rules.verdicts import Outcome, Scan, Trust
from tests.proxy.inspection.clients import close_abruptly, read_all, read_until
from tests.proxy.inspection.inspection_lab import make_site, post
from tests.support.waiting import wait_until

TODAY = datetime(2026, 3, 1, 23, 59, tzinfo=UTC)


def review(gate, port):
    """Review the open connections, as `proxy.worker.policy_swap` does after a reload."""
    attempt = Attempt(Protocol.HTTP, HostName("good.example"), port, at=gate.sandbox.calendar.today())
    for one in list(gate.inspection._engine._connections.values()):
        one.review(gate.sandbox.policy.decide(attempt))


class PendingDial:
    """A dial without a result yet."""

    def take(self):
        return None

    def cancel(self):
        pass


def send_get(site, connection):
    connection.sendall(f"GET / HTTP/1.1\r\nHost: {site.host}\r\nConnection: close\r\n\r\n".encode())


NEW_RULES = {
    "same addresses": ("127.0.0.0/8", None, 1),
    "other addresses": ("10.0.0.0/8", "address_not_listed", 0),
    "no resolves_to": (None, "non_public_address", 0),
}


@pytest.mark.parametrize("case", NEW_RULES)
def test_address_being_dialed_is_checked_against_new_rules(gate, origins, monkeypatch, case):
    listed, reason, requests = NEW_RULES[case]
    origin = origins.web("good.example", tls=False)
    site = make_site(gate, origin, tls=False, http="{methods: [GET]}")
    calls, real = [], Dialer.connect
    monkeypatch.setattr(Dialer, "connect", lambda *what, **_: calls.append(what) or PendingDial())
    with site.connect() as connection:
        send_get(site, connection)
        wait_until(lambda: calls)
        where = "" if listed is None else f", resolves_to: [{listed}]"
        gate.rules(f"[{{id: b, to: good.example, ports: [{origin.port}/http], action: allow{where}}}]")
        gate.loop.run(review, gate, origin.port)
        monkeypatch.undo()
        gate.loop.run(lambda: calls.append(real(*calls[0])))
        answered = read_all(connection)
    assert answered.startswith(b"HTTP/1.1 200") is (reason is None)
    wait_until(lambda: gate.events("request.completed"))
    (completed,) = gate.events("request.completed")
    assert (completed["outcome"], completed.get("reason")) == (("blocked", reason) if reason else ("passed", None))
    assert len(origin.requests) == requests


@pytest.mark.parametrize(
    ("seconds", "decided"), [(30, ("passed", "rule")), (90, ("blocked", "expired"))], ids=["today", "tomorrow"]
)
def test_request_that_waits_for_dns_at_midnight_uses_the_new_date(gate, origins, monkeypatch, seconds, decided):
    now = [TODAY.timestamp()]
    origin = origins.web("good.example", tls=False)
    site = make_site(gate, origin, tls=False)
    gate.sandbox.calendar = Calendar(lambda: now[0])
    gate.rules(
        f"[{{id: a, to: good.example, resolves_to: [127.0.0.0/8], ports: [{origin.port}/http], "
        "action: allow, until: 2026-03-01}]"
    )
    attempt = Attempt(Protocol.HTTP, HostName("good.example"), origin.port, at=date(2026, 3, 1))
    site.gate_port = gate.listen_for(site.name, site.port, tls=False, decision=gate.sandbox.policy.decide(attempt))
    calls, real = [], Dialer.known
    monkeypatch.setattr(Dialer, "known", lambda *_: None)
    monkeypatch.setattr(Dialer, "find", lambda *what: calls.append(what))
    with site.connect() as connection:
        send_get(site, connection)
        wait_until(lambda: calls)
        now[0] += seconds
        dialer, policy, target, done = calls[0]
        gate.loop.run(lambda: done(real(dialer, policy, target)))
        read_all(connection)
    ((_, _, *outcome),) = gate.decided()
    assert tuple(outcome) == decided
    assert len(origin.requests) == (decided[0] == "passed")


def test_new_idle_timeout_applies_to_an_open_connection(gate, origins):
    origin = origins.web("good.example", tls=False)
    site = make_site(gate, origin, tls=False, idle=3600)
    with site.connect() as connection:
        connection.sendall(f"HEAD / HTTP/1.1\r\nHost: {site.host}\r\n\r\n".encode())
        read_until(connection, b"\r\n\r\n")
        gate.rules(
            f"[{{id: a, to: good.example, resolves_to: [127.0.0.0/8], ports: [{origin.port}/http], "
            "action: allow, idle_timeout: 1s}]"
        )
        gate.loop.run(review, gate, origin.port)
        (closed,) = gate.wait_closed()
    assert closed.reason == "limit_exceeded"


@pytest.mark.parametrize("denied", [True, False])
def test_body_piece_in_the_scan_is_not_sent_once_rules_deny_it(gate, origins, slow_scan, denied):
    received = []

    def answer(connection, _head):
        try:
            received.append(connection.recv(100))
            connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
        except OSError:
            received.append(b"")

    site = make_site(gate, origins.script(answer, "good.example"), tls=False)
    with site.connect() as connection:
        post(site, connection)
        assert slow_scan.started.wait(30)
        if denied:
            gate.rules(
                f"[{{id: b, to: good.example, ports: [{site.port}/http], action: allow, http: {{paths: [/b]}}}}]"
            )
        gate.loop.run(review, gate, site.port)
        slow_scan.release.set()
        wait_until(lambda: received)
    assert received == [b"" if denied else b"hello"]
    wait_until(lambda: gate.events("request.completed"))
    (completed,) = gate.events("request.completed")
    assert (completed["outcome"], completed["bytes"]["down"]) == ("blocked" if denied else "passed", 0)


def test_queued_body_piece_is_not_sent_once_rules_deny_it(gate, origins, monkeypatch):
    received, started, release, end = [], threading.Event(), threading.Event(), threading.Event()
    real = Stream.state_request_body

    def waits(stream, event):  # as if other work before and after it took longer than a turn
        started.set()
        while not release.is_set():
            yield
        yield from real(stream, event) or ()
        while not end.is_set():
            yield

    def answer(connection, _head):
        try:
            received.append(connection.recv(100))
        except OSError:
            received.append(b"")

    monkeypatch.setattr(Stream, "state_request_body", waits)
    site = make_site(gate, origins.script(answer, "good.example"), tls=False)
    rule = f"to: good.example, resolves_to: [127.0.0.0/8], ports: [{site.port}/http], action: allow, scan: off"
    gate.rules(f"[{{id: a, {rule}}}]")
    with site.connect() as connection:
        post(site, connection)
        assert started.wait(30)
        gate.rules(f"[{{id: b, {rule}, http: {{paths: [/b]}}}}]")
        gate.loop.run(review, gate, site.port)
        release.set()
        wait_until(lambda: received)
        end.set()
    assert received == [b""]
    wait_until(lambda: gate.events("request.completed"))
    assert [event["outcome"] for event in gate.events("request.completed")] == ["blocked"]


def test_tick_between_two_slices_does_not_resume_reading(gate, origins, slow_scan):
    site = make_site(gate, origins.web("good.example", tls=False), tls=False)
    paused = []

    def look():
        (one,) = gate.inspection._engine._connections.values()
        one._http.stinted = True  # as if too little buffer was left for its data
        one.tick(one._last)
        paused.append([transport.paused for transport in one.transports])

    with site.connect() as connection:
        post(site, connection)
        assert slow_scan.started.wait(30)
        gate.loop.run(look)
    assert paused == [[True, True]]


def test_client_reset_between_two_slices_resets_the_server(gate, origins, slow_scan):
    received = []

    def answer(connection, _head):
        try:
            received.append(connection.recv(100))
        except ConnectionResetError:
            received.append("a reset")

    site = make_site(gate, origins.script(answer, "good.example"), tls=False)
    connection = site.connect()
    post(site, connection)
    assert slow_scan.started.wait(30)
    close_abruptly(connection)
    wait_until(lambda: received)
    assert received == ["a reset"]


@pytest.mark.parametrize(
    "step", [(HttpRouter, "drop_all"), (InspectedConnection, "_leave_servers")], ids=["steps", "servers"]
)
def test_cleanup_step_that_raises_does_not_skip_the_others(gate, origins, monkeypatch, slow_scan, step):
    received = []
    real = getattr(*step)

    def answer(connection, _head):
        try:
            received.append(connection.recv(100))
        except ConnectionResetError:
            received.append("a reset")

    def broken(one, **more):
        real(one, **more)
        raise ValueError("on purpose")

    site = make_site(gate, origins.script(answer, "good.example"), tls=False)
    connection = site.connect()
    post(site, connection)
    assert slow_scan.started.wait(30)
    monkeypatch.setattr(*step, broken)
    close_abruptly(connection)
    wait_until(lambda: received and gate.events("request.completed"))
    assert received == ["a reset"]
    assert [closed.reason for closed in gate.wait_closed()] == ["gate_error"]
    assert [event["fault"]["detail"] for event in gate.events("gate.error")] == ["ValueError: on purpose"]


def test_nothing_is_sent_until_a_long_review_is_finished(gate, origins, monkeypatch):
    """Like the review of a push with a thousand refs, which yields to other connections between refs."""
    started, release, requested, received = threading.Event(), threading.Event(), threading.Event(), []

    def slow_scan(*what):
        started.set()
        while not release.is_set():
            yield
        return (yield from decide_request_again(*what))

    def answer(connection, _head):
        requested.set()
        try:
            received.append(connection.recv(100))
        except ConnectionResetError:
            received.append(b"")

    monkeypatch.setattr(session, "decide_request_again", slow_scan)
    site = make_site(gate, origins.script(answer, "good.example"), tls=False)
    with site.connect() as connection:
        connection.sendall(f"POST / HTTP/1.1\r\nHost: {site.host}\r\nContent-Length: 5\r\n\r\n".encode())
        assert requested.wait(30)
        gate.rules(f"[{{id: b, to: good.example, ports: [{site.port}/http], action: allow, http: {{paths: [/b]}}}}]")
        gate.loop.run(review, gate, site.port)
        assert started.is_set()
        connection.sendall(b"hello")
        for _ in range(20):  # other turns of the loop
            gate.loop.run(lambda: None)
        assert not received
        release.set()
        wait_until(lambda: received)
    assert received == [b""]


def test_review_of_a_push_yields_once_per_ref(gate):
    gate.rules("[{id: a, to: good.example, action: allow}]")
    attempt = Attempt(Protocol.TLS, HostName("good.example"), 443, at=gate.sandbox.calendar.today())
    assert len(list(decide_request_again(gate.sandbox, (attempt,) * 1000, None))) == 1000


@pytest.mark.parametrize("recordable", [True, False])
def test_source_that_becomes_untrusted_taints_the_task_or_is_blocked(gate, origins, recordable):
    started, release = threading.Event(), threading.Event()

    def answer(connection, _head):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
        started.set()
        release.wait(30)
        with contextlib.suppress(OSError):
            connection.sendall(b"words")

    site = make_site(gate, origins.script(answer, "good.example"), tls=False)
    with site.connect() as connection:
        send_get(site, connection)
        read_until(connection, b"\r\n\r\n")
        if not recordable:
            gate.sandbox.taint = SimpleNamespace(record_read=lambda *_: False)
        rule = f"to: good.example, resolves_to: [127.0.0.0/8], ports: [{site.port}/http], action: allow"
        gate.rules(f"[{{id: a, {rule}, trust: untrusted}}]")
        gate.loop.run(review, gate, site.port)
        release.set()
        assert gate.sandbox.tainted is recordable
        if recordable:
            assert read_until(connection, b"words")
    wait_until(lambda: gate.events("request.completed"))
    (completed,) = gate.events("request.completed")
    assert (completed["outcome"], completed.get("reason")) == (
        ("passed", None) if recordable else ("blocked", "approval_unavailable")
    )


def test_canceled_dials_return_their_descriptors_to_the_quota(gate, origins):
    site = make_site(gate, origins.web("good.example", tls=False), tls=False)
    quota = gate.dialer.descriptors
    with site.connect() as connection:
        wait_until(lambda: gate.inspection._engine and gate.inspection._engine._connections)
        (one,) = gate.inspection._engine._connections.values()

        def leave():
            one._dials.update(dict.fromkeys(range(3), list))
            one._count_servers()
            before = quota.extra
            one._leave_servers()
            return before, quota.extra

        assert gate.loop.run(leave) == (2, 0)
        connection.close()


# --- stages of a request ---


ENDED = []


class Holding(Stage):
    def end(self):
        ENDED.append("holding")


class Broken(Stage):
    def admit(self, request_decision):
        raise ValueError(f"a stage has a fault: {request_decision}")


def test_stage_that_raises_ends_the_stages_before_it(monkeypatch):
    monkeypatch.setattr(sessions, "stages_for", lambda _needs: (Holding, Broken))
    sandbox = SimpleNamespace(secret_injector=None)
    session = sessions.Session(SimpleNamespace(sandbox=sandbox), WebOrigin(HostName("good.example"), 443, tls=True), "")
    request = RequestContext("1", Head(b"HTTP/1.1", b"GET", b"", b"", b"/", ()), body=False)
    decision = SimpleNamespace(outcome=Outcome.PASSED, scan=Scan.OFF, trust=Trust.TRUSTED, limits=())
    with pytest.raises(ValueError, match="a fault"):
        session._through_stages(request, SimpleNamespace(decision=decision, resource=True, grants=()))
    assert ENDED == ["holding"]


def test_long_head_is_scanned_once_for_two_decisions():
    needs = SimpleNamespace(strict_scan=False, names_host=lambda _target: False)
    sandbox = SimpleNamespace(own_secrets=None, secret_injector=None, policy=SimpleNamespace(needs=needs))
    session = sessions.Session(SimpleNamespace(sandbox=sandbox), WebOrigin(HostName("good.example"), 443, tls=True), "")
    request = RequestContext("1", Head(b"HTTP/1.1", b"POST", b"", b"", b"/", ((b"a", b"b" * 8192),)), body=True)
    list(scan_ahead(session, request))
    first = request.seen[False]
    needs.strict_scan = True  # new rules while it is pending
    list(scan_ahead(session, request))
    assert request.seen[False] is first
    assert set(request.seen) == {False, True}


def test_pending_request_whose_client_left_is_over_and_recorded():
    abandoned = []
    session = SimpleNamespace(complete=lambda *_: None, abandon=abandoned.append)
    dropped = []
    router = SimpleNamespace(session=session, client=None, send_to_client=lambda _event: None, drop=dropped.append)
    stream = Stream(router, 1)

    def decide(stream):
        stream.request.pending_body = PendingContent()
        stream.queue.append(RequestProtocolError(1, "reset", ErrorCode.CANCEL))
        return True

    router.decide = decide
    head = Head(b"HTTP/2.0", b"POST", b"", b"", b"/", ())
    assert list(stream.state_request_head(RequestHeaders(1, head, end_stream=False))) == []
    assert (stream.request_state, stream.response_state) == (RequestState.OVER, ResponseState.OVER)
    assert (abandoned, dropped) == ([stream.request], [stream])
