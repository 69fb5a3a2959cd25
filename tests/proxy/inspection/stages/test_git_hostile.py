"""Hostile requests in place of git pushes: decided ref by ref or refused, and not sent."""

import gzip
import os

import h2.config
import h2.connection
import h2.events
import pytest

from tests.proxy.inspection.clients import read_all, read_until
from tests.proxy.inspection.git_forge import RULES
from tests.proxy.inspection.inspection_lab import make_site
from tests.support.git_pushes import END as CERTIFICATE_END
from tests.support.git_pushes import MAIN, A, B, certificate, line, push
from tests.support.waiting import wait_until

HEAD = (
    "POST /acme/web.git/git-receive-pack HTTP/1.1\nHost: HOST\nContent-Type: application/x-git-receive-pack-request\n"
)
FEATURE = "refs/heads/feature/x"
TO_FEATURE, TO_MAIN = push(f"{A} {B} {FEATURE}"), push(f"{A} {B} {MAIN}")
TLS_AND_PLAIN = push(f"{A} {B} {FEATURE}", f"{A} {B} {MAIN}")


def decision_on(forge, body, head=HEAD, *, more="", chunks=None):
    """Send a push as raw bytes or chunks, and return the decision."""
    if chunks is None:
        request_head, sent = f"{head}{more}Content-Length: {len(body)}\n\n", [body]
    else:
        request_head = f"{head}{more}Transfer-Encoding: chunked\n\n"
        sent = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in chunks] + [b"0\r\n\r\n"]
    before = len(forge.site.gate.decided())
    with forge.site.connect() as connection:
        connection.sendall(request_head.replace("HOST", forge.site.host).replace("\n", "\r\n").encode())
        for piece in sent:
            try:
                connection.sendall(piece)
            except (ConnectionError, OSError):
                break
        connection.settimeout(10)
        read_until(connection, b"\r\n\r\n")
    (decided,) = forge.site.gate.decided()[before:]
    return " ".join(decided[2:])


def pieces(body, size):
    return [body[at : at + size] for at in range(0, len(body), size)]


ASK, NO_RULE, UNREADABLE, LIMIT = (
    "blocked approval_unavailable",
    "blocked no_rule",
    "blocked ambiguous_request",
    "blocked limit_exceeded",
)
HOSTILE = {
    "main": (TO_MAIN, {}, ASK),
    "main behind a feature": (TLS_AND_PLAIN, {}, ASK),
    "main in chunks of a byte": (None, {"chunks": pieces(TLS_AND_PLAIN, 1)}, ASK),
    "main across chunks": (None, {"chunks": pieces(TLS_AND_PLAIN, 50)}, ASK),
    "main with gzip": (gzip.compress(TLS_AND_PLAIN), {"more": "Content-Encoding: gzip\n"}, ASK),
    "main with gzip by another name": (gzip.compress(TLS_AND_PLAIN), {"more": "Content-Encoding: x-gzip\n"}, ASK),
    "main in gzip in chunks": (None, {"more": "Content-Encoding: GZip\n", "chunks": pieces(gzip.compress(TLS_AND_PLAIN), 3)}, ASK),
    "main in a certificate": (certificate(f"{A} {B} {MAIN}") + CERTIFICATE_END + b"0000", {}, ASK),
    "an option": (push(f"{A} {B} {FEATURE}", options=["submit"]), {}, UNREADABLE),
    "an option, and no report": (line(f"{A} {B} {FEATURE}\0 push-options") + b"0000" + line("submit") + b"0000", {}, UNREADABLE),
    "an option of another client's": (line(f"{A} {B} {FEATURE}\0 push-options=1") + b"0000" + line("submit") + b"0000", {}, UNREADABLE),
    "an option in chunks": (None, {"chunks": pieces(push(f"{A} {B} {FEATURE}", options=["a", "b"]), 1)}, UNREADABLE),
    "an option in gzip": (gzip.compress(push(f"{A} {B} {FEATURE}", options=["a"])), {"more": "Content-Encoding: gzip\n"}, UNREADABLE),
    "an option in a certificate": (certificate(f"{A} {B} {FEATURE}", more="push-option submit\n") + CERTIFICATE_END + b"0000", {}, UNREADABLE),
    "an option, to main": (push(f"{A} {B} {MAIN}", options=["submit"]), {}, UNREADABLE),
    "an option to another repository": (push(f"{A} {B} {FEATURE}", options=["a"]), {"head": HEAD.replace("/acme/", "/evil/")}, NO_RULE),
    "options that don't end": (push(f"{A} {B} {FEATURE}", options=[])[:-4], {}, UNREADABLE),
    "a pack in place of options": (push(f"{A} {B} {FEATURE}", options=[])[:-4] + b"PACK", {}, UNREADABLE),
    "gzip without Content-Encoding": (gzip.compress(TO_FEATURE), {}, UNREADABLE),
    "plain bytes as gzip": (TO_FEATURE, {"more": "Content-Encoding: gzip\n"}, UNREADABLE),
    "gzip twice": (gzip.compress(gzip.compress(TO_FEATURE)), {"more": "Content-Encoding: gzip, gzip\n"}, UNREADABLE),
    "two codings": (gzip.compress(TO_FEATURE), {"more": "Content-Encoding: gzip\nContent-Encoding: gzip\n"}, UNREADABLE),
    "brotli": (TO_FEATURE, {"more": "Content-Encoding: br\n"}, UNREADABLE),
    "deflate": (TO_FEATURE, {"more": "Content-Encoding: deflate\n"}, UNREADABLE),
    "a second file in gzip": (gzip.compress(TO_FEATURE[:-4]) + gzip.compress(b"0000"), {"more": "Content-Encoding: gzip\n"}, UNREADABLE),
    "a gzip bomb": (gzip.compress(line(f"shallow {A}") * 500_000), {"more": "Content-Encoding: gzip\n"}, LIMIT),
    "a list of a hundred megabytes": (None, {"chunks": [line(f"shallow {A}") * 1000] * 2000}, LIMIT),
    "two lists": (b"0000" + TO_FEATURE, {}, UNREADABLE),
    "two flushes": (b"00000000", {}, UNREADABLE),
    "no flush": (TO_FEATURE[:-4], {}, UNREADABLE),
    "nothing": (b"", {}, UNREADABLE),
    "a delimiter": (push(f"{A} {B} {FEATURE}", after=b"0001"), {}, UNREADABLE),
    "a control byte in a ref": (push(f"{A} {B} {FEATURE}\x01"), {}, UNREADABLE),
    "a line's end in a ref": (line(f"{A} {B} {FEATURE}\n{A} {B} {MAIN}\0 x") + b"0000", {}, UNREADABLE),
    "a ref that climbs": (push(f"{A} {B} refs/heads/feature/../main"), {}, UNREADABLE),
    "a ref in another case": (push(f"{A} {B} refs/heads/MAIN"), {}, ASK),
    "a ref of full-width letters": (push(f"{A} {B} refs/heads/\uff4dain"), {}, NO_RULE),
    "HEAD": (push(f"{A} {B} HEAD"), {}, UNREADABLE),
    "another type": (TO_FEATURE, {"head": HEAD.replace("receive-pack-request", "upload-pack-request")}, UNREADABLE),
    "no type": (TO_FEATURE, {"head": "\n".join(HEAD.split("\n")[:2]) + "\n"}, UNREADABLE),
    "another type, text": (TO_FEATURE, {"head": HEAD.replace("application/x-git-receive-pack-request", "text/plain")}, UNREADABLE),
    "the type elsewhere": (TO_FEATURE, {"head": HEAD.replace("git-receive-pack HTTP", "push HTTP")}, UNREADABLE),
    "another method": (TO_FEATURE, {"head": HEAD.replace("POST", "PUT")}, UNREADABLE),
    "another method in a header": (TO_FEATURE, {"more": "X-HTTP-Method-Override: PUT\n"}, UNREADABLE),
    "a query": (TO_FEATURE, {"head": HEAD.replace("pack HTTP", "pack?a=b HTTP")}, UNREADABLE),
    "a dot": (TO_FEATURE, {"head": HEAD.replace("/git-rec", "/./git-rec")}, "blocked ambiguous_path"),
    "two slashes": (TO_FEATURE, {"head": HEAD.replace("/git-rec", "//git-rec")}, "blocked ambiguous_path"),
    "an escape": (TO_MAIN, {"head": HEAD.replace("/git-rec", "/%67it-rec")}, ASK),
    "an escape of an escape": (TO_MAIN, {"head": HEAD.replace("/git-rec", "/%2567it-rec")}, "blocked ambiguous_path"),
    "upper case": (TO_FEATURE, {"head": HEAD.replace("git-receive-pack HTTP", "GIT-RECEIVE-PACK HTTP")}, UNREADABLE),
    "climbing": (TO_FEATURE, {"head": HEAD.replace("/acme/", "/acme/x/../")}, "blocked ambiguous_path"),
    "another repository": (TO_FEATURE, {"head": HEAD.replace("/acme/", "/evil/")}, NO_RULE),
    "WebDAV": (b"x", {"head": HEAD.replace("POST /acme/web.git/git-receive-pack", "PUT /acme/web.git/refs/heads/main")}, UNREADABLE),
    "a lock": (b"x", {"head": HEAD.replace("POST /acme/web.git/git-receive-pack", "LOCK /acme/web.git/refs/heads/main")}, UNREADABLE),
}  # fmt: skip


@pytest.mark.parametrize(("body", "how", "expected"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_pushes_are_denied_and_not_sent(forge, body, how, expected):
    assert decision_on(forge, body, **how) == expected
    assert forge.site.origin.requests == []
    assert forge.site.origin.connections == 0


def test_push_without_an_advertisement_is_decided_by_its_refs(forge):
    assert decision_on(forge, TO_FEATURE + b"PACK") == "passed rule"
    (request,) = forge.site.origin.requests
    assert (request.method, request.target) == ("POST", "/acme/web.git/git-receive-pack")


def test_push_with_an_empty_option_list_passes(forge):
    assert decision_on(forge, push(f"{A} {B} {FEATURE}", options=[]) + b"PACK") == "passed rule"
    assert len(forge.site.origin.requests) == 1


def test_empty_probe_is_decided_by_its_repository(forge):
    assert decision_on(forge, b"0000") == "passed rule"
    assert decision_on(forge, b"0000", HEAD.replace("/acme/", "/evil/")) == NO_RULE
    assert len(forge.site.origin.requests) == 1


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_push_body_is_forwarded_unchanged(gate, origins, packed):
    body = TO_FEATURE + os.urandom(300_000)
    body = gzip.compress(body) if packed else body

    def answer(connection, _head):
        data = b""
        while len(data) < len(body):
            data += connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
        return True

    origin = origins.script(answer, "good.example", tls=True, alpn=["http/1.1"])
    site = make_site(gate, origin)
    gate.rules(RULES.replace("PORT", str(origin.port)))
    coding = "Content-Encoding: gzip\n" if packed else ""
    with site.connect() as connection:
        request_head = f"{HEAD}{coding}Content-Length: {len(body)}\nConnection: close\n\n"
        connection.sendall(request_head.replace("HOST", site.host).replace("\n", "\r\n").encode() + body)
        read_until(connection, b"\r\n\r\n")
        assert read_all(connection) == body
    assert gate.decided()[0][2:] == ("passed", "rule")
    assert gate.events("request.completed")[0]["bytes"]["up"] == len(body)


def test_push_is_not_sent_before_its_ref_list_is_complete(forge):
    """The gate itself answers `Expect: 100-continue`, because it must read the list."""
    with forge.site.connect() as connection:
        body = TLS_AND_PLAIN + b"PACK"
        request_head = f"{HEAD}Expect: 100-continue\nContent-Length: {len(body)}\n\n"
        connection.sendall(request_head.replace("HOST", forge.site.host).replace("\n", "\r\n").encode())
        assert read_until(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
        connection.sendall(body[: len(TO_FEATURE)])
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        assert forge.site.origin.connections == 0
        assert forge.site.gate.decided() == []
        connection.settimeout(10)
        connection.sendall(body[len(TO_FEATURE) :])
        assert read_until(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 403 ")
    assert forge.pushes() == [("blocked", "approval_unavailable", ["t:main"])]
    assert forge.site.origin.connections == 0


RELOADED = {
    "no git rule and no rule that allows it": ("http: {methods: [GET]}", "blocked no_rule"),
    "no git rule": ("http: {paths: [/acme/**]}", "passed rule"),
    "another ref is allowed": ('git: {repos: ["acme/*"], push: [refs/heads/other]}', "blocked no_rule"),
}


@pytest.mark.parametrize(("what", "expected"), RELOADED.values(), ids=RELOADED)
def test_push_being_read_is_decided_by_the_new_rules(forge, what, expected):
    with forge.site.connect() as connection:
        request_head = f"{HEAD}Expect: 100-continue\nContent-Length: {len(TO_FEATURE)}\n\n"
        connection.sendall(request_head.replace("HOST", forge.site.host).replace("\n", "\r\n").encode())
        assert read_until(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")  # it is held
        connection.sendall(TO_FEATURE[:20])
        allowed = f"to: good.example, resolves_to: [127.0.0.0/8], ports: [{forge.site.port}/tls], action: allow"
        forge.site.gate.rules(f"[{{id: a, {allowed}, {what}}}]")
        connection.sendall(TO_FEATURE[20:])
        read_until(connection, b"\r\n\r\n")
    assert [" ".join(one[2:]) for one in forge.site.gate.decided()] == [expected]


@pytest.mark.parametrize("so_far", [b"", TO_FEATURE[:20]], ids=["nothing", "a piece"])
def test_push_that_breaks_off_is_recorded_as_blocked(forge, so_far):
    with forge.site.connect() as connection:
        request_head = f"{HEAD}Content-Length: 1000\n\n"
        connection.sendall(request_head.replace("HOST", forge.site.host).replace("\n", "\r\n").encode() + so_far)
    forge.site.gate.wait_closed()
    assert forge.pushes() == [("blocked", "ambiguous_request", [])]
    assert forge.site.origin.connections == 0


def http2(forge):
    """Connect over HTTP/2."""
    connection = forge.site.connect(["h2"])
    client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    client.initiate_connection()
    connection.sendall(client.data_to_send())
    return connection, client


def begin(forge, client, stream):
    client.send_headers(
        stream,
        [
            (":method", "POST"), (":scheme", "https"), (":authority", forge.site.host),
            (":path", "/acme/web.git/git-receive-pack"), ("content-type", "application/x-git-receive-pack-request"),
        ],
    )  # fmt: skip


def test_push_in_one_byte_http2_frames_is_decided_by_its_refs(forge):
    connection, client = http2(forge)
    with connection:
        begin(forge, client, 1)
        for byte in TLS_AND_PLAIN:
            client.send_data(1, bytes([byte]))
        client.end_stream(1)
        connection.sendall(client.data_to_send())
        wait_until(lambda: forge.pushes() == [("blocked", "approval_unavailable", ["t:main"])])
    assert forge.site.origin.connections == 0


def test_pending_pushes_of_one_connection_are_bounded(forge):
    """A push may take a megabyte; all pushes of a connection share one limit."""
    connection, client = http2(forge)
    piece = line(f"shallow {A}") * 300
    with connection:
        for stream in range(1, 21, 2):
            begin(forge, client, stream)
        connection.sendall(client.data_to_send())
        connection.setblocking(False)
        sent = dict.fromkeys(range(1, 21, 2), 0)

        def push_on():
            try:
                for event in client.receive_data(connection.recv(65536)):
                    if isinstance(event, h2.events.StreamEnded | h2.events.StreamReset):
                        sent.pop(event.stream_id, None)
            except BlockingIOError:
                pass
            except OSError:  # SSLWantReadError
                pass
            for stream in list(sent):
                while sent[stream] < 900_000 and client.local_flow_control_window(stream) >= len(piece):
                    client.send_data(stream, piece)
                    sent[stream] += len(piece)
            connection.setblocking(True)
            connection.sendall(client.data_to_send())
            connection.setblocking(False)
            return any(reason == "limit_exceeded" for _, reason, _ in forge.pushes())

        wait_until(push_on)
    assert forge.site.origin.connections == 0


UNREADABLE_PUSHES = {
    "no packets": (b"hello", {}),
    "a length beyond the end": (b"ffff" + TO_MAIN, {}),
    "another coding": (TO_MAIN, {"more": "Content-Encoding: br\n"}),
    "another type": (TO_MAIN, {"head": HEAD.replace("application/x-git-receive-pack-request", "text/plain")}),
}


@pytest.mark.parametrize(("body", "more"), UNREADABLE_PUSHES.values(), ids=UNREADABLE_PUSHES)
def test_audit_mode_allows_a_push_that_it_cannot_read(forge, gate, body, more):
    """Audit mode reads a push only for its events, so an unreadable one passes."""
    gate.rules(
        f"[{{id: all, to: good.example, resolves_to: [127.0.0.0/8], ports: [{forge.site.port}/tls], action: allow, "
        "http: {methods: [POST], paths: ['/**']}}]",
        "settings: {mode: audit}",
    )
    assert decision_on(forge, body, **more) == "passed rule"
    (event,) = gate.events("request.decided")
    assert "git" not in event or not event["git"].get("refs")
