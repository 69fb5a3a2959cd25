"""Requests that need an approval: pending at their head, then allowed for as long as the grant holds, or denied."""

import contextlib
import json
import ssl

import h2.errors
import h2.events
import pytest

from proxy.approvals.leases import Leases
from proxy.approvals.protocol import Submit, Withdraw
from proxy.dialing.dialer import Dialer
from proxy.inspection.stages.approval import PendingApprovals
from proxy.secrets import SecretInjector, SecretValue
from rules.secrets import Slot, SlotKind
from tests.proxy.inspection.approvals_lab import ASK, READ, TLS_AND_PLAIN, WRITE
from tests.proxy.inspection.clients import Client, close_abruptly, read_all, read_until
from tests.proxy.inspection.stages.secret_injection_lab import REAL, SHOWN, secret
from tests.support.waiting import wait_until

CLIENT_LEFT = "the client went away while people were asked"


@TLS_AND_PLAIN
def test_pending_request_is_sent_only_after_it_is_approved(approvals_lab, monkeypatch):
    lookups = []
    known = Dialer.known
    monkeypatch.setattr(Dialer, "known", lambda *what: lookups.append(what) or known(*what))
    with approvals_lab.site.connect() as connection:
        connection.sendall(approvals_lab.request(more="Connection: close\r\n"))
        id_ = approvals_lab.approval_id()
        assert approvals_lab.nothing_sent()
        assert all(attempt.granted for _, _, attempt in lookups), (
            "a lookup must only check whether an approval would help"
        )
        assert approvals_lab.decided() == []
        approvals_lab.run(approvals_lab.people.approve, id_)
        assert read_all(connection).startswith(b"HTTP/1.1 200")
    assert [request.target for request in approvals_lab.origin.requests] == ["/upload"]
    assert approvals_lab.decided() == [("approval_granted", id_)]
    (submitted,) = [word.question for word in approvals_lab.people.said if isinstance(word, Submit)]
    assert (submitted.kind, submitted.method, submitted.path, submitted.size) == ("request", "POST", "/upload", 5)
    (connection,) = approvals_lab.gate.events("connection.decided")
    assert submitted.event == connection["id"]


def test_name_under_a_wildcard_is_not_resolved_before_approval(approvals_lab, monkeypatch):
    lookups = []
    known = Dialer.known
    monkeypatch.setattr(Dialer, "known", lambda *what: lookups.append(what) or known(*what))
    approvals_lab.rules(READ, WRITE, ASK.replace("to: good.example", "to: '*.example'"))
    with approvals_lab.site.connect() as connection:
        connection.sendall(approvals_lab.request(more="Connection: close\r\n"))
        id_ = approvals_lab.approval_id()
        assert lookups == []
        approvals_lab.run(approvals_lab.people.approve, id_)
        assert read_all(connection).startswith(b"HTTP/1.1 200")


INSIDE = "127.0.0.0/8"  # where the origin is
# Rules, and the reason of the decision on a POST; `approval_granted`: an approval was requested
BY_ADDRESS = [
    ((ASK.replace("ask,", f"ask, resolves_to: [{INSIDE}],", 1),), "approval_granted"),
    ((READ, ASK.replace("ask,", f"ask, resolves_to: [{INSIDE}],", 1)), "approval_granted"),
    # a request that another rule allows needs approval once its address turns out to be private
    ((WRITE, ASK.replace("ask,", f"ask, resolves_to: [{INSIDE}],", 1)), "approval_granted"),
    ((WRITE, "{id: inside, to: '*', resolves_to: [127.0.0.0/8], action: ask}"), "approval_granted"),
    # an approval would have no effect, so none is requested
    ((READ, ASK), "address_not_listed"),
    ((ASK,), "non_public_address"),
    ((ASK.replace("ask,", "ask, resolves_to: [10.0.0.0/8],", 1),), "address_not_listed"),
]


@pytest.mark.parametrize(("rules", "reason"), BY_ADDRESS)
def test_approval_of_a_private_address_is_requested_only_if_it_helps(approvals_lab, rules, reason):
    approvals_lab.rules(*rules)
    with approvals_lab.site.connect() as connection:
        connection.sendall(approvals_lab.request(more="Connection: close\r\n"))
        if reason == "approval_granted":
            id_ = approvals_lab.approval_id()
            assert approvals_lab.nothing_sent()
            assert approvals_lab.decided() == []
            approvals_lab.run(approvals_lab.people.approve, id_)
            assert read_all(connection).startswith(b"HTTP/1.1 200")
            assert approvals_lab.decided() == [(reason, id_)]
            return
        assert read_all(connection).startswith(b"HTTP/1.1 403")
    assert approvals_lab.decided() == [(reason, "")]
    assert approvals_lab.people.asked() == []
    assert approvals_lab.nothing_sent()
    (decided,) = approvals_lab.gate.events("request.decided")
    assert (decided["verdict"], decided["outcome"], decided["rules"]) == ("deny", "blocked", ["t:ask"])


def test_request_with_two_pending_approvals_needs_both(approvals_lab):
    approvals_lab.rules(WRITE, ASK, "{id: inside, to: '*', resolves_to: [127.0.0.0/8], action: ask}")
    with approvals_lab.site.connect() as connection:
        connection.sendall(approvals_lab.request(more="Connection: close\r\n"))
        approvals_lab.run(approvals_lab.people.approve, approvals_lab.approval_id())
        assert approvals_lab.nothing_sent()
        approvals_lab.run(approvals_lab.people.approve, approvals_lab.approval_id(2))
        assert read_all(connection).startswith(b"HTTP/1.1 200")
    assert len(approvals_lab.decided()) == 1


def test_100_continue_is_sent_only_after_approval(approvals_lab):
    with approvals_lab.site.connect() as connection:
        head = approvals_lab.request(more="Connection: close\r\nExpect: 100-continue\r\n", body="hello")
        connection.sendall(head.removesuffix(b"hello"))
        id_ = approvals_lab.approval_id()
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(1)  # no `100 Continue`
        connection.settimeout(30)
        approvals_lab.run(approvals_lab.people.approve, id_)
        assert read_until(connection, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"hello")
        assert read_all(connection).startswith(b"HTTP/1.1 200")


def test_timed_out_request_names_its_approval_and_its_retry_passes(approvals_lab):
    with approvals_lab.site.connect() as connection:
        connection.sendall(approvals_lab.request())
        id_ = approvals_lab.approval_id()
        approvals_lab.run(approvals_lab.people.advance, 61)
        answer = read_all(connection)
    head, _, body = answer.partition(b"\r\n\r\n")
    page = json.loads(body)
    assert head.startswith(b"HTTP/1.1 403")
    assert f';approval="{id_}"'.encode() in head
    assert (page["reason"], page["approval"]) == ("approval_timeout", id_)
    assert (
        page["remedy"]
        == f"it waits for approval {id_}: try the same again, which passes once that is given, or asks again"
    )
    assert page["ask"] == f"http://exeat.internal/requests/{id_}"
    assert approvals_lab.nothing_sent()
    approvals_lab.run(approvals_lab.people.approve, id_)
    assert approvals_lab.site.curl("/upload", "-d", "hello")[0] == 0
    assert [request.target for request in approvals_lab.origin.requests] == ["/upload"]
    assert approvals_lab.decided() == [("approval_timeout", id_), ("approval_granted", id_)]


@pytest.mark.parametrize("more", ["", f"Authorization: Bearer {SHOWN}\r\n"], ids=["a body", "a secret"])
def test_approval_does_not_cover_an_added_body_or_secret(approvals_lab, more):
    key = secret("key", "good.example", approvals_lab.origin.port, Slot(SlotKind.HEADER, "authorization"))
    approvals_lab.run(lambda: approvals_lab.gate.sandbox.set_secrets(SecretInjector([SecretValue(key, REAL, SHOWN)])))
    body = "" if more else "x" * 1000
    with approvals_lab.site.connect() as first, approvals_lab.site.connect() as second:
        first.sendall(approvals_lab.request(body=""))
        id_ = approvals_lab.approval_id()
        second.sendall(approvals_lab.request(body=body, more=more))
        assert approvals_lab.approval_id(2) != id_
        first.close()
        approvals_lab.run(approvals_lab.people.approve, id_)
        submitted = [word.question for word in approvals_lab.people.said if isinstance(word, Submit)]
        assert [(one.size, one.secrets) for one in submitted] == [(0, ()), (len(body), ("key",) if more else ())]
        assert approvals_lab.site.curl("/upload", "-X", "POST")[0] == 0
        approvals_lab.run(approvals_lab.people.reject, approvals_lab.approval_id(2))
        assert read_until(second, b"\r\n\r\n").startswith(b"HTTP/1.1 403")
    assert len(approvals_lab.origin.requests) == 1


@TLS_AND_PLAIN
def test_rejected_request_is_answered_with_the_reason(approvals_lab):
    with approvals_lab.site.connect() as connection:
        connection.sendall(approvals_lab.request())
        id_ = approvals_lab.approval_id()
        approvals_lab.run(approvals_lab.people.reject, id_, "use the staging host")
        page = json.loads(read_all(connection).partition(b"\r\n\r\n")[2])
    assert (page["reason"], page["detail"], page["approval"]) == ("approval_denied", "use the staging host", id_)
    assert approvals_lab.nothing_sent()
    assert approvals_lab.decided() == [("approval_denied", id_)]


def test_pending_stream_does_not_hold_up_other_streams(approvals_lab):
    client = Client(approvals_lab.site)
    try:
        held = client.request("/upload", "POST", end=False)
        client.h2.send_data(held, b"hello", end_stream=True)
        client.flush()
        id_ = approvals_lab.approval_id()
        other = client.request("/")
        assert client.status(other) == "200"
        assert [request.target for request in approvals_lab.origin.requests] == ["/"]
        approvals_lab.run(approvals_lab.people.approve, id_)
        assert client.status(held) == "200"
        assert approvals_lab.decided() == [("rule", ""), ("approval_granted", id_)]
    finally:
        client.close()


def test_reset_stream_withdraws_its_approval_request(approvals_lab):
    client = Client(approvals_lab.site)
    try:
        held = client.request("/upload", "POST", end=False)
        id_ = approvals_lab.approval_id()
        client.h2.reset_stream(held, h2.errors.ErrorCodes.CANCEL)
        client.flush()
        wait_until(lambda: any(isinstance(word, Withdraw) for word in approvals_lab.people.said))
        wait_until(approvals_lab.decided)
        assert approvals_lab.decided() == [("approval_timeout", id_)]
        assert client.status(client.request("/")) == "200"  # the connection stays open
        assert [request.target for request in approvals_lab.origin.requests] == ["/"]
    finally:
        client.close()


WAYS_TO_LEAVE = {
    "close, request complete": ("POST", "hello", "close"),
    "close, body unread": ("POST", "x" * 40_000, "close"),
    "reset": ("POST", "hello", "reset"),
    "half-close": ("POST", "", "shutdown"),
}


@pytest.mark.parametrize("approvals_lab", [False], ids=["plain"], indirect=True)
@pytest.mark.parametrize(("method", "body", "how"), WAYS_TO_LEAVE.values(), ids=WAYS_TO_LEAVE)
def test_client_that_leaves_withdraws_its_approval_request(approvals_lab, method, body, how):
    connection = approvals_lab.site.connect()
    connection.sendall(approvals_lab.request(method, body=body))
    id_ = approvals_lab.approval_id()
    if how == "shutdown":
        connection.shutdown(1)
    elif how == "reset":
        close_abruptly(connection)
    else:
        connection.close()
    wait_until(lambda: any(isinstance(word, Withdraw) for word in approvals_lab.people.said))
    wait_until(approvals_lab.decided)
    assert approvals_lab.decided() == [("approval_timeout", id_)]
    (event,) = approvals_lab.gate.events("request.decided")
    assert event["detail"] == CLIENT_LEFT
    approvals_lab.run(approvals_lab.people.approve, id_)
    approvals_lab.gate.wait_closed()
    assert approvals_lab.nothing_sent()
    connection.close()


def test_pending_request_is_denied_when_the_registry_dies(approvals_lab):
    with approvals_lab.site.connect() as connection:
        connection.sendall(approvals_lab.request())
        id_ = approvals_lab.approval_id()
        approvals_lab.run(approvals_lab.people.kill)
        page = json.loads(read_all(connection).partition(b"\r\n\r\n")[2])
    assert (page["reason"], page["approval"]) == ("approval_unavailable", id_)
    assert approvals_lab.site.curl("/upload", "-f", "-d", "hello")[0] == 22
    assert approvals_lab.nothing_sent()


RELOADS = {
    "a deny": ((READ, "{id: no, to: good.example, action: deny, http: {methods: [POST]}}"), b"403", "rule", 0),
    "an allow": ((READ, WRITE), b"200", "rule", 1),
    "no rule at all": (("{id: other, to: other.example, action: allow}",), b"", "no_rule", 0),
}


@pytest.mark.parametrize(("rules", "status", "reason", "sent"), RELOADS.values(), ids=RELOADS)
def test_reload_decides_a_pending_request_at_once(approvals_lab, rules, status, reason, sent):
    with approvals_lab.site.connect() as connection:
        connection.sendall(approvals_lab.request(more="Connection: close\r\n"))
        approvals_lab.approval_id()
        approvals_lab.rules(*rules)
        approvals_lab.review()
        answer = b""
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            answer = read_all(connection)
    assert answer[9:12] == status
    wait_until(approvals_lab.decided)
    assert [line[0] for line in approvals_lab.decided()] == [reason]
    wait_until(lambda: any(isinstance(word, Withdraw) for word in approvals_lab.people.said))
    assert len(approvals_lab.origin.requests) == sent


def test_reload_with_the_same_ask_keeps_the_approval_pending(approvals_lab):
    with approvals_lab.site.connect() as connection:
        connection.sendall(approvals_lab.request(more="Connection: close\r\n"))
        id_ = approvals_lab.approval_id()
        approvals_lab.rules(READ, WRITE, ASK, "{id: other, to: other.example, action: allow}")
        approvals_lab.review()
        approvals_lab.run(approvals_lab.people.approve, id_)
        assert read_all(connection).startswith(b"HTTP/1.1 200")
    assert not any(isinstance(word, Withdraw) for word in approvals_lab.people.said)


def test_exception_while_pending_sends_nothing(approvals_lab, monkeypatch):
    with approvals_lab.site.connect() as connection:
        connection.sendall(approvals_lab.request())
        id_ = approvals_lab.approval_id()
        monkeypatch.setattr("proxy.inspection.stages.approval.PendingApproval.granted", property(lambda _: 1 / 0))
        approvals_lab.run(approvals_lab.people.approve, id_)
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            assert read_all(connection) == b""
    wait_until(lambda: approvals_lab.gate.events("gate.error"))
    assert approvals_lab.nothing_sent()
    wait_until(approvals_lab.decided)
    assert [line[0] for line in approvals_lab.decided()] == ["gate_error"]


def test_request_beyond_the_pending_limit_is_denied_at_once(approvals_lab):
    """The registry limits pending requests, and the gate reports the reason."""
    connections = []
    for number in range(21):
        connections.append(approvals_lab.site.connect())
        connections[-1].sendall(approvals_lab.request(path=f"/{number}"))
        if number < 20:
            approvals_lab.approval_id(number + 1)
    page = json.loads(read_all(connections[-1]).partition(b"\r\n\r\n")[2])
    assert page["reason"] == "approval_flood"
    assert approvals_lab.nothing_sent()
    for connection in connections:
        connection.close()


TAINTED = ASK.replace("action: ask", "action: ask, when: tainted")


def test_taint_by_an_untrusted_read_makes_the_next_upload_ask(approvals_lab):
    approvals_lab.rules(READ.replace("action: allow", "action: allow, trust: untrusted"), WRITE, TAINTED)
    assert approvals_lab.site.curl("/upload", "-d", "hello")[0] == 0
    assert approvals_lab.people.tainted_by() == []
    assert approvals_lab.site.curl("/")[0] == 0
    wait_until(approvals_lab.people.tainted_by)
    (source,) = approvals_lab.people.tainted_by()
    assert (source.rule, source.destination) == ("t:read", f"good.example:{approvals_lab.origin.port}")
    assert source.event == approvals_lab.gate.events("request.decided")[-1]["id"]
    with approvals_lab.site.connect() as connection:
        connection.sendall(approvals_lab.request(more="Connection: close\r\n"))
        id_ = approvals_lab.approval_id()
        assert [request.method for request in approvals_lab.origin.requests] == ["POST", "GET"]
        approvals_lab.run(approvals_lab.people.approve, id_)
        assert read_all(connection).startswith(b"HTTP/1.1 200")
    (submitted,) = [word.question for word in approvals_lab.people.said if isinstance(word, Submit)]
    assert [source.rule for source in submitted.tainted_by] == ["t:read"]


def test_untrusted_read_is_denied_if_the_taint_cannot_be_recorded(approvals_lab, monkeypatch):
    approvals_lab.rules(READ.replace("action: allow", "action: allow, trust: untrusted"), WRITE, TAINTED)
    monkeypatch.setattr(type(approvals_lab.gate.sandbox.approvals), "tainted", lambda *_: False)
    _, body, _ = approvals_lab.site.curl("/")
    assert json.loads(body)["reason"] == "approval_unavailable"
    assert approvals_lab.nothing_sent()
    wait_until(lambda: approvals_lab.gate.events("request.completed"))
    assert approvals_lab.gate.events("request.completed")[0]["outcome"] == "blocked"


def test_approval_that_would_have_no_effect_is_not_requested(approvals_lab):
    approvals_lab.rules(READ, TAINTED)
    approvals_lab.gate.sandbox.tainted = True
    page = json.loads(approvals_lab.site.curl("/upload", "-d", "hello")[1])
    assert (page["reason"], page["rules"]) == ("approval_unavailable", ["t:ask"])
    assert page["detail"] == "no rule allows this, so an approval of what `t:ask` asks would have no effect"
    assert approvals_lab.people.asked() == []
    assert approvals_lab.nothing_sent()


# --- grants ---


def test_response_is_cut_when_its_grant_is_revoked(approvals_lab, origins):
    def answer(connection, _head):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
        read_all(connection)

    approvals_lab.origin = origins.script(answer, "good.example", tls=True)
    approvals_lab.site.port, approvals_lab.site.gate_port = (
        approvals_lab.origin.port,
        approvals_lab.gate.listen_for("good.example", approvals_lab.origin.port),
    )
    approvals_lab.rules(READ, WRITE, ASK.replace("[POST, DELETE]", "[GET]"))
    with approvals_lab.site.connect() as connection:
        connection.sendall(approvals_lab.request("GET", "/", body=""))
        id_ = approvals_lab.approval_id()
        approvals_lab.run(approvals_lab.people.approve, id_, "1h")
        assert read_until(connection, b"hello").endswith(b"hello")
        approvals_lab.run(approvals_lab.people.revoke, id_)
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            read_all(connection)
    wait_until(lambda: approvals_lab.gate.events("request.completed"))
    (completed,) = approvals_lab.gate.events("request.completed")
    assert (completed["outcome"], completed["reason"], completed["rules"]) == ("blocked", "expired", ["t:ask"])


def _remove_registry(approvals_lab, monkeypatch):
    monkeypatch.setattr(approvals_lab.gate.sandbox, "approvals", None)


def _end_the_grant(_desk, monkeypatch):
    monkeypatch.setattr(Leases, "enter", lambda *_: None)


@pytest.mark.parametrize("do", [_remove_registry, _end_the_grant])
def test_request_is_denied_if_its_grant_ends_before_it_is_sent(approvals_lab, monkeypatch, do):
    remove = PendingApprovals.remove

    def meanwhile(pending, one):
        do(approvals_lab, monkeypatch)
        remove(pending, one)

    monkeypatch.setattr(PendingApprovals, "remove", meanwhile)
    with approvals_lab.site.connect() as connection:
        connection.sendall(approvals_lab.request(more="Connection: close\r\n"))
        id_ = approvals_lab.approval_id()
        approvals_lab.run(approvals_lab.people.approve, id_, "1h")
        assert json.loads(read_all(connection).partition(b"\r\n\r\n")[2])["reason"] == "expired"
    assert approvals_lab.decided() == [("expired", id_)]
    assert approvals_lab.nothing_sent()


def test_upload_is_cut_at_the_bytes_that_were_granted(approvals_lab):
    with approvals_lab.site.connect() as connection:
        connection.sendall(approvals_lab.request(body="x" * 100_000))
        id_ = approvals_lab.approval_id()
        approvals_lab.run(approvals_lab.people.approve, id_, "bytes 20KB")
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            read_all(connection)
    wait_until(lambda: approvals_lab.gate.events("request.completed"))
    (completed,) = approvals_lab.gate.events("request.completed")
    assert (completed["outcome"], completed["reason"]) == ("blocked", "limit_exceeded")
    assert completed["bytes"]["up"] <= 20 * 1024
