"""Loads rules and decides attempts that a test writes as short texts, through the public parsers."""

import re
import tempfile
from pathlib import Path

from rules.attempt import Caller
from rules.loading.cases import parse_attempt, verdict_of
from rules.loading.load import Loaded, read
from rules.problems import RuleFileError

SECRET = "{{id: {0}, from: {{env: X}}, as: V{1}, hosts: x.example, in: {{header: authorization}}}}"


def secrets(rules: str) -> str:
    """The secrets that rules name, for those who don't care what they are."""
    named = dict.fromkeys(re.findall(r"credential: ([a-z]+)[,}]", rules))
    return f"secrets: [{', '.join(SECRET.format(name, n) for n, name in enumerate(named))}]" if named else ""


def loaded(rules: str, head: str = "") -> Loaded:
    """Load rules written as the lines of a `rules:` list (or a whole file, if it has a version)."""
    text = (
        rules
        if "version:" in rules
        else f"version: 1\nname: t\n{head}\nrules:\n{rules}\n{'' if 'secrets:' in head else secrets(rules)}\n"
    )
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


def decide(rules: str, attempt: str, head: str = "", **who):
    """Decide; `who` is `task`, `labels` and `at`, and `headers`, `body` and `credential` of the request."""
    asked = policy(rules, head)
    question = parse_attempt(attempt)
    carried = {key: who.pop(key) for key in ("headers", "body", "credential") if key in who}
    if carried:
        question = question._replace(request=question.request._replace(**carried))
    return question._replace(caller=Caller(**who)).decide(asked)


def told(decision) -> str:
    """A decision in a line: `allow rule t:a,t:b`."""
    return " ".join(filter(None, (verdict_of(decision), decision.reason, ",".join(decision.rules))))
