"""What is no HTTP inside an inspected connection ends at once, or after a while, and is told with what helps."""

import imaplib
import json
import math
import ssl
import time
from types import SimpleNamespace

import pytest

from proxy.inspection import connection as inspected
from proxy.inspection.connection_ends import ClientEnd, MemoryQuota
from proxy.inspection.http1 import FrontHttp1
from proxy.inspection.router import HttpRouter
from proxy.request.messages import WebOrigin
from rules.explain.reasons import REASONS
from rules.names import HostName
from rules.verdicts import Reason
from tests.proxy.inspection.inspection_clients import rest, wait_for
from tests.proxy.inspection.inspection_harness import site

SPLICE = "tls: splice"


@pytest.fixture
def greeting(origins):
    """A server that speaks first, as IMAP's does."""
    return origins.script(lambda connection, _: connection.sendall(b"* OK ready\r\n"), "good.example", tls=True)


def told(gate):
    wait_for(lambda: gate.events("request.decided"))
    (event,) = gate.events("request.decided")
    assert len(event["detail"]) > 30  # the event says what the page says
    return event["outcome"], event["reason"]


@pytest.mark.usefixtures("often")
def test_client_that_waits_for_its_server_to_speak_first_hears_why(gate, greeting, monkeypatch):
    monkeypatch.setattr(inspected, "SILENCE", 0.0)
    place = site(gate, greeting)
    context = ssl.create_default_context(cadata=gate.ca.certificate_pem.decode())
    with place.connect(alpn=()) as connection:
        page = rest(connection)
    assert page.startswith(b"HTTP/1.1 403 Blocked by Exeat: protocol_mismatch\r\n")
    body = json.loads(page.partition(b"\r\n\r\n")[2])
    assert "waits for the server to speak first" in body["detail"]
    assert SPLICE in body["remedy"]
    assert told(gate) == ("blocked", "protocol_mismatch")
    assert greeting.connections == 0

    class Imap(imaplib.IMAP4_SSL):
        def _create_socket(self, timeout):
            return context.wrap_socket(
                super(imaplib.IMAP4_SSL, self)._create_socket(timeout), server_hostname="good.example"
            )

    with pytest.raises(imaplib.IMAP4.error, match="Blocked by Exeat: protocol_mismatch"):
        Imap("127.0.0.1", place.door, ssl_context=context, timeout=20)


def test_client_that_speaks_while_it_is_about_to_be_refused_is_not_refused():
    """What it said waits for another turn, when the time is looked at."""
    refused = []
    client = ClientEnd(WebOrigin(HostName("good.example"), 443, tls=True))
    client.codec = FrontHttp1(tls=True)
    router = HttpRouter(
        client, SimpleNamespace(asked=0, misread=lambda *what: refused.append(what)), MemoryQuota(list), None, None
    )
    router.todo.extend([(router.receive, (client, b"GET / HT")), (router.refuse_silent, ())])
    assert router.work(math.inf)
    assert refused == []


@pytest.mark.usefixtures("often")
def test_client_of_http_may_be_silent_for_long(gate, origins, monkeypatch):
    """Browsers and pools connect ahead of what they will ask; they say so with ALPN. So does who has asked before."""
    monkeypatch.setattr(inspected, "SILENCE", 0.0)
    place = site(gate, origins.web("good.example"))
    ask = f"GET /echo HTTP/1.1\r\nHost: {place.host}\r\n\r\n".encode()
    with place.connect() as ahead, place.connect(alpn=()) as used:
        used.sendall(ask)
        assert used.recv(12) == b"HTTP/1.1 200"
        time.sleep(0.5)  # some rounds of the engine's
        ahead.sendall(ask)
        assert ahead.recv(12) == b"HTTP/1.1 200"
    assert [outcome for _, _, outcome, _ in gate.decided()] == ["passed", "passed"]


LDAP = bytes.fromhex("300c020101600702010304008000")
TEXT = {"EHLO": b"EHLO me\r\n", "Redis inline": b"PING\r\n"}
BINARY = {
    "LDAP": LDAP, "MQTT": bytes.fromhex("101000044d5154540402003c0004746573747a7a"), "AMQP": b"AMQP\0\0\x09\x01",
    "TLS in TLS": bytes.fromhex("16030100c8010000c40303"), "Redis": b"*1\r\n$4\r\nPING\r\n", "Postgres": b"\0\0\0\x08\x04\xd2\x16\x2f",
}  # fmt: skip


@pytest.mark.parametrize("said", [*BINARY.values(), *TEXT.values()], ids=[*BINARY, *TEXT])
def test_client_that_speaks_something_else_is_refused_at_once_with_what_helps(gate, greeting, said):
    place = site(gate, greeting)
    with place.connect(alpn=()) as connection:
        connection.sendall(said)
        page = json.loads(rest(connection).partition(b"\r\n\r\n")[2])
    assert (page["reason"], SPLICE in page["remedy"]) == ("protocol_mismatch", True)
    assert "is not HTTP" in page["detail"]
    assert told(gate) == ("blocked", "protocol_mismatch")
    assert greeting.connections == 0


UPGRADES = {
    "kubectl": ("SPDY/3.1", "KUBECTL_REMOTE_COMMAND_WEBSOCKETS"), "docker": ("tcp", SPLICE), "two": ("foo/2, bar", SPLICE),
    "in another case": ("sPdY/3.1", "kubectl"),
}  # fmt: skip


@pytest.mark.parametrize(("offered", "helps"), UPGRADES.values(), ids=UPGRADES)
def test_request_that_goes_on_in_a_protocol_nobody_reads_is_refused(gate, origins, offered, helps):
    origin = origins.web("good.example")
    head = f"POST /api/v1/exec HTTP/1.1\nHost: HOST\nConnection: Upgrade\nUpgrade: {offered}\nContent-Length: 0\n\n"
    answer = site(gate, origin).ask(head.replace("Connection: Upgrade", "Connection: Upgrade, close"))
    page = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert (page["reason"], page["remedy"]) != ("protocol_mismatch", REASONS[Reason.PROTOCOL_MISMATCH].remedy)
    assert (page["reason"], helps in page["remedy"]) == ("protocol_mismatch", True)
    assert offered.partition(",")[0] in page["detail"]
    assert told(gate) == ("blocked", "protocol_mismatch")
    assert origin.connections == 0


@pytest.mark.parametrize("offered", ["h2c", "h2c, foo", "foo, h2c", "TLS/1.3", "HTTP/2.0", "H2C"])
def test_offer_that_a_client_can_do_without_is_declined(gate, origins, offered):
    head = f"GET /echo HTTP/1.1\nHost: HOST\nConnection: Upgrade, close\nUpgrade: {offered}\n\n"
    answer = site(gate, origins.web("good.example")).ask(head)
    assert answer.startswith(b"HTTP/1.1 200")
    names = [name for name, _ in json.loads(answer.partition(b"\r\n\r\n")[2])["headers"]]
    assert "upgrade" not in names
