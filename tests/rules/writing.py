"""Rule files and attempts as tests write them: short, and through the same doors as everybody's."""

import tempfile
from pathlib import Path

from rules.cases import parse_attempt, said
from rules.load import Loaded, read
from rules.problems import RuleFileError


def loaded(rules: str, head: str = "") -> Loaded:
    """Load rules written as the lines of a `rules:` list (or a whole file, if it has a version)."""
    text = rules if "version:" in rules else f"version: 1\nname: t\n{head}\nrules:\n{rules}\n"
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "t.yaml")
        path.write_text(text, encoding="utf-8")
        return read([path])


def policy(rules: str, head: str = ""):
    return loaded(rules, head).policy


def problems(rules: str, head: str = "") -> list[str]:
    """Every problem's message."""
    try:
        loaded(rules, head)
    except RuleFileError as error:
        return [problem.message for problem in error.problems]
    return []


def decide(rules: str, attempt: str, head: str = ""):
    asked = policy(rules, head)
    return parse_attempt(attempt).decide(asked)


def told(decision) -> str:
    """A decision in a line: `allow rule t:a,t:b`."""
    return " ".join(filter(None, (said(decision), decision.reason, ",".join(decision.rules))))
