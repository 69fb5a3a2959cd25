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
from tests.proxy.inspection.approvals_lab import ASK, BOTH, READ, WRITE
from tests.proxy.inspection.clients import Client, cut_off, rest, until, wait_for
from tests.proxy.inspection.stages.secret_injection_lab import REAL, SHOWN, secret

GONE = "the client went away while people were asked"


@BOTH
def test_pending_request_is_sent_only_after_it_is_approved(desk, monkeypatch):
    looked = []
    known = Dialer.known
    monkeypatch.setattr(Dialer, "known", lambda *what: looked.append(what) or known(*what))
    with desk.place.connect() as connection:
        connection.sendall(desk.request(more="Connection: close\r\n"))
        id_ = desk.question()
        assert desk.untouched()
        assert all(attempt.granted for _, _, attempt in looked), "only whether an approval would let it out"
        assert desk.told() == []
        desk.do(desk.people.approve, id_)
        assert rest(connection).startswith(b"HTTP/1.1 200")
    assert [request.target for request in desk.origin.requests] == ["/upload"]
    assert desk.told() == [("approval_granted", id_)]
    (asked,) = [word.question for word in desk.people.said if isinstance(word, Submit)]
    assert (asked.kind, asked.method, asked.path, asked.size) == ("request", "POST", "/upload", 5)
    (connection,) = desk.gate.events("connection.decided")
    assert asked.event == connection["id"]


def test_name_under_a_wildcard_is_not_resolved_before_approval(desk, monkeypatch):
    looked = []
    known = Dialer.known
    monkeypatch.setattr(Dialer, "known", lambda *what: looked.append(what) or known(*what))
    desk.rules(READ, WRITE, ASK.replace("to: good.example", "to: '*.example'"))
    with desk.place.connect() as connection:
        connection.sendall(desk.request(more="Connection: close\r\n"))
        id_ = desk.question()
        assert looked == []
        desk.do(desk.people.approve, id_)
        assert rest(connection).startswith(b"HTTP/1.1 200")


INSIDE = "127.0.0.0/8"  # where the origin is
# The rules, and whether people are asked about a POST; what becomes of it where they aren't
BY_ADDRESS = [
    ((ASK.replace("ask,", f"ask, resolves_to: [{INSIDE}],", 1),), "approval_granted"),
    ((READ, ASK.replace("ask,", f"ask, resolves_to: [{INSIDE}],", 1)), "approval_granted"),
    # what another rule lets out is asked about once it turns out to lead inside
    ((WRITE, ASK.replace("ask,", f"ask, resolves_to: [{INSIDE}],", 1)), "approval_granted"),
    ((WRITE, "{id: inside, to: '*', resolves_to: [127.0.0.0/8], action: ask}"), "approval_granted"),
    # an approval would open nothing, so nobody is asked
    ((READ, ASK), "address_not_listed"),
    ((ASK,), "non_public_address"),
    ((ASK.replace("ask,", "ask, resolves_to: [10.0.0.0/8],", 1),), "address_not_listed"),
]


@pytest.mark.parametrize(("rules", "reason"), BY_ADDRESS)
def test_approval_of_a_private_address_is_requested_only_if_it_helps(desk, rules, reason):
    desk.rules(*rules)
    with desk.place.connect() as connection:
        connection.sendall(desk.request(more="Connection: close\r\n"))
        if reason == "approval_granted":
            id_ = desk.question()
            assert desk.untouched()
            assert desk.told() == []
            desk.do(desk.people.approve, id_)
            assert rest(connection).startswith(b"HTTP/1.1 200")
            assert desk.told() == [(reason, id_)]
            return
        assert rest(connection).startswith(b"HTTP/1.1 403")
    assert desk.told() == [(reason, "")]
    assert desk.people.asked() == []
    assert desk.untouched()
    (decided,) = desk.gate.events("request.decided")
    assert (decided["verdict"], decided["outcome"], decided["rules"]) == ("deny", "blocked", ["t:ask"])


def test_request_with_two_pending_approvals_needs_both(desk):
    desk.rules(WRITE, ASK, "{id: inside, to: '*', resolves_to: [127.0.0.0/8], action: ask}")
    with desk.place.connect() as connection:
        connection.sendall(desk.request(more="Connection: close\r\n"))
        desk.do(desk.people.approve, desk.question())
        assert desk.untouched()
        desk.do(desk.people.approve, desk.question(2))
        assert rest(connection).startswith(b"HTTP/1.1 200")
    assert len(desk.told()) == 1


def test_100_continue_is_sent_only_after_approval(desk):
    with desk.place.connect() as connection:
        head = desk.request(more="Connection: close\r\nExpect: 100-continue\r\n", body="hello")
        connection.sendall(head.removesuffix(b"hello"))
        id_ = desk.question()
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(1)  # no `100 Continue`
        connection.settimeout(30)
        desk.do(desk.people.approve, id_)
        assert until(connection, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"hello")
        assert rest(connection).startswith(b"HTTP/1.1 200")


def test_timed_out_request_names_its_approval_and_its_retry_passes(desk):
    with desk.place.connect() as connection:
        connection.sendall(desk.request())
        id_ = desk.question()
        desk.do(desk.people.pass_, 61)
        answer = rest(connection)
    head, _, body = answer.partition(b"\r\n\r\n")
    said = json.loads(body)
    assert head.startswith(b"HTTP/1.1 403")
    assert f';approval="{id_}"'.encode() in head
    assert (said["reason"], said["approval"]) == ("approval_timeout", id_)
    assert (
        said["remedy"]
        == f"it waits for approval {id_}: try the same again, which passes once that is given, or asks again"
    )
    assert said["ask"] == f"http://exeat.internal/requests/{id_}"
    assert desk.untouched()
    desk.do(desk.people.approve, id_)
    assert desk.place.curl("/upload", "-d", "hello")[0] == 0
    assert [request.target for request in desk.origin.requests] == ["/upload"]
    assert desk.told() == [("approval_timeout", id_), ("approval_granted", id_)]


@pytest.mark.parametrize("more", ["", f"Authorization: Bearer {SHOWN}\r\n"], ids=["a body", "a secret"])
def test_approval_does_not_cover_an_added_body_or_secret(desk, more):
    key = secret("key", "good.example", desk.origin.port, Slot(SlotKind.HEADER, "authorization"))
    desk.do(lambda: desk.gate.sandbox.set_secrets(SecretInjector([SecretValue(key, REAL, SHOWN)])))
    body = "" if more else "x" * 1000
    with desk.place.connect() as first, desk.place.connect() as second:
        first.sendall(desk.request(body=""))
        id_ = desk.question()
        second.sendall(desk.request(body=body, more=more))
        assert desk.question(2) != id_
        first.close()
        desk.do(desk.people.approve, id_)
        asked = [word.question for word in desk.people.said if isinstance(word, Submit)]
        assert [(one.size, one.secrets) for one in asked] == [(0, ()), (len(body), ("key",) if more else ())]
        assert desk.place.curl("/upload", "-X", "POST")[0] == 0
        desk.do(desk.people.reject, desk.question(2))
        assert until(second, b"\r\n\r\n").startswith(b"HTTP/1.1 403")
    assert len(desk.origin.requests) == 1


@BOTH
def test_rejected_request_is_answered_with_the_reason(desk):
    with desk.place.connect() as connection:
        connection.sendall(desk.request())
        id_ = desk.question()
        desk.do(desk.people.reject, id_, "use the staging host")
        said = json.loads(rest(connection).partition(b"\r\n\r\n")[2])
    assert (said["reason"], said["detail"], said["approval"]) == ("approval_denied", "use the staging host", id_)
    assert desk.untouched()
    assert desk.told() == [("approval_denied", id_)]


def test_pending_stream_does_not_hold_up_other_streams(desk):
    client = Client(desk.place)
    try:
        held = client.request("/upload", "POST", end=False)
        client.h2.send_data(held, b"hello", end_stream=True)
        client.flush()
        id_ = desk.question()
        other = client.request("/")
        assert client.status(other) == "200"
        assert [request.target for request in desk.origin.requests] == ["/"]
        desk.do(desk.people.approve, id_)
        assert client.status(held) == "200"
        assert desk.told() == [("rule", ""), ("approval_granted", id_)]
    finally:
        client.close()


def test_reset_stream_withdraws_its_approval_request(desk):
    client = Client(desk.place)
    try:
        held = client.request("/upload", "POST", end=False)
        id_ = desk.question()
        client.h2.reset_stream(held, h2.errors.ErrorCodes.CANCEL)
        client.flush()
        wait_for(lambda: any(isinstance(word, Withdraw) for word in desk.people.said))
        wait_for(desk.told)
        assert desk.told() == [("approval_timeout", id_)]
        assert client.status(client.request("/")) == "200"  # the connection goes on
        assert [request.target for request in desk.origin.requests] == ["/"]
    finally:
        client.close()


LEAVING = {
    "whose request is whole": ("POST", "hello", "close"),
    "whose body isn't read": ("POST", "x" * 40_000, "close"),
    "with a reset": ("POST", "hello", "reset"),
    "that ends its side": ("POST", "", "shutdown"),
}


@pytest.mark.parametrize("desk", [False], ids=["clear"], indirect=True)
@pytest.mark.parametrize(("method", "body", "how"), LEAVING.values(), ids=LEAVING)
def test_client_that_leaves_withdraws_its_approval_request(desk, method, body, how):
    connection = desk.place.connect()
    connection.sendall(desk.request(method, body=body))
    id_ = desk.question()
    if how == "shutdown":
        connection.shutdown(1)
    elif how == "reset":
        cut_off(connection)
    else:
        connection.close()
    wait_for(lambda: any(isinstance(word, Withdraw) for word in desk.people.said))
    wait_for(desk.told)
    assert desk.told() == [("approval_timeout", id_)]
    (event,) = desk.gate.events("request.decided")
    assert event["detail"] == GONE
    desk.do(desk.people.approve, id_)
    desk.gate.wait_closed()
    assert desk.untouched()
    connection.close()


def test_pending_request_is_denied_when_the_registry_dies(desk):
    with desk.place.connect() as connection:
        connection.sendall(desk.request())
        id_ = desk.question()
        desk.do(desk.people.kill)
        said = json.loads(rest(connection).partition(b"\r\n\r\n")[2])
    assert (said["reason"], said["approval"]) == ("approval_unavailable", id_)
    assert desk.place.curl("/upload", "-f", "-d", "hello")[0] == 22
    assert desk.untouched()


RELOADS = {
    "a deny": ((READ, "{id: no, to: good.example, action: deny, http: {methods: [POST]}}"), b"403", "rule", 0),
    "an allow": ((READ, WRITE), b"200", "rule", 1),
    "no rule at all": (("{id: other, to: other.example, action: allow}",), b"", "no_rule", 0),
}


@pytest.mark.parametrize(("rules", "status", "reason", "sent"), RELOADS.values(), ids=RELOADS)
def test_reload_decides_a_pending_request_at_once(desk, rules, status, reason, sent):
    with desk.place.connect() as connection:
        connection.sendall(desk.request(more="Connection: close\r\n"))
        desk.question()
        desk.rules(*rules)
        desk.review()
        answer = b""
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            answer = rest(connection)
    assert answer[9:12] == status
    wait_for(desk.told)
    assert [line[0] for line in desk.told()] == [reason]
    wait_for(lambda: any(isinstance(word, Withdraw) for word in desk.people.said))
    assert len(desk.origin.requests) == sent


def test_reload_with_the_same_ask_keeps_the_approval_pending(desk):
    with desk.place.connect() as connection:
        connection.sendall(desk.request(more="Connection: close\r\n"))
        id_ = desk.question()
        desk.rules(READ, WRITE, ASK, "{id: other, to: other.example, action: allow}")
        desk.review()
        desk.do(desk.people.approve, id_)
        assert rest(connection).startswith(b"HTTP/1.1 200")
    assert not any(isinstance(word, Withdraw) for word in desk.people.said)


def test_exception_while_pending_sends_nothing(desk, monkeypatch):
    with desk.place.connect() as connection:
        connection.sendall(desk.request())
        id_ = desk.question()
        monkeypatch.setattr("proxy.inspection.stages.approval.PendingApproval.granted", property(lambda _: 1 / 0))
        desk.do(desk.people.approve, id_)
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            assert rest(connection) == b""
    wait_for(lambda: desk.gate.events("gate.error"))
    assert desk.untouched()
    wait_for(desk.told)
    assert [line[0] for line in desk.told()] == ["gate_error"]


def test_request_beyond_the_pending_limit_is_denied_at_once(desk):
    """The registry bounds it, and the gate says so."""
    connections = []
    for number in range(21):
        connections.append(desk.place.connect())
        connections[-1].sendall(desk.request(path=f"/{number}"))
        if number < 20:
            desk.question(number + 1)
    said = json.loads(rest(connections[-1]).partition(b"\r\n\r\n")[2])
    assert said["reason"] == "approval_flood"
    assert desk.untouched()
    for connection in connections:
        connection.close()


TAINTED = ASK.replace("action: ask", "action: ask, when: tainted")


def test_taint_by_an_untrusted_read_makes_the_next_upload_ask(desk):
    desk.rules(READ.replace("action: allow", "action: allow, trust: untrusted"), WRITE, TAINTED)
    assert desk.place.curl("/upload", "-d", "hello")[0] == 0
    assert desk.people.tainted_by() == []
    assert desk.place.curl("/")[0] == 0
    wait_for(desk.people.tainted_by)
    (source,) = desk.people.tainted_by()
    assert (source.rule, source.destination) == ("t:read", f"good.example:{desk.origin.port}")
    assert source.event == desk.gate.events("request.decided")[-1]["id"]
    with desk.place.connect() as connection:
        connection.sendall(desk.request(more="Connection: close\r\n"))
        id_ = desk.question()
        assert [request.method for request in desk.origin.requests] == ["POST", "GET"]
        desk.do(desk.people.approve, id_)
        assert rest(connection).startswith(b"HTTP/1.1 200")
    (asked,) = [word.question for word in desk.people.said if isinstance(word, Submit)]
    assert [source.rule for source in asked.tainted_by] == ["t:read"]


def test_untrusted_read_is_denied_if_the_taint_cannot_be_recorded(desk, monkeypatch):
    desk.rules(READ.replace("action: allow", "action: allow, trust: untrusted"), WRITE, TAINTED)
    monkeypatch.setattr(type(desk.gate.sandbox.approvals), "tainted", lambda *_: False)
    _, body, _ = desk.place.curl("/")
    assert json.loads(body)["reason"] == "approval_unavailable"
    assert desk.untouched()
    wait_for(lambda: desk.gate.events("request.completed"))
    assert desk.gate.events("request.completed")[0]["outcome"] == "blocked"


def test_approval_that_would_have_no_effect_is_not_requested(desk):
    desk.rules(READ, TAINTED)
    desk.gate.sandbox.tainted = True
    said = json.loads(desk.place.curl("/upload", "-d", "hello")[1])
    assert (said["reason"], said["rules"]) == ("approval_unavailable", ["t:ask"])
    assert said["detail"] == "no rule allows this, so an approval of what `t:ask` asks would have no effect"
    assert desk.people.asked() == []
    assert desk.untouched()


# --- grants ---


def test_response_is_cut_when_its_grant_is_revoked(desk, origins):
    def answer(connection, _head):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
        rest(connection)

    desk.origin = origins.script(answer, "good.example", tls=True)
    desk.place.port, desk.place.door = desk.origin.port, desk.gate.door("good.example", desk.origin.port)
    desk.rules(READ, WRITE, ASK.replace("[POST, DELETE]", "[GET]"))
    with desk.place.connect() as connection:
        connection.sendall(desk.request("GET", "/", body=""))
        id_ = desk.question()
        desk.do(desk.people.approve, id_, "1h")
        assert until(connection, b"hello").endswith(b"hello")
        desk.do(desk.people.revoke, id_)
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            rest(connection)
    wait_for(lambda: desk.gate.events("request.completed"))
    (completed,) = desk.gate.events("request.completed")
    assert (completed["outcome"], completed["reason"], completed["rules"]) == ("blocked", "expired", ["t:ask"])


def _forget_the_registry(desk, monkeypatch):
    monkeypatch.setattr(desk.gate.sandbox, "approvals", None)


def _end_the_grant(_desk, monkeypatch):
    monkeypatch.setattr(Leases, "enter", lambda *_: None)


@pytest.mark.parametrize("do", [_forget_the_registry, _end_the_grant])
def test_request_is_denied_if_its_grant_ends_before_it_is_sent(desk, monkeypatch, do):
    settle = PendingApprovals.settle

    def meanwhile(pending, one):
        do(desk, monkeypatch)
        settle(pending, one)

    monkeypatch.setattr(PendingApprovals, "settle", meanwhile)
    with desk.place.connect() as connection:
        connection.sendall(desk.request(more="Connection: close\r\n"))
        id_ = desk.question()
        desk.do(desk.people.approve, id_, "1h")
        assert json.loads(rest(connection).partition(b"\r\n\r\n")[2])["reason"] == "expired"
    assert desk.told() == [("expired", id_)]
    assert desk.untouched()


def test_upload_is_cut_at_the_bytes_that_were_granted(desk):
    with desk.place.connect() as connection:
        connection.sendall(desk.request(body="x" * 100_000))
        id_ = desk.question()
        desk.do(desk.people.approve, id_, "bytes 20KB")
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            rest(connection)
    wait_for(lambda: desk.gate.events("request.completed"))
    (completed,) = desk.gate.events("request.completed")
    assert (completed["outcome"], completed["reason"]) == ("blocked", "limit_exceeded")
    assert completed["bytes"]["up"] <= 20 * 1024
