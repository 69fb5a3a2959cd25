"""The refusal page: says why, in a shape clients know, and gives nothing of a task's text back unescaped."""

import json
import re
from ipaddress import ip_address

import pytest

from proxy.gate.block_page import FOR_GRPC, LONGEST, Refusal, page
from rules.decision import Decision, NearestRule
from rules.explain.reasons import REASONS
from rules.values.names import HOST, HostName
from rules.verdicts import Outcome, Reason, Verdict

BY_RULE = Decision(
    verdict=Verdict.DENY,
    outcome=Outcome.BLOCKED,
    reason=Reason.RULE,
    rules=("web:paste-sites", "web:other"),
    why="no pasting",
)
HOSTILE = '</script><b>&"\\\r\nSet-Cookie: a=b\x1b[31m\u202e\u2028\x00\ud800' + "A" * 10_000


def test_program_reads_a_problem_document():
    made = page(Refusal(BY_RULE, "GET https://pastebin.com/x", event="0190-1"))
    assert (made.status, made.phrase) == (403, "Blocked by Exeat: rule")
    headers = dict(made.headers)
    assert headers[b"Content-Type"] == b"application/problem+json"
    assert headers[b"Content-Length"] == b"%d" % len(made.body)
    assert headers[b"X-Exeat-Decision"] == b'deny;reason=rule;rule="web:paste-sites";event="0190-1"'
    assert json.loads(made.body) == {
        "type": "https://exeat.example/reasons/rule",
        "title": "a rule denies this",
        "status": 403,
        "detail": "a rule denies this: `GET https://pastebin.com/x`",
        "attempt": "GET https://pastebin.com/x",
        "verdict": "deny",
        "reason": "rule",
        "rules": ["web:paste-sites", "web:other"],
        "remedy": "narrow the rule that is named, or give it an `except`",
        "why": "no pasting",
        "event": "0190-1",
        "more": "http://exeat.internal/why",
    }


def test_git_user_is_shown_plain_text_lines():
    near = NearestRule(rule="web:read", field="methods", wanted="GET, HEAD", got="POST")
    decision = Decision(reason=Reason.NO_RULE, nearest=near)
    made = page(Refusal(decision, "POST https://git.example/x"), user_agent="git/2.39.5")
    assert dict(made.headers)[b"Content-Type"] == b"text/plain; charset=us-ascii"
    assert made.body.decode() == (
        "exeat: no rule allows this: POST https://git.example/x\n"
        "exeat: verdict deny, reason no_rule\n"
        "exeat: nearest rule web:read: its methods wants GET, HEAD, this was POST\n"
        "exeat: add a rule that allows it\n"
        "exeat: more about it: GET http://exeat.internal/why\n"
    )


@pytest.mark.parametrize("user_agent", ["", "git/2.39.5"])
def test_page_without_an_info_api_has_no_link_to_it(user_agent):
    """A mitmproxy of one's own has no `exeat.internal`."""
    assert (
        b"exeat.internal" not in page(Refusal(BY_RULE, "GET https://x.example/", has_info_api=False), user_agent).body
    )


@pytest.mark.parametrize("user_agent", ["", "git/2.39.5"])
def test_page_of_a_failed_server_has_no_link_to_why(user_agent):
    """`/why` has what was blocked alone."""
    let_out = Decision(Verdict.ALLOW, Outcome.FAILED, Reason.CLIENT_CERTIFICATE)
    assert b"/why" not in page(Refusal(let_out, "GET https://x.example/"), user_agent).body


def test_page_names_the_layer_when_no_rule_decided():
    decision = Decision(reason=Reason.LAYER, why="the layer `corp` does not allow this itself")
    made = page(Refusal(decision, "GET https://x.example/"), user_agent="git/2.39.5")
    assert "verdict deny, reason layer (the layer `corp` does not allow this itself)\n" in made.body.decode()


GRPC = [
    (Reason.NO_RULE, 7), (Reason.RULE, 7), (Reason.AMBIGUOUS_PATH, 7), (Reason.AMBIGUOUS_REQUEST, 3), (Reason.URL_TOO_LONG, 3),
    (Reason.LIMIT_EXCEEDED, 8), (Reason.UPSTREAM_FAILED, 14), (Reason.UNRESOLVED, 14), (Reason.GATE_ERROR, 14),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "status"), GRPC)
def test_reasons_map_to_grpc_statuses(reason, status):
    """Trailers alone, which is a status of 200 and no body (gRPC over HTTP/2, "Responses")."""
    made = page(Refusal(Decision(reason=reason), "POST https://rpc.example/a.B/C", event="0190-1"), grpc=FOR_GRPC)
    headers = dict(made.headers)
    assert (made.status, made.body, headers[b"Grpc-Status"]) == (200, b"", b"%d" % status)
    assert headers[b"X-Exeat-Decision"] == f'deny;reason={reason};event="0190-1"'.encode()
    what, remedy, _ = REASONS[reason]
    remedy = remedy.replace("EVENT", "0190-1")
    assert headers[b"Grpc-Message"].decode() == (
        f"exeat: {what}: POST https://rpc.example/a.B/C; verdict deny, reason {reason}; {remedy}"
    )


def test_grpc_message_is_percent_encoded():
    """Nothing but printable ASCII, and a percent sign is one only where it escapes."""
    made = page(Refusal(BY_RULE, HOSTILE + "50%41", detail="100%"), grpc=FOR_GRPC)
    assert re.fullmatch(rb"(?:[ -$&-~]|%25)+", dict(made.headers)[b"Grpc-Message"])


@pytest.mark.parametrize("user_agent", ["", "git/2.39.5"])
def test_text_of_the_task_is_escaped(user_agent):
    near = NearestRule(HOSTILE, HOSTILE, HOSTILE, HOSTILE)
    decision = Decision(reason=Reason.RULE, rules=(HOSTILE,), nearest=near, why=HOSTILE)
    made = page(Refusal(decision, HOSTILE, event=HOSTILE, detail=HOSTILE), user_agent)
    raw = made.http1()
    head, _, body = raw.partition(b"\r\n\r\n")
    assert not re.search(rb"[^ -~\n]", body)
    assert all(re.fullmatch(rb"[ -~]+", line) for line in head.split(b"\r\n"))
    assert head.count(b"\r\n") == 5
    if not user_agent:
        assert not re.search(rb"[<>&]", body)
        assert json.loads(body)["attempt"].endswith("...")
    assert len(raw) < 20 * LONGEST


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_a_sentence_and_a_status(reason):
    for sentence in filter(None, REASONS[reason][:2]):
        assert sentence[0].islower() or sentence.split()[0].isupper() or sentence.startswith("`")
        assert not sentence.endswith(".")
    assert page(Refusal(Decision(reason=reason), "x")).status in (400, 403, 414, 429, 502, 503)


@pytest.mark.parametrize("user_agent", ["", "git/2.39.5"])
def test_remedy_for_a_service_of_the_host_names_host_exeat_internal(user_agent):
    """`resolves_to` opens no loopback: whoever was told so would get an error for it."""
    refused = Decision(reason=Reason.NON_PUBLIC_ADDRESS)
    made = page(Refusal(refused, "GET http://host.exeat.internal:8080/", target=HOST), user_agent).body.decode()
    assert "`host.exeat.internal` needs a rule `to: host.exeat.internal` with its `ports`" in made
    assert "resolves_to" not in made
    other = page(Refusal(refused, "GET http://x.example/", target=HostName.parse("x.example")), user_agent)
    assert "`resolves_to`; a service of this machine needs a rule `to: host.exeat.internal`" in other.body.decode()
    denied = Refusal(Decision(reason=Reason.RULE, rules=("t:d",)), "GET http://host.exeat.internal:8080/", target=HOST)
    assert REASONS[Reason.RULE].remedy in page(denied, user_agent).body.decode()


@pytest.mark.parametrize("user_agent", ["", "git/2.39.5"])
@pytest.mark.parametrize(
    ("address", "remedy"),
    [
        ("10.0.0.1", "add a rule `to: 10.0.0.1`, if it is meant"),
        ("::ffff:10.0.0.1", "add a rule `to: 10.0.0.1`, if it is meant"),
        ("fd00::1", "add a rule `to: fd00::1`, if it is meant"),
        (
            "127.0.0.1",
            "that is the sandbox's own loopback: a service of this machine has the name `host.exeat.internal`",
        ),
        ("224.0.0.1", "that is multicast, and no rule can allow it"),
        ("fe80::1%a", "a service of this machine needs a rule"),
    ],
)
def test_remedy_for_a_non_public_address_names_the_address(address, remedy, user_agent):
    """It has no name, and `resolves_to` is about what names stand for."""
    refused = Decision(reason=Reason.NON_PUBLIC_ADDRESS)
    made = page(Refusal(refused, "GET http://x/", target=ip_address(address)), user_agent).body.decode()
    assert remedy in made
    assert "the address is not public" in made
    assert "the name stands for" not in made


def test_default_decision_is_a_gate_error_page():
    made = page(Refusal(Decision(), "GET http://x.example/"))
    assert (made.status, json.loads(made.body)["reason"]) == (503, "gate_error")


def test_http1_page_closes_its_connection():
    made = page(Refusal(BY_RULE, "x"))
    assert made.http1().endswith(b"Connection: close\r\n\r\n" + made.body)
    assert made.http1(body=False).endswith(b"Connection: close\r\n\r\n")
