"""Invariant 9: only public addresses are reached, and not those of the sandbox, its gate and its pool."""

import pytest

from .attempt_network import UNREACHABLE, address_of
from .lab_runner import summary
from .task.addresses import NOT_PUBLIC, slug
from .task.attempts import EVERY

WEB = (80, 443)


def _decisions(attempt_results, attempt):
    return [
        summary(event) for event in attempt_results.journal.decisions_during(attempt) if event["kind"] != "dns.decided"
    ]


@pytest.mark.parametrize("address", NOT_PUBLIC)
@pytest.mark.parametrize("how", ["inspected", "in_the_clear", "spliced"])
def test_allowed_name_with_non_public_address_is_denied(attempt_results, how, address):
    attempt = f"{how}_{slug(address)}"
    refused = {"spliced": [("connection", "blocked", "non_public_address")]}.get(
        how, [("connection", "passed", "rule"), ("request", "blocked", "non_public_address")]
    )
    assert _decisions(attempt_results, attempt) == refused
    assert attempt_results.client[attempt]["reason"] == "non_public_address"
    assert attempt_results.packets_to(address) == 0
    assert [one for one in attempt_results.loopback if one.port in WEB] == []


def test_only_listed_private_addresses_are_reached(attempt_results):
    assert attempt_results.client["listed_private_address"]["echo"]["destination"][0] == "10.20.0.9"
    assert _decisions(attempt_results, "private_address_that_is_not_listed")[-1] == (
        "request",
        "blocked",
        "address_not_listed",
    )
    assert attempt_results.packets_to("10.99.0.9") == 0


def test_rebinding_name_is_checked_at_every_lookup(attempt_results):
    good, bad = attempt_results.client["rebinding_to_metadata"]
    assert (good["echo"]["destination"][0], bad["reason"]) == ("93.184.217.1", "non_public_address")
    first, kept, anew = attempt_results.client["rebinding_while_inspected"]
    assert {first["echo"]["destination"][0], kept["echo"]["destination"][0]} == {"93.184.217.2"}
    assert anew["reason"] == "non_public_address"
    bad, good = attempt_results.client["rebinding_the_other_way"]
    assert (bad["reason"], good["echo"]["destination"][0]) == ("non_public_address", "93.184.217.3")
    assert attempt_results.packets_to("169.254.169.254", "10.0.0.2", "127.0.0.1") == 0


def test_numeric_spellings_of_addresses_are_refused_in_the_sandbox(attempt_results):
    assert set(attempt_results.client["spelled_addresses_stay_inside"].values()) == {"ECONNREFUSED"}
    assert attempt_results.journal.decisions_during("spelled_addresses_stay_inside") == []


def test_literal_ipv6_addresses_are_refused(attempt_results):
    reasons = {
        address: results.get("reason") if isinstance(results, dict) else results
        for address, results in attempt_results.client["literal_ipv6"].items()
    }
    assert reasons == {
        "2606:4700::66": "no_rule",
        "::ffff:93.184.219.66": "no_rule",
        "64:ff9b::5db8:db42": "non_public_address",
        "fe80::1%lo": "non_public_address",
        "ff02::1": "ENETUNREACH",
    }
    assert [summary(event)[2] for event in attempt_results.journal.decisions_during("literal_ipv6")] == list(
        reasons.values()
    )[:-1]
    assert attempt_results.packets_to(*UNREACHABLE) == 0


def test_request_to_a_private_address_reaches_its_host_name(attempt_results):
    """A plain HTTP request reaches its allowed Host, whatever address the client connects to."""
    results = attempt_results.client["literal_private_addresses"]
    reached = {one["echo"]["destination"][0] for one in results.values() if isinstance(one, dict) and "echo" in one}
    assert reached == {address_of("literal_private_addresses")}
    assert results["0.0.0.1"] in ("ECONNRESET", {"error": "ECONNRESET"})  # at once, or with the first bytes
    assert results["255.255.255.255"] == "ENETUNREACH"
    assert attempt_results.packets_to(*UNREACHABLE) == 0


def test_connections_to_the_gates_own_port_are_reset(attempt_results):
    """In every spelling of the address, and for every protocol."""
    results = dict(attempt_results.client["the_gate_s_own_port"])
    assert results.pop("93.184.219.66")["reason"] == "no_rule"  # the same port of another host is like any other
    assert {one["error"] if isinstance(one, dict) else one for one in results.values()} == {"ECONNRESET"}
    recorded = [summary(event) for event in attempt_results.journal.decisions_during("the_gate_s_own_port")]
    assert recorded == [("connection", "blocked", "non_public_address")] * 7 + [("connection", "blocked", "no_rule")]


def test_unassigned_pool_address_is_reset(attempt_results):
    assert set(attempt_results.client["pool_address_that_stands_for_nothing"].values()) == {"ECONNRESET"}
    assert (
        _decisions(attempt_results, "pool_address_that_stands_for_nothing")
        == [("connection", "blocked", "unresolved")] * 3
    )
    host = EVERY["pool_address_that_stands_for_nothing"].host
    assert [queried for queried, *_ in attempt_results.queries if queried == host] == []
