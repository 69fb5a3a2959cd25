"""Attempts that stand for all that a rule covers: each wildcard filled with a word that nobody writes.

So that lint can ask the policy itself what it decides, and need not know how. A rule that names the very word would be
told wrongly; it is a hint and no verdict.
"""

from typing import TYPE_CHECKING, Final, NamedTuple

from rules.attempt import Attempt, Protocol, Request
from rules.globs import MANY
from rules.lint.cover import filled
from rules.names import HostName, InvalidName

if TYPE_CHECKING:
    from datetime import date

    from rules.decision import Decision
    from rules.globs import Part
    from rules.matching.policy import Policy
    from rules.patterns import NamePattern
    from rules.rule import Rule
    from rules.selectors import For, Pattern

WORD: Final = "lint-stand-in"


class Standing(NamedTuple):
    """Somebody a rule is for."""

    task: str = ""
    labels: dict[str, str] = {}  # noqa: RUF012  never changed


def name_of(pattern: "NamePattern") -> HostName | None:
    """Give a name that the pattern covers, or None: it is too long to have one."""
    labels = [WORD if part is MANY else filled(part, WORD) for part in pattern.parts]
    if pattern.text.startswith("**."):
        labels.pop()  # the name itself
    try:
        return HostName(".".join(reversed(labels)))
    except InvalidName:
        return None


def path_of(parts: "tuple[Part, ...]") -> str:
    """Give a path that the parts of a pattern cover, without a slash in front."""
    return "/".join(WORD if part is MANY else filled(part, WORD) for part in parts)


def somebody(rule: "Rule") -> Standing:
    """Give a task with labels that the rule is for."""
    selector: For | None = rule.selector
    if selector is None:
        return Standing()
    task = _text(selector.tasks[0]) if selector.tasks else ""
    return Standing(task, {name: _text(values[0]) for name, values in selector.labels})


class Asker(NamedTuple):
    """Asks a policy what it decides today about attempts of those that a rule is for."""

    policy: "Policy"
    today: "date"

    def connection(self, rule: "Rule", name: HostName, port: int, protocol: Protocol) -> "Decision":
        """Decide a connection."""
        task, labels = somebody(rule)
        return self.policy.decide(Attempt(protocol, name, port, task=task, labels=labels, at=self.today))

    def request(self, rule: "Rule", name: HostName, request: Request) -> "Decision":
        """Decide a request over HTTPS."""
        task, labels = somebody(rule)
        return self.policy.decide(Attempt(Protocol.TLS, name, 443, request, task=task, labels=labels, at=self.today))


def _text(pattern: "Pattern") -> str:
    return pattern.text if pattern.glob is None else filled(pattern.glob, WORD)
