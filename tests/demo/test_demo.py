"""What the demo prints: the tiers are told apart, and what it advises to look at is there."""

from pathlib import Path

from tests.demo.__main__ import kept_hint, tier


def answered(named, answer, *by):
    return {"kind": "approval.answered", "approval": {"id": named, "answer": answer, "by": list(by)}}


def test_what_people_were_asked_is_told_apart_from_what_is_looked_at_afterwards():
    events = [answered("x", "approved", "ada"), answered("y", "rejected", "bo"), answered("x", "approved", "ada", "bo")]
    held = {"verdict": "flag", "approval": {"id": "x"}}
    assert tier({"verdict": "flag"}, events) == ("flag", "-")
    assert tier(held, events) == ("ask", "ada, bo: approved")


def test_the_advice_names_the_journal_that_is_kept():
    said = kept_hint("exeat: see it with `exeat log --task 1-2`\n", Path("/kept/journal"))
    assert said.endswith("exeat log --journal /kept/journal --task 1-2`")
