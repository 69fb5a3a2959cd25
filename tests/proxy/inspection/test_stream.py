"""One request and its response: bodies, early ends, clients that leave, and uploads that are refused."""

import contextlib
import hashlib
import itertools
import json
import os
import socket
import struct
import threading
import time

import h2.config
import h2.connection
import h2.errors
import h2.events
import pytest
from hyperframe.frame import DataFrame, GoAwayFrame, RstStreamFrame, SettingsFrame, WindowUpdateFrame

from tests.proxy.inspection.clients import (
    MIB,
    Client,
    close_abruptly,
    read_all,
    read_until,
    resident_memory,
    send_until,
)
from tests.proxy.inspection.inspection_lab import make_site
from tests.support.waiting import wait_until


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_large_download_leaves_memory_flat(gate, origins, version):
    """Gate and origin share this process, so the growth is that of both."""
    site = make_site(gate, origins.web("good.example"))
    site.curl("/bytes/1000", version, "-o", os.devnull)
    before = resident_memory()
    peak = []
    done = threading.Event()

    def watch():
        while not done.wait(0.02):
            peak.append(resident_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    size = (200 if version == "--http1.1" else 60) * MIB
    status, out, err = site.curl(f"/bytes/{size}", version, "-o", os.devnull, "-w", "%{size_download}")
    done.set()
    watcher.join()
    assert (status, out, err) == (0, str(size).encode(), "")
    assert max(peak) - before < 50 * MIB


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
@pytest.mark.parametrize("length", ["with", "without"])
def test_large_upload_arrives_whole(gate, origins, tmp_path, version, length):
    site = make_site(gate, origins.web("good.example"))
    body = tmp_path / "body"
    body.write_bytes(os.urandom(20 * MIB))
    chunked = ["-H", "Transfer-Encoding: chunked"] if length == "without" else []
    site.curl("/ok")  # what is imported for the first one is there
    before = resident_memory()
    status, out, err = site.curl("/upload", version, "-T", body, "-X", "POST", *chunked)
    assert (status, err) == (0, "")
    assert json.loads(out) == {"size": 20 * MIB, "sha256": hashlib.sha256(body.read_bytes()).hexdigest()}
    assert resident_memory() - before < 50 * MIB
    wait_until(lambda: len(gate.events("request.completed")) == 2)
    assert gate.events("request.completed")[1]["bytes"]["up"] == 20 * MIB


def test_http2_body_without_a_length_is_sent_chunked_over_http1(gate, origins, tmp_path):
    """Without chunks an HTTP/1 server would take the body for the next request."""
    heads = []

    def answer(connection, head):
        heads.append(head)
        body = read_until(connection, b"0\r\n\r\n")
        assert b"GET /smuggled" in body
        connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
        return True

    site = make_site(gate, origins.script(answer, "good.example", tls=True, alpn=["http/1.1"]))
    body = tmp_path / "body"
    body.write_bytes(b"GET /smuggled HTTP/1.1\r\nHost: good.example\r\n\r\n")
    status, out, err = site.curl("/", "--http2", "-T", body, "-H", "Content-Length:", "-w", "%{http_code}")
    assert (status, out, err) == (0, b"204", "")
    assert b"transfer-encoding: chunked" in heads[0].lower()
    assert len(heads) == 1


def test_denied_upload_is_not_read(gate, origins):
    origin = origins.web("good.example")
    site = make_site(gate, origin, http="{methods: [GET]}")
    before = resident_memory()
    with site.connect() as connection:
        connection.sendall(f"POST / HTTP/1.1\r\nHost: {site.host}\r\nContent-Length: 10000000000\r\n\r\n".encode())
        answer = read_until(connection, b"\r\n\r\n")
        assert send_until(OSError, connection, 250 * MIB) < 100 * MIB  # OSError: a reset or a broken pipe
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert b"Connection: close" in answer
    assert resident_memory() - before < 20 * MIB
    assert origin.connections == 0


def test_curl_receives_the_page_that_denies_its_upload(gate, origins, tmp_path):
    site = make_site(gate, origins.web("good.example"), http="{methods: [GET]}")
    body = tmp_path / "body"
    body.write_bytes(b"x" * 5_000_000)
    for version in ("--http1.1", "--http2"):
        status, out, _ = site.curl("/", version, "-T", body, "-H", "Expect:")
        assert status in (0, 55)  # 55: it could not send the rest
        assert json.loads(out)["reason"] == "no_rule"


def test_100_continue_is_sent_only_for_an_allowed_request(gate, origins, tmp_path):
    origin = origins.web("good.example")
    site = make_site(gate, origin)
    with site.connect() as connection:
        head = f"POST /upload HTTP/1.1\r\nHost: {site.host}\r\nContent-Length: 5\r\nExpect: 100-continue\r\n"
        connection.sendall(f"{head}Connection: close\r\n\r\n".encode())
        assert read_until(connection, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"12345")
        assert b'"size": 5' in read_all(connection)
    gate.rules("[]")
    with site.connect() as connection:
        connection.sendall(f"{head}\r\n".encode())
        assert read_all(connection).startswith(b"HTTP/1.1 403 ")  # and no 100 before


def test_100_continue_is_not_sent_when_the_server_cannot_be_used(gate, origins):
    site = make_site(gate, origins.web("good.example", kind="expired"))
    answer = site.request("POST / HTTP/1.1\nHost: HOST\nContent-Length: 5\nExpect: 100-continue\n\n")
    assert answer.startswith(b"HTTP/1.1 502 ")


def test_informational_responses_are_not_taken_for_the_final_one(gate, origins):
    def answer(connection, head):
        connection.sendall(b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nreal")
        return True

    site = make_site(gate, origins.script(answer), tls=False)
    for _ in range(2):
        assert site.curl("/")[1] == b"real"


def test_101_that_was_not_requested_is_answered_502(gate, origins):
    def answer(connection, head):
        connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\nraw bytes")

    site = make_site(gate, origins.script(answer), tls=False)
    _, out, _ = site.curl("/")
    assert json.loads(out)["reason"] == "upstream_failed"


@pytest.mark.parametrize(
    "head",
    [
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        "HTTP/1.1 200 OK\r\n folded: by nothing\r\n\r\n",
        "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n",
        "ICY 200 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: " + "a" * 200_000,
        "",
    ],
    ids=range(8),
)
def test_unreadable_responses_are_answered_502(gate, origins, head):
    site = make_site(gate, origins.script(lambda connection, _: connection.sendall(head.encode())), tls=False)
    status, out, _ = site.curl("/")
    assert (status, json.loads(out)["reason"]) == (0, "upstream_failed")


LENGTH, CHUNKED = "Content-Length: 100\r\n", "Transfer-Encoding: chunked\r\n"


@pytest.mark.parametrize(
    ("framing", "reset"), [(LENGTH, True), (LENGTH, False), (CHUNKED, True), (CHUNKED, False), ("", True)]
)
def test_server_cut_within_a_body_resets_the_client(gate, origins, framing, reset):
    def answer(connection, head):
        chunk = "5\r\nbegun\r\n" if "chunked" in framing else "begun"
        connection.sendall(f"HTTP/1.1 200 OK\r\n{framing}\r\n{chunk}".encode())
        close_abruptly(connection, reset=reset)

    site = make_site(gate, origins.script(answer), tls=False)
    with site.connect() as connection:
        connection.sendall(f"GET / HTTP/1.1\r\nHost: {site.host}\r\n\r\n".encode())
        assert read_until(connection, b"begun").endswith(b"begun")
        with pytest.raises(ConnectionResetError):
            read_all(connection)
    wait_until(lambda: gate.events("request.completed"))
    assert gate.events("request.completed")[0]["outcome"] == "failed"


def test_server_cut_within_a_body_resets_the_http2_stream(gate, origins):
    site = make_site(gate, origins.web("good.example"))
    status, _, err = site.curl("/reset/1000", "--http2", "-o", os.devnull)
    assert status == 92  # the stream was not closed cleanly
    assert "INTERNAL_ERROR" in err


def test_client_that_breaks_off_resets_the_server(gate, origins):
    ended = []

    def answer(connection, head):
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\n")
        try:
            ended.append(connection.recv(1))
        except ConnectionResetError as error:
            ended.append(error)

    site = make_site(gate, origins.script(answer), tls=False)
    with site.connect() as connection:
        connection.sendall(f"GET / HTTP/1.1\r\nHost: {site.host}\r\n\r\n".encode())
        read_until(connection, b"begun")
    wait_until(lambda: ended)
    assert isinstance(ended[0], ConnectionResetError)
    assert gate.events("request.completed")[0]["outcome"] == "passed"  # of what has no length it had what it wanted


def test_early_answer_is_delivered_and_ends_the_upload(gate, origins):
    """A 413 or 401 during the upload must reach the client completely."""

    def answer(connection, head):
        connection.sendall(b"HTTP/1.1 413 Too Large\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nno!\r\n0\r\n\r\n")
        time.sleep(0.3)

    site = make_site(gate, origins.script(answer), tls=False)
    with site.connect() as connection:
        head = f"POST / HTTP/1.1\r\nHost: {site.host}\r\nContent-Length: 100000\r\n\r\n"
        connection.sendall(head.encode() + b"x" * 1000)
        assert read_all(connection).endswith(b"3\r\nno!\r\n0\r\n\r\n")


def test_trailers_are_forwarded_except_those_that_route(gate, origins):
    bodies = []

    def answer(connection, head):
        bodies.append(read_until(connection, b"\r\n\r\n"))
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 7\r\n\r\n")
        return True

    site = make_site(gate, origins.script(answer), tls=False)
    with site.connect() as connection:
        head = f"POST / HTTP/1.1\r\nHost: {site.host}\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        connection.sendall(head.encode() + b"3\r\nabc\r\n0\r\nX-Mine: 1\r\nHost: evil.example\r\n\r\n")
        answered = read_all(connection)
    assert [body.lower() for body in bodies] == [b"3\r\nabc\r\n0\r\nx-mine: 1\r\n\r\n"]
    assert answered.lower().endswith(b"2\r\nok\r\n0\r\nx-sum: 7\r\n\r\n")


def test_trailer_with_a_name_that_rules_check_is_not_forwarded(gate, origins):
    """Some servers merge trailers into headers, so a header that a rule requires absent would be present."""
    bodies = []

    def answer(connection, head):
        bodies.append(read_until(connection, b"\r\n\r\n"))
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        return True

    site = make_site(gate, origins.script(answer), tls=False, http="{methods: [POST], headers: {x-key: absent}}")
    with site.connect() as connection:
        head = f"POST / HTTP/1.1\r\nHost: {site.host}\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        connection.sendall(head.encode() + b"3\r\nabc\r\n0\r\nX-Key: mine\r\n\r\n")
        assert b"200 OK" in read_all(connection)
    assert bodies == [b"3\r\nabc\r\n0\r\n\r\n"]
    assert gate.decided()[0][2:] == ("passed", "rule")


@pytest.mark.parametrize("body", [b"zz\r\nabc\r\n", b"-1\r\n\r\n", b"3\r\nabcd\r\n", b"3;" + b"x" * 100_000])
def test_malformed_chunks_end_the_request(gate, origins, body):
    origin = origins.web("good.example", tls=False)
    site = make_site(gate, origin, tls=False)
    with site.connect() as connection:
        head = f"POST /upload HTTP/1.1\r\nHost: {site.host}\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head.encode() + body)
        with contextlib.suppress(ConnectionResetError):  # a reset is accepted as well
            assert b"200" not in read_all(connection)


def test_pipelined_requests_are_decided_one_by_one(gate, origins):
    origin = origins.web("good.example", tls=False)
    site = make_site(gate, origin, tls=False, http='{paths: ["/ok/**"]}')
    one = f"GET %s HTTP/1.1\r\nHost: {site.host}\r\n%s\r\n"
    pipelined = "".join(one % (path, "") for path in ("/ok/1", "/no", "/ok/2")) + one % (
        "/ok/3",
        "Connection: close\r\n",
    )
    with site.connect() as connection:
        connection.sendall(pipelined.encode())
        answers = read_all(connection)
    assert answers.count(b"HTTP/1.1 200") == 3
    assert answers.count(b"HTTP/1.1 403") == 1
    assert [request.target for request in origin.requests] == ["/ok/1", "/ok/2", "/ok/3"]


# --- clients that leave ---


EVENT = b"data: done\n\n"
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED_EVENT = STREAM + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(EVENT), EVENT)
UNTIL_CLOSED = STREAM + b"Connection: close\r\n\r\n" + EVENT
PART = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + EVENT
NOTHING = b""
LEFT, LEFT_EARLY, LEFT_WAITING = (
    "the client left before the end",
    "the client left before it had the whole response",
    "the client left before the server answered",
)


def close(connection):
    connection.close()


def reset(connection):
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    socket.socket(fileno=connection.detach()).close()


def half_close_and_go(connection):
    connection.shutdown(socket.SHUT_WR)
    socket.socket(fileno=connection.detach()).close()


def outcome(gate):
    wait_until(lambda: gate.events("request.completed"))
    (event,) = gate.events("request.completed")
    return event["outcome"], event.get("reason"), event.get("detail")


@pytest.mark.parametrize("tls", [True, False], ids=["tls", "plain"])
@pytest.mark.parametrize("leave", [close, reset, half_close_and_go])
@pytest.mark.parametrize(
    "case",
    [
        (CHUNKED_EVENT, ("passed", None, LEFT)),  # an agent that has read the event it waited for
        (UNTIL_CLOSED, ("passed", None, LEFT)),
        (PART, ("failed", None, LEFT_EARLY)),  # a download that its length says is not whole
        (NOTHING, ("failed", None, LEFT_WAITING)),
    ],
    ids=["chunked", "until close", "part of a length", "no response"],
)
def test_client_that_leaves_is_recorded_by_how_much_it_received(gate, origins, tls, leave, case):
    answer, what = case
    answered = []

    def serve(connection, _head):
        connection.sendall(answer)
        answered.append(True)
        while connection.recv(1):
            pass

    site = make_site(gate, origins.script(serve, "good.example", tls=tls, alpn=["http/1.1"]), tls=tls)
    connection = site.connect()
    connection.sendall(f"GET /events HTTP/1.1\r\nHost: {site.host}\r\n\r\n".encode())
    wait_until(lambda: answered)
    if answer:
        read_until(connection, EVENT)
    leave(connection)
    assert outcome(gate) == what
    gate.wait_closed()
    assert gate.closed[0].reason is None
    assert ("failed 1 request" in gate.recorder.summary().describe()) is (
        what[0] == "failed"
    )  # the summary at the end of a task


@pytest.mark.parametrize("code", ["CANCEL", "NO_ERROR", "INTERNAL_ERROR"])
def test_client_that_resets_an_event_stream_is_recorded_as_passed(gate, origins, connect_http2, code):
    """curl, Go and hyper reset with CANCEL, `close()` of Node with NO_ERROR."""
    client = connect_http2(make_site(gate, origins.web("good.example")))
    stream = client.request("/slow/100/0.05")
    client.wait(h2.events.DataReceived, stream)
    client.h2.reset_stream(stream, h2.errors.ErrorCodes[code])
    client.flush()
    assert outcome(gate) == ("passed", None, LEFT)
    assert "failed" not in gate.recorder.summary().describe()


def test_server_that_cuts_an_event_stream_is_recorded_as_failed(gate, origins):
    def serve(connection, _head):
        connection.sendall(CHUNKED_EVENT)
        close_abruptly(connection)

    site = make_site(gate, origins.script(serve), tls=False)
    connection = site.connect()
    connection.sendall(f"GET /events HTTP/1.1\r\nHost: {site.host}\r\n\r\n".encode())
    assert outcome(gate)[:2] == ("failed", "upstream_failed")
    connection.close()


def test_event_stream_ended_by_a_timeout_is_recorded_as_failed(gate, origins):
    """An idle timeout of the gate is not recorded as an end by the client."""

    def serve(connection, _head):
        connection.sendall(CHUNKED_EVENT)
        while connection.recv(1):
            pass

    site = make_site(gate, origins.script(serve), tls=False, idle=0)
    connection = site.connect()
    connection.sendall(f"GET /events HTTP/1.1\r\nHost: {site.host}\r\n\r\n".encode())
    assert outcome(gate)[:2] == ("failed", "limit_exceeded")
    connection.close()


@pytest.fixture
def connect_http2():
    clients = []

    def make(site):
        clients.append(Client(site))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def test_client_end_within_a_pipelined_body_ends_the_connection(gate, origins):
    ended = threading.Event()

    def serve(connection, _head):
        assert ended.wait(30)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        while connection.recv(100):  # the second request, whose body never comes
            pass

    site = make_site(gate, origins.script(serve, "good.example"), tls=False)
    first = f"GET /1 HTTP/1.1\r\nHost: {site.host}\r\n\r\n"
    second = f"POST /2 HTTP/1.1\r\nHost: {site.host}\r\nContent-Length: 100\r\n\r\nhalf"
    with site.connect() as connection:
        connection.settimeout(20)
        connection.sendall((first + second).encode())
        connection.shutdown(socket.SHUT_WR)
        ended.set()
        assert read_all(connection).startswith(b"HTTP/1.1 200 OK")
    gate.wait_closed()


# --- frames behind a refusal ---


FRAMES = {
    "all of the body": DataFrame(1, data=b"secret", flags=["END_STREAM"]),
    "a part": DataFrame(1, data=b"sec"),
    "the end": DataFrame(1, data=b"", flags=["END_STREAM"]),
    "a reset": RstStreamFrame(1, error_code=8),
    "a farewell": GoAwayFrame(0, last_stream_id=0, error_code=0),
    "credit": WindowUpdateFrame(0, window_increment=100),
    "an acknowledgement": SettingsFrame(0, flags=["ACK"]),
}
ENDS = {"all of the body", "the end", "a reset"}
ORDERS = [order for order in itertools.permutations(FRAMES, 2) if not (order[0] in ENDS and FRAMES[order[1]].stream_id)]


def upload(site):
    """Return the bytes of the head of an upload that the rules deny."""
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    client.initiate_connection()
    head = {":method": "GET", ":path": "/echo", ":scheme": "https", ":authority": site.host, "content-length": "6"}
    client.send_headers(1, list(head.items()))
    return client.data_to_send()


@pytest.mark.parametrize("order", ORDERS, ids=" and ".join)
def test_denied_http2_upload_is_recorded_once(gate, origins, order):
    site = make_site(gate, origins.web("good.example"), http="{methods: [GET]}")
    with site.connect(alpn=("h2",)) as connection:
        connection.sendall(upload(site))
        wait_until(gate.decided)
        connection.sendall(b"".join(FRAMES[name].serialize() for name in order))
    wait_until(lambda: gate.closed)
    assert gate.decided() == [("GET", "/echo", "blocked", "body_not_allowed")]


def test_denied_upload_in_one_piece_with_its_frames_is_recorded_once(gate, origins):
    site = make_site(gate, origins.web("good.example"), http="{methods: [GET]}")
    refused = ("GET", "/echo", "blocked", "body_not_allowed")
    expected = []
    for order in ORDERS:
        with site.connect(alpn=("h2",)) as connection:
            connection.sendall(upload(site) + b"".join(FRAMES[name].serialize() for name in order))
            expected.append(refused)
            wait_until(lambda: len(gate.decided()) >= len(expected))
        gate.wait_closed(len(expected))
        assert gate.decided() == expected, order
