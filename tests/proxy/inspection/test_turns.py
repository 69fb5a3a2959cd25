"""Work that continues in a later turn: nothing is lost, and recorded events stay correct.

Every turn ends after the smallest piece of work here. Tests of other modules are run again that way.
"""

import asyncio
import socket

import pytest

from proxy.inspection.router import HttpRouter
from proxy.inspection.websocket import Switched
from tests.proxy.inspection.clients import close_abruptly, read_until
from tests.proxy.inspection.inspection_lab import make_site, post
from tests.proxy.inspection.test_cut_connections import (  # noqa: F401 - run again
    early_end,
    test_bytes_before_a_server_cut_are_delivered,
    test_http2_client_receives_the_bytes_before_a_server_cut,
    test_upload_bytes_before_a_client_cut_are_delivered,
)
from tests.proxy.inspection.test_fail_closed import hook_lab  # noqa: F401 - a fixture
from tests.proxy.inspection.test_fail_closed import test_hook_that_raises_ends_the_connection as raises_in
from tests.proxy.inspection.test_http2 import (  # noqa: F401 - run again
    connect_http2,
    test_request_ended_while_it_waits_for_a_stream_is_not_sent,
    test_waiting_requests_move_to_another_connection_if_repeatable,
)
from tests.proxy.inspection.test_session import (  # noqa: F401 - run again
    test_body_piece_in_the_scan_is_not_sent_once_rules_deny_it,
    test_nothing_is_sent_until_a_long_review_is_finished,
    test_queued_body_piece_is_not_sent_once_rules_deny_it,
)
from tests.proxy.inspection.test_websocket import (  # noqa: F401 - run again
    HANDSHAKE_ANSWER,
    WEBSOCKET_ALLOWED,
    client_frame,
    format_head,
    make_websocket_site,
    open_websocket,
    test_client_that_ends_a_websocket_is_recorded_as_passed,
    test_server_cut_after_a_close_frame_is_recorded_as_passed,
    test_server_cut_resets_the_client,
    test_websocket_relays_bytes_both_ways,
)
from tests.support.waiting import wait_until


@pytest.fixture(autouse=True)
def _a_turn_for_each_piece_of_work(monkeypatch):
    monkeypatch.setattr("proxy.inspection.connection.SLICE", 0.0)


def test_connection_ends_although_its_end_handler_raises(hook_lab, monkeypatch):  # noqa: F811
    raises_in(hook_lab, monkeypatch, "InspectedConnection.gone")


@pytest.mark.parametrize("tls", [True, False], ids=["tls", "plain"])
def test_server_reset_before_its_request_is_sent_is_answered_502(gate, origins, monkeypatch, tls):
    """The reset may arrive while queued work waits for another turn, and no further event follows."""
    real = HttpRouter.opened

    def late(router, server, problem):
        server.transport._handle_end(cut=True)
        real(router, server, problem)

    monkeypatch.setattr(HttpRouter, "opened", late)
    site = make_site(gate, origins.web("good.example", tls=tls, alpn=["http/1.1"]), tls=tls)
    with site.connect() as connection:
        connection.sendall(f"HEAD / HTTP/1.1\r\nHost: {site.host}\r\n\r\n".encode())
        assert read_until(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 502 ")
    wait_until(lambda: gate.events("request.completed"))
    (completed,) = gate.events("request.completed")
    assert (completed["outcome"], completed["reason"]) == ("failed", "upstream_failed")


def test_client_reset_behind_its_end_resets_the_server(gate, origins, monkeypatch):
    """Queued bytes before that end are dropped, so the server must not take its data for complete."""
    received, started = [], []
    real = Switched._pass_up

    def endless(websocket, event):
        if not getattr(event, "data", b""):
            started.append(event)
            while True:
                yield
        yield from real(websocket, event)

    def answer(connection, _head):
        connection.sendall(format_head("HTTP/1.1 101 Switching Protocols", HANDSHAKE_ANSWER).encode())
        try:
            while data := connection.recv(100):
                received.append(data)
            received.append("an end")
        except ConnectionResetError:
            received.append("a reset")

    monkeypatch.setattr(Switched, "_pass_up", endless)
    site = make_site(gate, origins.script(answer, "good.example"), tls=False, http=WEBSOCKET_ALLOWED)
    connection = open_websocket(site)
    read_until(connection, b"\r\n\r\n")
    connection.sendall(client_frame(b"hello"))
    wait_until(lambda: received)
    connection.shutdown(socket.SHUT_WR)
    wait_until(lambda: started)
    close_abruptly(connection)
    wait_until(lambda: len(received) > 1)
    assert received == [client_frame(b"hello"), "a reset"]


def test_head_timeout_does_not_apply_while_the_body_is_scanned(gate, origins, slow_scan):
    site = make_site(gate, origins.web("good.example", tls=False), tls=False)
    with site.connect() as connection:
        connection.sendall(b"POST /upload HTTP/1.1\r\n")
        wait_until(lambda: gate.inspection._engine is not None and gate.inspection._engine._connections)
        (one,) = gate.inspection._engine._connections.values()
        wait_until(lambda: one._head == 1)
        connection.sendall(f"Host: {site.host}\r\nContent-Length: 5\r\n\r\nhello".encode())
        assert slow_scan.started.wait(30)
        gate.loop.run(lambda: one.tick(one._head_due))
        slow_scan.release.set()
        assert read_until(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")


def test_ended_connections_give_the_others_no_extra_turns(gate, origins, slow_scan):
    site = make_site(gate, origins.web("good.example", tls=False), tls=False)
    turns = []

    async def in_ten_rounds():
        engine = gate.inspection._engine
        (one,) = engine._connections.values()
        go_on = one.resume
        one.resume = lambda: (turns.append(1), go_on())
        engine._postponed.clear()
        for _ in range(10):
            ended = object()
            engine.postpone(ended)
            engine._postponed.pop(ended)  # as `forget` does
        engine.postpone(one)
        for _ in range(10):
            await asyncio.sleep(0)
        return len(turns)

    with site.connect() as connection:
        post(site, connection)
        assert slow_scan.started.wait(30)
        assert 1 <= gate.loop.run(in_ten_rounds) <= 11
