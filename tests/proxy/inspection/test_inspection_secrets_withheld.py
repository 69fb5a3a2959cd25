"""Hosts that clients send a secret to in good faith (`not_sent_to`): it isn't sent there, and that is no tampering."""

import base64
import json
from dataclasses import replace

import pytest

from proxy.secrets import SecretInjector, SecretValue, make_aws_keys
from rules.decision import Decision
from rules.names import HostName
from rules.secrets import Secret, Slot, SlotKind, Source, SourceKind
from rules.verdicts import Outcome, Reason, Verdict
from tests.lab.aws import Keys, signed
from tests.proxy.inspection.inspection_clients import wait_for
from tests.proxy.inspection.inspection_harness import site
from tests.proxy.inspection.secrets_harness import FAKE, REAL, SHOWN, basic, head, never_told

FORM = "grant_type=client_credentials&client_secret="
SLOTS = (
    Slot(SlotKind.HEADER, "authorization"), Slot(SlotKind.BASIC), Slot(SlotKind.QUERY, "key"),
    Slot(SlotKind.FORM, "client_secret"),
)  # fmt: skip


def place(gate, origin, *, tls=True, slots=SLOTS, **more):
    """A site whose host the secret of another one isn't sent to."""
    made = site(gate, origin, tls=tls, **more)
    known = Secret(
        "model-key", Source(SourceKind.ENV, ("X",)), "KEY", ((HostName("api.example"), 443),), slots,
        not_sent_to=((HostName("good.example"), origin.port),),
    )  # fmt: skip
    gate.loop.run(lambda: gate.sandbox.set_secrets(SecretInjector([SecretValue(known, REAL, SHOWN)])))
    return made


def form(text):
    return head("POST /echo", "Content-Type: application/x-www-form-urlencoded", f"Content-Length: {len(text)}") + text


IN_GOOD_FAITH = {
    "its header": head("GET /echo", f"Authorization: Bearer {SHOWN}"),
    "basic authentication": head("GET /echo", basic(b"me:" + FAKE)),
    "its parameter": head(f"GET /echo?key={SHOWN}"),
    "its field of a form": form(FORM + SHOWN),
}


@pytest.mark.parametrize("asked", IN_GOOD_FAITH.values(), ids=IN_GOOD_FAITH)
def test_secret_at_a_host_that_it_is_not_sent_to_is_blocked_and_no_tampering(gate, origins, asked):
    origin = origins.web("good.example")
    answer = place(gate, origin).ask(asked)
    told = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert (answer[:12], told["reason"]) == (b"HTTP/1.1 403", "secret_not_sent")
    assert told["detail"].startswith(f"`model-key` is not sent to `good.example:{origin.port}`")
    assert "belongs to `api.example`" in told["detail"]
    assert [outcome for *_, outcome in gate.decided()] == ["secret_not_sent"]
    assert (gate.events("tampering.detected"), gate.recorder.summary().tampers) == ([], 0)
    assert (origin.requests, origin.connections) == ([], 0)
    never_told(gate, answer)


HIDDEN = {
    "another header": head("GET /echo", f"X-Other: {SHOWN}"),
    "its header and another": head("GET /echo", f"Authorization: Bearer {SHOWN}", f"X-Other: {SHOWN}"),
    "its header twice": head("GET /echo", f"Authorization: Bearer {SHOWN}", "Authorization: Bearer x"),
    "the path": head(f"GET /echo/{SHOWN}"),
    "base64": head("GET /echo?q=" + base64.urlsafe_b64encode(b"xx" + FAKE).decode().rstrip("=")),
    "another field of a form": form("other=" + SHOWN),
}


@pytest.mark.parametrize("asked", HIDDEN.values(), ids=HIDDEN)
def test_placeholder_elsewhere_at_such_a_host_is_tampering(gate, origins, asked):
    answer = place(gate, origins.web("good.example")).ask(asked)
    assert b"secret_misuse" in answer
    wait_for(lambda: gate.events("tampering.detected"))
    never_told(gate, answer)


def test_secret_without_tls_at_such_a_host_is_tampering(gate, origins):
    answer = place(gate, origins.web("good.example", tls=False), tls=False).ask(IN_GOOD_FAITH["its header"])
    assert b"secret_misuse" in answer
    assert len(gate.events("tampering.detected")) == 1


def test_request_without_the_secret_passes_at_such_a_host(gate, origins):
    answer = place(gate, origins.web("good.example")).ask(head("GET /echo", "Authorization: Bearer of-its-own"))
    assert answer.startswith(b"HTTP/1.1 200")


def test_signed_request_at_a_host_that_its_keys_are_not_for_is_no_tampering(gate, origins):
    origin = origins.web("good.example")
    made = place(gate, origin)
    known = Secret(
        "aws", Source(SourceKind.ENV, ("AWS",)), "AWS", ((HostName("s3.example"), 443),), (Slot(SlotKind.AWS),),
        not_sent_to=((HostName("good.example"), origin.port),),
    )  # fmt: skip
    broker = SecretInjector(
        [make_aws_keys(known, (b"AKIAREALREALREAL0001", b"real/Secret+Key0123456789abcdefghijklmno"))]
    )
    gate.loop.run(lambda: gate.sandbox.set_secrets(broker))
    fake = Keys(broker.placeholders["AWS_ACCESS_KEY_ID"], broker.placeholders["AWS_SECRET_ACCESS_KEY"])
    for one, reason in ((fake, "secret_not_sent"), (replace(fake, ident=fake.key), "secret_misuse")):
        fields = signed(one, made.host, "GET", "/")
        answer = made.ask(head("GET /", *(f"{name}: {value}" for name, value in fields.items() if name != "host")))
        assert reason.encode() in answer
    assert len(gate.events("tampering.detected")) == 1
    assert origin.connections == 0


NO_RULE = Decision(Verdict.DENY, Outcome.BLOCKED, Reason.NO_RULE, revision="0" * 64)


@pytest.mark.parametrize(
    ("asked", "reason", "tampers"),
    [
        (IN_GOOD_FAITH["its header"], "no_rule", 0),
        (HIDDEN["another header"], "secret_misuse", 1),
        (head("GET /echo"), "no_rule", 0),
    ],
    ids=["in good faith", "elsewhere", "nothing"],
)
def test_misplaced_placeholder_at_a_host_without_a_rule_is_told_as_that(gate, origins, asked, reason, tampers):
    """A rule for the host wouldn't help: what is told is what would be refused then, too."""
    answer = place(gate, origins.web("good.example"), decision=NO_RULE).ask(asked)
    told = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert (told["reason"], f"reason={reason};".encode() in answer) == (reason, True)
    assert ("the placeholder of `model-key`" in told["detail"]) == bool(tampers)
    assert len(gate.events("tampering.detected")) == tampers == gate.recorder.summary().tampers
