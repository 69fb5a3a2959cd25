"""docs/reference/lint.md has a section for every code, with its word and severity; no code is used twice or made up."""

import re
from pathlib import Path

from rules.lint.findings import CHECKS

DOCS = (Path(__file__).parents[3] / "docs/reference/lint.md").read_text()


def test_every_code_is_documented_and_no_other():
    sections = re.findall(r"^### (EX\d{3}) ([\w-]+) \((\w+)\)\n\n(\S.{30,})", DOCS, re.MULTILINE)
    assert [row[:3] for row in sections] == [(check.code, check.name, check.severity) for check in CHECKS]


def test_codes_and_words_are_unique():
    assert len({check.code for check in CHECKS}) == len({check.name for check in CHECKS}) == len(CHECKS)


def test_messages_follow_the_common_form():
    for check in CHECKS:
        for text in (check.meaning, check.remedy):
            assert not text.endswith("."), check
            assert text[0].islower(), check
