"""CHANGELOG.md has the form of Keep a Changelog 1.1: releases with dates, kinds of change, one line a change."""

import re
from pathlib import Path

TEXT = (Path(__file__).resolve().parents[2] / "CHANGELOG.md").read_text()
KINDS = ["Upgrading", "Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]  # in this order
RELEASES = re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:]
MOST_WORDS = 35


def test_releases_have_a_version_and_a_date():
    first, *others = [release.partition("\n")[0] for release in RELEASES]
    assert first == "[Unreleased]" or re.fullmatch(r"\[[\d.]+\] - \d{4}-\d\d-\d\d", first)
    assert [one for one in others if not re.fullmatch(r"\[[\d.]+\] - \d{4}-\d\d-\d\d", one)] == []


def test_changes_are_under_a_known_heading():
    for release in RELEASES:
        before, *sections = re.split(r"^### ", release, flags=re.MULTILINE)
        kinds = [section.partition("\n")[0] for section in sections]
        assert kinds == [kind for kind in KINDS if kind in kinds]
        assert re.findall(r"^- .*", before, re.MULTILINE) == [], "a change without a kind"


def test_each_change_is_one_unique_line():
    lines = [line for line in TEXT.splitlines() if line.startswith(("-", " "))]
    assert [line for line in lines if not line.startswith("- ") or len(line.split()) > MOST_WORDS] == []
    assert [line for line in lines if lines.count(line) > 1] == []
