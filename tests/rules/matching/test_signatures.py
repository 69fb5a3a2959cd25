"""Every combination of patterns that some text has is found, with such a text."""

import pytest

from rules.diff.compare import compare
from rules.matching.signatures import LABELS, SEGMENTS, Signatures
from rules.values.globs import Glob
from tests.rules.rule_texts import policy

TEXTS = [
    ([".*"], SEGMENTS, {".x"}),  # `.` and `..` are no segments
    (["*."], SEGMENTS, {"x."}),
    (["*.", ".-."], SEGMENTS, {"x.", ".-."}),
    (["-*"], LABELS, set()),  # no label begins with a hyphen
    (["a*", "*-b"], LABELS, {"a", "a-b", "x-b"}),
]


@pytest.mark.parametrize(("patterns", "grammar", "texts"), TEXTS, ids=[" ".join(row[0]) for row in TEXTS])
def test_each_combination_has_a_text(patterns, grammar, texts):
    parts = [(Glob.parse(text) if "*" in text else text,) for text in patterns]
    found = {each.parts[0]: each.signature for each in Signatures(parts, grammar).find(bool)}
    assert set(found) == texts
    assert len(set(found.values())) == len(found)


def test_leading_dot_in_a_path_changes_the_signature():
    before = policy("- {id: a, to: x.example, http: {methods: GET, paths: /a}, action: allow}")
    after = policy("- {id: a, to: x.example, http: {methods: GET, paths: [/a, /.*]}, action: allow}")
    assert not compare(before, after).is_empty
