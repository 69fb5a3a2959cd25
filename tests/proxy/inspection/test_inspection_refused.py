"""Connections that were refused already, and are told why on a page of their own."""

import json
import os
import ssl

from rules.decision import Decision
from rules.verdicts import Outcome, Reason, Verdict
from tests.proxy.inspection.inspection_clients import rest
from tests.proxy.inspection.inspection_harness import site
from tests.proxy.inspection.requests_harness import WEB


def denied(reason=Reason.NO_RULE):
    return Decision(Verdict.DENY, Outcome.BLOCKED, reason, revision="r")


@WEB
def test_a_refused_connection_is_told_why_and_decided_once(gate, web, tls):
    origin = web(tls=tls)
    place = site(gate, origin, tls=tls, decision=denied())
    place.gate.rules("[]")
    words = ("--http2",) if tls else ("--http1.1",)
    status, out, err = place.curl("/x", *words)
    assert (status, err) == (0, "")
    problem = json.loads(out)
    gate.wait_closed()
    events = gate.events()
    assert [event["kind"] for event in events] == ["connection.decided"]
    assert (problem["reason"], problem["event"]) == ("no_rule", events[0]["id"])
    assert origin.connections == 0


def test_a_refused_connection_s_page_says_what_it_was_refused_for(gate, web, monkeypatch):
    place = site(gate, web(), decision=denied(Reason.NON_PUBLIC_ADDRESS))
    adopt = gate.inspection.adopt
    said = {"detail": "it is this host's own", "advice": "ask for another"}
    monkeypatch.setattr(
        gate.inspection,
        "adopt",
        lambda admitted: adopt(admitted._replace(judgement=admitted.judgement._replace(**said))),
    )
    problem = json.loads(place.curl("/x")[1])
    assert (problem["detail"], problem["remedy"]) == ("it is this host's own", "ask for another")


def test_a_refused_connection_stays_refused_whatever_the_rules_say(gate, web):
    origin = web()
    place = site(gate, origin, decision=denied())
    assert place.curl("/x", "-w", "%{http_code}", "-o", os.devnull)[1] == b"403"
    assert origin.connections == 0


def test_a_refused_connection_can_t_be_talked_into_anything(gate, web):
    place = site(gate, web(tls=False), tls=False, decision=denied())
    answer = place.ask("CONNECT x:1 HTTP/1.1\n\n")
    assert answer.startswith(b"HTTP/1.1 403 Blocked by Exeat: no_rule")
    assert [event["kind"] for event in gate.events()] == ["connection.decided"]


def test_a_refused_client_sees_a_certificate_for_whom_it_wants(gate, web):
    place = site(gate, web(), name="good.example", decision=denied(Reason.NAME_MISMATCH))
    context = ssl.create_default_context(cadata=gate.ca.certificate_pem.decode())
    with place.connect(sni="Other.Example") as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: other.example\r\nConnection: close\r\n\r\n")
        assert b"name_mismatch" in rest(connection)
        assert connection.getpeercert()["subjectAltName"] == (("DNS", "other.example"),)
    assert context.check_hostname
