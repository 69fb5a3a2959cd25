"""Requests that were approved: they pass for as long as their grant holds, and no more of them than it gives."""

import contextlib
import json
import ssl

import pytest

from proxy.approvals.leases import Leases
from proxy.inspection.stages.approval import PendingApprovals
from tests.proxy.inspection.asking_harness import ASK, READ, WRITE
from tests.proxy.inspection.inspection_clients import rest, until, wait_for


def test_an_answer_that_comes_down_under_a_grant_is_cut_when_that_ends(desk, origins):
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
def test_what_was_granted_and_is_over_before_it_passes_is_denied(desk, monkeypatch, do):
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


def test_no_more_of_a_body_leaves_than_is_granted(desk):
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
