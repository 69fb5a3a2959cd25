"""Allowed UDP with real servers, and refusal of all other UDP: invariants 1 to 4, 6, 9 and 11."""

import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.lab import Name

from .attempt_network import dns_names
from .lab_runner import PYTHON, Journal, Steps, summary, wait_until_dead, worker_of
from .task.wire import EVIL
from .udp_origin import ANSWER, CLOCK, DNS, ECHO, NOBODY, SILENT, STRAY

CLOCK_AT, DNS_AT, ECHO_AT, LITERAL, LITERAL6 = (
    "93.184.220.1", "93.184.220.2", "93.184.220.3", "93.184.220.4", "2606:4700::204",
)  # fmt: skip
INWARD = "10.0.0.2"
RULES = f"""
version: 1
name: udp
rules:
  - {{id: clock, to: clock.udp.example, ports: {CLOCK}/udp, action: allow}}
  - {{id: names, to: ns.udp.example, ports: {DNS}/udp, action: allow}}
  - {{id: echo, to: "*.echo.example", ports: {ECHO}-{NOBODY}/udp, action: flag}}
  - {{id: literal, to: [{LITERAL}, "{LITERAL6}"], ports: {ECHO}/udp, action: allow}}
  - {{id: inward, to: inward.udp.example, ports: {ECHO}/udp, action: allow}}
  - {{id: pages, to: pages.udp.example, ports: [443, 80], action: allow}}
  - {{id: evil, to: "**.evil.example", action: deny}}
"""
FLOOD = 20_000
PATIENCE = 60  # seconds: a bound for a failed test, not a measurement


def hosts():
    return dns_names() | {
        "clock.udp.example": Name.at(CLOCK_AT),
        "ns.udp.example": Name.at(DNS_AT),
        "*.echo.example": Name.at(ECHO_AT),
        "inward.udp.example": Name.at(INWARD),
        "pages.udp.example": Name.at("93.184.220.9"),
    }


@pytest.fixture(scope="module")
def origin(runner):
    """Start the UDP servers and set the names of the lab."""
    runner.lab.origin.name(hosts())
    runner.lab.origin.forget()
    server = [sys.executable, str(Path(__file__).with_name("udp_origin.py"))]
    with runner.lab.start_at_origin(server, stdout=-1, text=True) as process:
        assert process.stdout.readline() == "listening\n"
        yield runner.lab.origin
        process.kill()


REFUSED = {
    "a port no rule lists": ("clock.udp.example", 124, "udp"),
    "a name no rule lists": ("more.unknown.example", CLOCK, "udp"),
    "an address of an allowed name": (CLOCK_AT, CLOCK, "udp"),
    "another address": (EVIL, 9999, "udp"),
    "another IPv6 address": ("2606:4700::66", 9999, "udp"),
    "a name for TCP alone": ("pages.udp.example", 80, "udp"),
    "QUIC to an allowed name": ("pages.udp.example", 443, "quic"),
    "QUIC elsewhere": (EVIL, 443, "quic"),
    "a name that is denied": ("other.evil.example", ECHO, "rule"),
    "a name that leads inwards": ("inward.udp.example", ECHO, "non_public_address"),
    "metadata": ("169.254.169.254", 80, "non_public_address"),
    "an address of the pool that stands for nothing": ("198.19.255.253", CLOCK, "unresolved"),
    "the sandbox's own gate": ("127.0.0.1", 15001, "non_public_address"),
}  # fmt: skip


@pytest.fixture(scope="module")
def udp_run(runner, origin):
    """Results of all attempts of one task, its journal, and the packets."""
    results = {}
    with runner.start_steps(
        "udp", runner.rules(RULES, "udp.yaml"), "datagrams", "clock.udp.example", SILENT, "late.echo.example", SILENT
    ) as step:
        results["clock"] = step("clock", "clock.udp.example")
        results["lookup"] = step("lookup", "ns.udp.example", DNS, "any.example")
        results["resolver"] = step("lookup", "8.8.8.8", 53, "clock.udp.example")
        results["echo"] = step("ask", "a.echo.example", ECHO, "hello")
        results["literal"] = [step("ask", address, ECHO, "hello") for address in (LITERAL, LITERAL6)]
        results["large"] = step("large", "large.echo.example", ECHO, 0, 1472, 1473, 9000, 65507)
        results["stray"] = step("unconnected", "stray.echo.example", STRAY, "mine")
        results["nobody"] = step("ask", "nobody.echo.example", NOBODY)
        results["spoofed"] = [
            step("spoof", EVIL, CLOCK_AT, CLOCK),
            step("spoof", EVIL, step("resolved", "spoof.echo.example"), SILENT),
        ]
        results["refused"] = {what: step("ask", host, port) for what, (host, port, _) in REFUSED.items()}
    return results, Journal(runner.journal("udp")), origin.packets()


def flow_decisions(journal, name, **more):
    """Return the decisions on flows to a name."""
    return journal.of(kind="connection.decided", destination__name=name, protocol="udp", **more)


def test_ntp_server_answers_and_its_flow_is_recorded(udp_run):
    results, journal, _ = udp_run
    assert results["clock"] == [48, 0x24, True]
    decision, *_ = flow_decisions(journal, "clock.udp.example")
    assert (decision["verdict"], decision["rules"]) == ("allow", ["udp:clock"])
    assert decision["destination"] == {"name": "clock.udp.example", "address": CLOCK_AT, "port": CLOCK}
    (closing,) = journal.of(kind="connection.closed", cause=decision["id"])
    assert (closing["outcome"], closing["bytes"], closing.get("reason")) == ("passed", {"up": 48, "down": 48}, None)


def test_dns_server_on_another_port_answers(udp_run):
    results, _, packets = udp_run
    assert results["lookup"] == {"rcode": 0, "answers": 1, "address": ANSWER}
    assert results["resolver"]["address"].startswith("198.18.")
    assert [one for one in packets if one.destination == "8.8.8.8"] == []


def test_listed_addresses_are_reached_over_ipv4_and_ipv6(udp_run):
    results, journal, _ = udp_run
    assert results["literal"] == ["hello", "hello"]
    for address in (LITERAL, LITERAL6):
        (decision,) = journal.of(kind="connection.decided", destination__address=address, protocol="udp")
        assert (decision["rules"], "name" in decision["destination"]) == (["udp:literal"], False)


def test_flagged_flow_passes_and_is_recorded_as_flag(udp_run):
    results, journal, _ = udp_run
    assert results["echo"] == "hello"
    (decision,) = flow_decisions(journal, "a.echo.example")
    assert (decision["verdict"], decision["outcome"], decision["rules"]) == ("flag", "passed", ["udp:echo"])


def test_large_datagrams_arrive_whole(udp_run):
    results, journal, _ = udp_run
    assert results["large"] == [True] * 5
    ends = [
        journal.of(kind="connection.closed", cause=one["id"])[0]
        for one in flow_decisions(journal, "large.echo.example")
    ]
    assert sorted(end["bytes"]["up"] for end in ends) == [0, 1472, 1473, 9000, 65507]
    assert [end["bytes"]["up"] for end in ends] == [end["bytes"]["down"] for end in ends]


def test_only_answers_from_the_destination_are_delivered(udp_run):
    results, _, _ = udp_run
    assert results["stray"] == [["asked: mine", True, STRAY]]


def test_unreachable_port_is_refused_and_recorded_as_failed(udp_run):
    results, journal, _ = udp_run
    assert results["nobody"] == "ECONNREFUSED"
    (decision,) = flow_decisions(journal, "nobody.echo.example")
    (closing,) = journal.of(kind="connection.closed", cause=decision["id"])
    assert (closing["outcome"], closing["reason"]) == ("failed", "upstream_failed")


@pytest.mark.parametrize("what", REFUSED)
def test_unlisted_udp_is_refused_at_once_and_recorded(udp_run, what):
    results, journal, _ = udp_run
    host, port, reason = REFUSED[what]
    assert results["refused"][what] == "ECONNREFUSED"
    events = journal.of(kind="connection.decided", protocol="udp", destination__port=port)
    if reason == "unresolved":
        recorded = [event for event in events if event["destination"] == {"port": port}]
    elif not host[-1].isalpha():
        recorded = [one for one in events if one["destination"] == {"address": host, "port": port}]
    else:
        recorded = [one for one in events if one["destination"].get("name") == host]
    assert [summary(event)[1:] for event in recorded] == [("blocked", reason)]


def test_refused_and_spoofed_datagrams_reach_no_origin(udp_run):
    """Nor do datagrams with a spoofed source, even to allowed destinations."""
    results, _, packets = udp_run
    assert results["spoofed"] == [15, 15]
    resolvers = {one.destination for one in packets if one.port == 53}
    seen_at = {
        (one.destination, one.port) for one in packets if one.protocol == 17 and one.destination not in resolvers
    }
    assert {address for address, _ in seen_at} == {CLOCK_AT, DNS_AT, ECHO_AT, LITERAL, LITERAL6}
    # Later fragments of large datagrams have no port.
    assert {one for one in seen_at if one[0] != ECHO_AT} == {
        (CLOCK_AT, CLOCK), (DNS_AT, DNS), (LITERAL, ECHO), (LITERAL6, ECHO),
    }  # fmt: skip


def test_last_datagram_is_sent_before_the_task_ends(udp_run):
    _, journal, packets = udp_run
    (decision,) = flow_decisions(journal, "late.echo.example")
    (closing,) = journal.of(kind="connection.closed", cause=decision["id"])
    assert (closing["outcome"], closing["bytes"]) == ("passed", {"up": 10, "down": 0})
    assert (ECHO_AT, SILENT) in {(one.destination, one.port) for one in packets}
    assert summary(flow_decisions(journal, "clock.udp.example")[-1])[1:] == (
        "blocked",
        "udp",
    )  # a port that no rule lists


def test_udp_flood_is_bounded_and_counted(runner, origin):
    soon = RULES.replace("action: flag", "idle_timeout: 2s, action: flag")
    with runner.start_steps("udp-flood", runner.rules(soon, "udp-flood.yaml"), "datagrams") as step:
        floods = [(EVIL, 1000, 1050, 200, FLOOD), (step("resolved", "flood.echo.example"), SILENT, SILENT, 900, 3000)]
        for flood in floods:
            step("flood", *flood)
            # A datagram may be lost in the flood, and a new flow finds room once others are idle.
            until = time.monotonic() + PATIENCE
            while (results := step("clock", "clock.udp.example", 1)) != [48, 0x24, True]:
                assert time.monotonic() < until, results
                time.sleep(0.1)
        assert step("ask", "127.0.0.1", 15001) == "ECONNREFUSED"
    journal = Journal(runner.journal("udp-flood"))
    refused = Counter(summary(e)[2] for e in journal.of(kind="connection.decided", outcome="blocked"))
    assert 0 < refused["udp"] < FLOOD / 10
    assert origin.packets_to(EVIL) == 0
    assert journal.of(kind="gate.error") == []
    passed = flow_decisions(journal, "flood.echo.example", outcome="passed")
    assert 50 < len(passed) <= 900  # at most 512 at a time; the kernel drops the rest


def test_two_sandboxes_share_no_udp_state(runner, origin):
    rules = runner.rules(RULES, "udp.yaml")
    with (
        runner.start_steps("udp-ours", rules, "datagrams") as ours,
        runner.start_steps("udp-theirs", rules, "datagrams") as theirs,
    ):
        assert (ours("open_flow", "ours.echo.example", ECHO), theirs("open_flow", "theirs.echo.example", ECHO)) == (
            "first",
            "first",
        )
        address = ours("resolved", "secret.echo.example")
        assert theirs("ask", address, ECHO) == "ECONNREFUSED"  # it stands for nothing there
        assert (ours("use_flow"), theirs("use_flow")) == ("again", "again")
    for mine, other in (("ours", "theirs"), ("theirs", "ours")):
        journal = Journal(runner.journal(f"udp-{mine}"))
        assert len(flow_decisions(journal, f"{mine}.echo.example")) == 1
        assert flow_decisions(journal, f"{other}.echo.example") == []


def test_udp_is_refused_at_once_without_a_worker(runner, origin):
    with runner.start("udp-lost", runner.rules(RULES, "udp.yaml"), PYTHON, "-m", "task.datagrams") as process:
        step = Steps(process)
        assert step("open_flow", "a.echo.example", ECHO) == "first"
        worker = worker_of(process)
        os.kill(worker, signal.SIGKILL)
        wait_until_dead(worker)
        origin.forget()
        assert step("use_flow") == "ECONNREFUSED"
        assert [step("ask", address, ECHO) for address in (LITERAL, LITERAL6)] == ["ECONNREFUSED"] * 2
        process.communicate(timeout=60)
    assert origin.packets_to(LITERAL, LITERAL6, ECHO_AT) == 0
