"""Invariant 12: a cut connection ends as a cut, and an ended one as an end."""

import pytest

from .task.attempts import EVERY


@pytest.mark.parametrize(
    "attempt", ["reset_in_the_body", "reset_in_the_body_spliced", "reset_in_the_body_in_the_clear"]
)
def test_server_reset_within_a_body_resets_the_client(attempt_results, attempt):
    results = attempt_results.client[attempt]
    assert (results["status"], results["error"]) == (200, "ECONNRESET")
    spliced = attempt.endswith("spliced")
    kinds = ("connection.decided", "connection.closed") if spliced else ("request.decided", "request.completed")
    (decided,) = attempt_results.journal.of(kind=kinds[0], destination__name=EVERY[attempt].host)
    (ended,) = attempt_results.journal.of(kind=kinds[1], cause=decided["id"])
    assert (ended["outcome"], ended.get("reason")) == ("failed", "upstream_failed")


def test_end_of_a_raw_connection_is_an_end(attempt_results):
    assert attempt_results.client["end_of_a_raw_connection"]["end"] == "eof"


def test_urgent_data_is_relayed_in_order(attempt_results):
    assert attempt_results.client["urgent_data_passed_on"]["got"].endswith("22\r\nbefore ! after")
