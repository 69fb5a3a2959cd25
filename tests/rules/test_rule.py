"""Rules, findings, layers and commands compare by identity, so that caches keep them apart."""

from dataclasses import is_dataclass, replace

import pytest

from rules.matching.layers import Layer
from rules.matching.precedence import Finding
from rules.rule import Rule
from rules.sandbox import Command
from rules.verdicts import LayerKind, Verdict

ONES = {
    "rule": Rule("file:a", Verdict.ALLOW),
    "finding": Finding(),
    "layer": Layer(LayerKind.CEILING, "corp", ()),
    "command": Command("a", "file:a", ("git",), Verdict.DENY),
}


@pytest.mark.parametrize("kind", ONES)
def test_equal_rules_are_distinct_objects(kind):
    one = ONES[kind]
    like = replace(one) if is_dataclass(one) else one._replace()
    assert type(like) is type(one)
    assert repr(like) == repr(one)
    assert one != like
    assert not one == like  # noqa: SIM201 - each is asked in its own way
    if isinstance(one, tuple):
        assert one != tuple(one)
        assert tuple(one) != one
    assert one == one  # noqa: PLR0124
    assert {one: "known"}.get(like) is None
    assert {one: "known"}[one] == "known"
