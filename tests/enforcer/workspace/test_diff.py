"""Differences and merges, held against their definitions, and against git where it is there."""

import shutil
import subprocess
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enforcer.workspace.diff import counted, differences, hunks, merge, split
from tests.support import harness

LINE = st.sampled_from([b"a\n", b"b\n", b"c\n", b"\n", b"\x1b[2J\xff\n", b"tab\there\n"])
TEXT = st.builds(lambda lines, end: b"".join(lines) + end, st.lists(LINE, max_size=12), st.sampled_from([b"", b"end"]))


def patched(old, blocks, new):
    at, out = 0, []
    for block in blocks:
        out += old[at : block.start] + new[block.new_start : block.new_end]
        at = block.end
    return out + old[at:]


@settings(max_examples=150, deadline=None)
@given(TEXT, TEXT, st.sampled_from([0, 20, 500_000]))
def test_blocks_turn_the_old_text_into_the_new(old, new, most):
    before, after = split(old), split(new)
    blocks = differences(before, after, most)
    assert patched(before, blocks, after) == after
    assert all(one.end < two.start and one.new_end < two.new_start for one, two in pairwise(blocks))
    assert counted(old, new).added - counted(old, new).deleted == len(after) - len(before)


@settings(max_examples=150, deadline=None)
@given(TEXT, TEXT, TEXT)
def test_merging_obeys_its_laws(base, ours, theirs):
    assert merge(base, ours, base) == ours
    assert merge(base, base, theirs) == theirs
    assert merge(base, ours, ours) == ours
    merged = merge(base, ours, theirs)
    assert merged == merge(base, theirs, ours)
    if merged is not None:
        lines = split(merged)
        for side in (ours, theirs):  # no line that one side added is lost
            for block in differences(split(base), split(side)):
                assert all(line in lines for line in split(side)[block.new_start : block.new_end])


CONFLICTS = [
    ("the same line", "a\nb\nc\n", "a\nX\nc\n", "a\nY\nc\n", None),
    ("lines next to each other", "a\nb\nc\n", "X\nb\nc\n", "a\nY\nc\n", None),
    ("a line between", "a\nb\nc\n", "X\nb\nc\n", "a\nb\nY\n", "X\nb\nY\n"),
    ("both add at the end", "a\n", "a\nX\n", "a\nY\n", None),
    ("both add the same", "a\n", "a\nX\n", "a\nX\n", "a\nX\n"),
    ("one adds a line end", "a\nb\nc", "X\nb\nc", "a\nb\nc\n", "X\nb\nc\n"),
    ("deleted and edited", "a\nb\nc\nd\n", "a\nd\n", "a\nb\nY\nd\n", None),
    ("carriage returns are part of lines", "a\r\nb\r\nc\r\n", "X\r\nb\r\nc\r\n", "a\r\nb\r\nY\r\n", "X\r\nb\r\nY\r\n"),
]


@pytest.mark.parametrize(
    ("base", "ours", "theirs", "merged"), [c[1:] for c in CONFLICTS], ids=[c[0] for c in CONFLICTS]
)
def test_three_way_merge_results(base, ours, theirs, merged):
    assert merge(base.encode(), ours.encode(), theirs.encode()) == (None if merged is None else merged.encode())


def test_hunks_apply_with_patch(tmp_path):
    if shutil.which("patch") is None:
        harness.missing("patch")
    old = "".join(f"{number}\n" for number in range(60))
    new = old.replace("3\n4\n", "three\n", 1).replace("40\n", "40\nand more\n") + "no end"
    (tmp_path / "file").write_text(old)
    diff = "\n".join(["--- a", "+++ b", *hunks(old.encode(), new.encode())]) + "\n"
    subprocess.run(["patch", "-s", "file"], input=diff, text=True, cwd=tmp_path, check=True)
    assert (tmp_path / "file").read_text() == new


def test_expensive_diff_becomes_one_block():
    old = [b"%d\n" % (number * number % 50) for number in range(100_000)]
    new = [b"%d\n" % (number * number * 7 % 53) for number in range(100_000)]
    assert patched(old, differences(old, new), new) == new


def test_diff_escapes_control_characters():
    lines = list(hunks(b"plain\n", b"\x1b]0;owned\x07\r\x9b\xe2\x80\xae\ttab\n"))
    assert lines[-1] == "+\\x1b]0;owned\\x07\\x0d\\x9b\\u202e\ttab"
