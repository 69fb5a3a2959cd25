"""Where looking for secrets goes wrong, breaks off, or is to go on under other rules."""

import pytest

from tests.proxy.inspection.inspection_clients import rest, wait_for
from tests.proxy.inspection.inspection_leaks_harness import FILLER, head, never_told, place, post, recording
from tests.proxy.leaky import TOKEN

# --- what goes wrong ---


def raising(*_arguments, **_named):
    raise ValueError(f"this must be shown to nobody: {TOKEN}")


WRONG = ["proxy.dlp.head_scan.candidates", "proxy.dlp.body_scan.candidates", "proxy.secrets.detection._ways"]


@pytest.mark.parametrize("part", WRONG)
def test_where_looking_fails_a_block_blocks(gate, origins, monkeypatch, part):
    monkeypatch.setattr(part, raising)
    got = []
    origin = origins.script(recording(got), "good.example", tls=True, alpn=["http/1.1"])
    try:
        answer = post(place(gate, origin, "block"), FILLER)
    except ConnectionError:
        answer = b""
    assert not answer.startswith(b"HTTP/1.1 200")
    wait_for(lambda: gate.events("gate.error"))
    assert all(not each for each in got)
    (fault,) = gate.events("gate.error")
    assert (fault["fault"]["where"], fault["fault"]["detail"]) == (
        "inspection", "RuntimeError: leaving bytes could not be looked at: ValueError",
    )  # fmt: skip
    never_told(gate, answer)


@pytest.mark.parametrize("part", WRONG)
def test_where_looking_fails_a_flag_lets_out_and_counts(gate, origins, monkeypatch, part):
    monkeypatch.setattr(part, raising)
    got = []
    origin = origins.script(recording(got), "good.example", tls=True, alpn=["http/1.1"])
    answer = post(place(gate, origin), FILLER)
    assert answer.startswith(b"HTTP/1.1 200")
    assert got == [FILLER]
    (fault,) = gate.events("gate.error")
    assert fault["fault"]["detail"] == "leaving bytes could not be looked at: ValueError"
    never_told(gate, answer)


def test_what_breaks_off_is_looked_at_as_far_as_it_has_left(gate, origins):
    origin = origins.script(recording([]), "good.example", tls=True, alpn=["http/1.1"])
    made = place(gate, origin)
    connection = made.connect()
    ask = head("POST /a", "Content-Length: 100000")
    connection.sendall(ask.replace("HOST", made.host).replace("\n", "\r\n").encode() + TOKEN.encode())
    wait_for(lambda: origin.requests)
    connection.close()
    wait_for(lambda: gate.events("request.completed"))
    assert [leak["detail"] for leak in gate.events("secret.detected")] == ["github-token in the body"]


def test_other_rules_tighten_what_is_under_way(gate, origins):
    got = []
    origin = origins.script(recording(got), "good.example", tls=True, alpn=["http/1.1"])
    made = place(gate, origin)
    with made.connect() as connection:
        ask = head("POST /a", f"Content-Length: {len(TOKEN) + 5}")
        connection.sendall(ask.replace("HOST", made.host).replace("\n", "\r\n").encode() + b"abcde")
        wait_for(lambda: got and got[-1] == b"abcde")
        gate.rules(
            gate.directory.joinpath("rules.yaml")
            .read_text()
            .split("rules: ")[1]
            .replace("action", "scan: block, action")
        )
        conversation = next(iter(gate.inspection._engine._connections.values()))
        gate.loop.run(lambda: conversation.review(conversation._handover.decision))
        connection.sendall(TOKEN.encode())
        assert b'"leak"' in rest(connection)
    assert got == [b"abcde"]
