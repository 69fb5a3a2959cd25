"""Invariants 3 and 5: the checked name is the dialed name, and clients are shown the reason."""

import pytest

from .attempt_network import UNREACHABLE, address_of
from .lab_runner import summary
from .task.attempts import EVERY
from .task.wire import EVIL_NAME

# Attempts on allowed hosts, and the reason why each is refused.
AT_THE_CONNECTION = {
    "address_literal": "no_rule",
    "denied_sni_on_an_allowed_name": "name_mismatch",
    "denied_sni_on_a_spliced_name": "name_mismatch",
    "denied_name": "rule",
    "unknown_name": "no_rule",
    "no_sni": "sni_missing",
    "no_sni_spliced": "sni_missing",
    "one_byte_segments_of_a_denied_sni": "name_mismatch",
    "several_records_of_a_denied_sni": "name_mismatch",
    "encrypted_client_hello": "ech",
    "sni_2130706433": "invalid_name",
    "sni_0x7f_1": "invalid_name",
    "sni_localhost_with_a_dot": "name_mismatch",
    "half_a_hello_and_the_end": "protocol_mismatch",
    "no_tls_on_443": "protocol_mismatch",
    "no_tls_on_443_spliced": "protocol_mismatch",
    "http_on_443": "protocol_mismatch",
    "a_record_that_is_no_hello": "protocol_mismatch",
    "tls_in_the_clear_port": "protocol_mismatch",
    "another_application_by_alpn": "protocol_mismatch",
    "urgent_data_first": "protocol_mismatch",
}
AT_THE_REQUEST = {
    "name_that_asks": "approval_unavailable",
    "another_host_behind_an_allowed_sni": "name_mismatch",
    "another_allowed_host_behind_an_allowed_sni": "name_mismatch",
    "another_host_in_the_clear": "name_mismatch",
    "two_hosts": "ambiguous_request",
    "two_hosts_the_other_first": "ambiguous_request",
    "two_hosts_in_the_clear": "ambiguous_request",
    "no_host": "ambiguous_request",
    "folded_host": "ambiguous_request",
    "host_with_space_before_the_colon": "ambiguous_request",
    "absolute_form_against_host": "ambiguous_request",
    "host_against_absolute_form": "ambiguous_request",
    "absolute_form_in_the_clear": "ambiguous_request",
    "absolute_form_of_an_address": "ambiguous_request",
    "connect_through_the_gate": "protocol_mismatch",
    "connect_to_an_address_through_the_gate": "protocol_mismatch",
    "connect_inside_tls": "protocol_mismatch",
    "connect_to_the_allowed_host_itself": "protocol_mismatch",
    "hidden_second_request_by_two_lengths": "ambiguous_request",
    "hidden_second_request_by_length_and_chunks": "ambiguous_request",
    "numeric_host_2130706433": "name_mismatch",
    "hex_host_0x7f_1": "name_mismatch",
    "localhost_with_a_dot": "name_mismatch",
    "nul_in_the_host": "ambiguous_request",
    "userinfo_in_the_host": "ambiguous_request",
    "method_override": "ambiguous_request",
    "path_climbing": "ambiguous_path",
    "path_climbing_encoded": "ambiguous_path",
    "websocket_without_a_handshake": "protocol_mismatch",
    "h2_another_authority": "name_mismatch",
    "h2_another_host_beside_the_authority": "ambiguous_request",
    "h2_another_host_and_no_authority": "name_mismatch",
    "h2_two_authorities": "ambiguous_request",
    "h2_connect": "ambiguous_request",
    "h2_extended_connect": "ambiguous_request",
    "h2_newline_in_a_field": "ambiguous_request",
    "h2_newline_in_the_path": "ambiguous_request",
    "h2_without_tls": "ambiguous_request",
    "tls_in_tls": "protocol_mismatch",
    "tls_in_tls_for_the_same_name": "protocol_mismatch",
    "not_http_inside_tls": "protocol_mismatch",
}
# The first request passes; the second on the same connection is refused.
AFTER_A_GOOD_ONE = {
    "host_switched_on_a_kept_connection": "name_mismatch",
    "host_switched_in_the_clear": "name_mismatch",
    "host_switched_in_one_segment": "name_mismatch",
    "h2_another_authority_on_the_second_stream": "name_mismatch",
    "forbidden_method": "no_rule",
}
# The named host is reached at whatever address the client connects to.
TO_THE_TRUE_HOST = (
    "good", "good_spliced", "good_in_the_clear", "address_literal_with_an_allowed_sni",
    "address_literal_with_an_allowed_host", "one_byte_segments", "one_byte_segments_spliced", "several_records",
    "upgrade_to_http2_in_the_clear",
)  # fmt: skip
_CUT = {"ECONNRESET", "eof", "CERTIFICATE_VERIFY_FAILED", "DECRYPTION_FAILED_OR_BAD_RECORD_MAC", "WRONG_VERSION_NUMBER"}


def _decisions(attempt_results, attempt):
    """Return the decisions on connections and requests of an attempt."""
    return [
        summary(event) for event in attempt_results.journal.decisions_during(attempt) if event["kind"] != "dns.decided"
    ]


def _was_refused(results, reason):
    """Return whether the client was shown the reason or was cut off."""
    if "reason" in results:
        return results["reason"] == reason
    error = results.get("error", results.get("end"))
    return error in _CUT or error.startswith("GOAWAY")


@pytest.mark.parametrize(("attempt", "reason"), AT_THE_CONNECTION.items())
def test_attempts_with_a_misleading_name_are_refused_at_the_connection(attempt_results, attempt, reason):
    assert _decisions(attempt_results, attempt) == [("connection", "blocked", reason)]
    assert _was_refused(attempt_results.client[attempt], reason), attempt_results.client[attempt]
    assert attempt_results.packets_to(address_of(attempt), *UNREACHABLE) == 0


@pytest.mark.parametrize(("attempt", "reason"), AT_THE_REQUEST.items())
def test_attempts_with_a_misleading_name_are_refused_at_the_request(attempt_results, attempt, reason):
    assert _decisions(attempt_results, attempt) == [("connection", "passed", "rule"), ("request", "blocked", reason)]
    (results,) = (
        attempt_results.client[attempt]
        if isinstance(attempt_results.client[attempt], list)
        else [attempt_results.client[attempt]]
    )
    assert _was_refused(results, reason), results
    assert attempt_results.packets_to(address_of(attempt), *UNREACHABLE) == 0


@pytest.mark.parametrize(("attempt", "reason"), AFTER_A_GOOD_ONE.items())
def test_second_request_with_another_name_is_refused(attempt_results, attempt, reason):
    recorded = [("connection", "passed", "rule"), ("request", "passed", "rule"), ("request", "blocked", reason)]
    assert _decisions(attempt_results, attempt) == recorded
    good, bad = attempt_results.client[attempt]
    assert good["echo"]["destination"][0] == address_of(attempt)
    assert _was_refused(bad, reason), bad
    seen = [one for one in attempt_results.requests if one["destination"][0] == address_of(attempt)]
    assert [one["authority"] for one in seen] == [EVERY[attempt].host]
    assert attempt_results.packets_to(*UNREACHABLE) == 0


@pytest.mark.parametrize("attempt", TO_THE_TRUE_HOST)
def test_connection_reaches_its_named_host_at_any_address(attempt_results, attempt):
    echo = attempt_results.client[attempt]["echo"]
    assert (echo["destination"][0], echo["authority"]) == (address_of(attempt), EVERY[attempt].host)
    assert attempt_results.packets_to(*UNREACHABLE) == 0


@pytest.mark.parametrize("attempt", ["curl_resolve", "curl_resolve_spliced"])
def test_curl_resolve_reaches_the_named_host(attempt_results, attempt):
    results = attempt_results.client[attempt]
    assert (results["status"], results["error"]) == (0, "")
    assert f'"destination": ["{address_of(attempt)}", 443]' in results["said"]
    assert attempt_results.packets_to(*UNREACHABLE) == 0


def test_http2_streams_reach_the_named_host(attempt_results):
    assert [one["echo"]["destination"][0] for one in attempt_results.client["h2_good"]] == [address_of("h2_good")] * 2


def test_http2_upgrade_offer_is_not_forwarded(attempt_results):
    echo = attempt_results.client["upgrade_to_http2_in_the_clear"]["echo"]
    assert {name for name, _ in echo["headers"]}.isdisjoint({"upgrade", "http2-settings", "connection"})


def test_no_origin_receives_a_request_for_another_name(attempt_results):
    assert [
        one for one in attempt_results.requests if EVIL_NAME in one["authority"] or one["target"].endswith("stolen")
    ] == []
    assert [queried for queried, *_ in attempt_results.queries if "evil" in queried] == []


def test_events_have_no_address_that_the_client_chose(attempt_results):
    """`destination.address` of an allowed connection is the dialed address or absent, never one that the task chose."""
    chosen = {
        event["destination"].get("address")
        for event in attempt_results.journal.of(kind="connection.decided", outcome="passed")
    }
    assert chosen.isdisjoint(UNREACHABLE)
