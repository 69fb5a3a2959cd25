"""What an approval gives: what the rule says, less at the word of whoever approves, and never more than it fixed."""

from datetime import UTC, datetime

import pytest

from proxy.approvals.model import (
    ONCE,
    GrantBounds,
    GrantTerms,
    ScopeTooWideError,
    describe_bounds,
    format_duration,
    limit_bounds,
)
from rules.decision import ApprovalTerms, GrantScope
from tests.proxy.approvals.registry_lab import START

A, D, R = GrantScope
FREE, FIXED, HOUR = ApprovalTerms(), ApprovalTerms(lasts=ONCE), ApprovalTerms(lasts=3600.0)
GIVEN = [
    (FREE, "", (1, None, 86400)),
    (FREE, "once", (1, None, 86400)),
    (FREE, "uses 3", (3, None, 86400)),
    (FREE, "1h", (None, None, 3600)),
    (FREE, "uses 3 1h", (3, None, 3600)),
    (FREE, "task", (None, None, None)),
    (FREE, "task, bytes 2GB", (None, 2 << 30, None)),
    (FREE, "bytes 512", (1, 512, 86400)),
    (FREE, "until 2027-01-17", (None, None, datetime(2027, 1, 18, tzinfo=UTC).timestamp() - START)),
    (FIXED, "", (1, None, 86400)),
    (FIXED, "bytes 1KB", (1, 1024, 86400)),
    (FIXED, "once 30m", (1, None, 1800)),
    (HOUR, "", (None, None, 3600)),
    (HOUR, "30m", (None, None, 1800)),
    (HOUR, "once", (1, None, 3600)),
    (HOUR, "uses 7", (7, None, 3600)),
]


@pytest.mark.parametrize(("terms", "words", "extent"), GIVEN, ids=lambda value: str(getattr(value, "lasts", value)))
def test_approval_terms_become_grant_bounds(terms, words, extent):
    found = limit_bounds(terms, D, [GrantTerms.parse([words])], START)
    ends = None if found.ends is None else found.ends - START
    assert (found.width, found.uses, found.bytes, ends) == (D, *extent)


@pytest.mark.parametrize(
    ("terms", "words", "why"),
    [
        (HOUR, "2h", "gives 1h at most"),
        (HOUR, "task", "gives 1h at most"),
        (HOUR, "until 2027-12-31", "gives 1h at most"),
        (FIXED, "uses 2", "one use and no more"),
        (FIXED, "1h", "one use and no more"),
        (FIXED, "task", "one use and no more"),
        (FREE, "until 2020-01-01", "has passed"),
    ],
    ids=lambda value: str(getattr(value, "lasts", value)),
)
def test_terms_beyond_the_rule_are_refused(terms, words, why):
    with pytest.raises(ScopeTooWideError, match=why):
        limit_bounds(terms, A, [GrantTerms.parse([words])], START)


@pytest.mark.parametrize("covers", GrantScope)
@pytest.mark.parametrize("wanted", GrantScope)
def test_scope_wider_than_the_rule_is_refused(covers, wanted):
    offer = GrantTerms.parse([], wanted)
    if list(GrantScope).index(wanted) > list(GrantScope).index(covers):
        with pytest.raises(ScopeTooWideError, match="is wider"):
            limit_bounds(FREE, covers, [offer], START)
    else:
        assert limit_bounds(FREE, covers, [offer], START).width is wanted


def test_strictest_terms_of_several_votes_apply():
    offers = [
        GrantTerms.parse(["task"], "destination"),
        GrantTerms.parse(["uses 5", "2h"]),
        GrantTerms.parse(["bytes 100 1h"]),
    ]
    assert limit_bounds(FREE, R, offers, START) == GrantBounds(D, 5, 100, START + 3600, cuts=True)
    assert limit_bounds(FREE, R, [GrantTerms.parse(["task"]), GrantTerms()], START) == GrantBounds(
        R, 1, None, START + 86400
    )


@pytest.mark.parametrize(
    "words",
    [
        "for ever",
        "uses",
        "uses 0",
        "uses -1",
        "1w",
        "8d",
        "until tomorrow",
        "until",
        "bytes much",
        "once once",
        "1h task",
        "1h until 2027-01-01",
        "uses 1 once",
    ],
)
def test_malformed_grant_terms_are_refused(words):
    with pytest.raises(ValueError, match=r"`|once|end"):
        GrantTerms.parse([words])


def test_unknown_scope_is_refused():
    with pytest.raises(ValueError, match="attempt, destination, rule"):
        GrantTerms.parse([], "everything")


def test_grant_bounds_are_described_in_a_sentence():
    assert describe_bounds(GrantBounds(A, 1, None, START + 86400), START) == "this very attempt, once, in the next 24h"
    assert describe_bounds(GrantBounds(R, None, 2048, None), START) == (
        "anything this rule asks about, as often as the task likes, 2048 bytes in all, until the task ends"
    )
    assert [format_duration(seconds) for seconds in (-1, 5, 60, 61, 120, 3600, 5400, 7200, 86400, 129600, 200000)] == [
        "0s", "5s", "1m", "61s", "2m", "1h", "90m", "2h", "24h", "36h", "2d",
    ]  # fmt: skip
