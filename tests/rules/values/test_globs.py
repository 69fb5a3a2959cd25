"""Trie and plain pattern matching agree, and the cost of a lookup is independent of the pattern count."""

import sys

from hypothesis import given, settings
from hypothesis import strategies as st

from rules.values.globs import MANY, ONE, Glob, Trie, pattern_matches

PARTS = st.sampled_from(["a", "b", "ab", "aab", "b1", ""])
PATTERN_PARTS = st.sampled_from(["a", "b", "ab", ONE, MANY, Glob.parse("a*"), Glob.parse("*b"), Glob.parse("a*b"), Glob.parse("*a*"), Glob.parse("a*a*b")])  # fmt: skip
PATTERNS = st.lists(PATTERN_PARTS, max_size=5).map(tuple)


@settings(max_examples=400, deadline=None)
@given(st.lists(PATTERNS, max_size=8), st.lists(PARTS, max_size=6))
def test_trie_agrees_with_single_patterns(patterns, parts):
    trie = Trie()
    slots = {pattern: trie.add(pattern) for pattern in patterns}
    found = trie.find(parts)
    assert sorted(found) == sorted({slots[pattern] for pattern in patterns if pattern_matches(pattern, parts)})
    assert len(set(slots.values())) == len(slots) == len(trie.values)


GLOBS = [
    ("a*", ["a", "ab", "aa"], ["", "b", "ba"]),
    ("*a", ["a", "ba"], ["", "ab"]),
    ("a*a", ["aa", "aba"], ["a", "ab"]),
    ("*a*b*", ["ab", "xaxbx"], ["ba", "a"]),
    ("ab*ba", ["abba", "abxba"], ["aba", "abb"]),
    ("a**b", ["ab", "axb"], ["a"]),
]


def test_globs_match():
    for text, covered, others in GLOBS:
        glob = Glob.parse(text)
        assert [part for part in covered if not glob.matches(part)] == [], text
        assert [part for part in others if glob.matches(part)] == [], text


def calls(function, *arguments):
    """Count what is called: the machine's speed has no part in it."""
    count = 0

    def profile(frame, event, argument):
        nonlocal count
        count += event in {"call", "c_call"}

    sys.setprofile(profile)
    try:
        function(*arguments)
    finally:
        sys.setprofile(None)
    return count


def test_trie_lookup_cost_is_independent_of_pattern_count():
    few, crowd = Trie(), Trie()
    for trie, number in ((few, 10), (crowd, 20_000)):
        for n in range(number):
            trie.add(("com", "example", f"h{n}"))
            trie.add(("com", f"e{n}", ONE, MANY))
            trie.add(("com", "globs", Glob.parse(f"p{n:05}*")))
            trie.add(("com", "globs", Glob.parse(f"*s{n:05}")))
    for parts in (
        ("com", "example", "h7"),
        ("com", "e7", "x", "y"),
        ("com", "globs", "p00007xx"),
        ("com", "globs", "xxs00007"),
        ("org", "x"),
    ):
        assert calls(few.find, parts) == calls(crowd.find, parts), parts


def test_lookup_stops_at_the_first_unknown_label():
    trie = Trie()
    trie.add(("com", "example"))
    assert calls(trie.find, ["com", "evil", *["a"] * 125]) == calls(trie.find, ["com", "evil"])
    assert calls(trie.find, ["com", "example", *["a"] * 125]) <= calls(trie.find, ["com", "example", "a"])


def test_nested_wildcards_stay_bounded():
    trie = Trie()
    for last in "abcdefgh":
        trie.add((MANY, "a", MANY, "a", MANY, last))
    parts = ["a"] * 400
    assert calls(trie.find, parts) < 100 * len(parts)
