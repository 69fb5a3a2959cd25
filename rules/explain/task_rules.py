"""Rules as one task sees them: each rule about it, as values for programs and as text.

It is what a task may know of the policy: what it may do and what it may not, never which secret a rule wants, where
files lie, or what other tasks may.
"""

from collections.abc import Iterator, Mapping
from datetime import date
from itertools import groupby
from typing import Any, Final, NamedTuple

from rules.explain.explanation import describe_limits
from rules.matching.policy import Policy
from rules.ports import describe
from rules.rule import GitRule, Http, Rule
from rules.sandbox import Command
from rules.verdicts import Verdict

MOST_RULES: Final = 500  # that are told of; the rest are counted
_MOST_TARGETS: Final = 20  # of one rule
_ORDER: Final = {Verdict.ALLOW: 0, Verdict.FLAG: 1, Verdict.ASK: 2, Verdict.DENY: 3}
_HEADINGS: Final = {
    Verdict.ALLOW: "You may:",
    Verdict.FLAG: "You may, and people review it afterwards:",
    Verdict.ASK: "Only after a person approves it:",
    Verdict.DENY: "You may not, whatever other rules say:",
}
_STARTING: Final = {
    Verdict.FLAG: "Programs that you may start, and people review it afterwards:",
    Verdict.ASK: "Programs that start only after a person approves it:",
    Verdict.DENY: "Programs that you may not start:",
}
_ONCE_TAINTED: Final = "only once the task has read untrusted content"


class TaskRules(NamedTuple):
    """The rules and commands about a task, in display order; `more` counts those left out."""

    rules: tuple[Rule, ...]
    more: int
    commands: tuple[Command, ...] = ()


def find_task_rules(policy: Policy, task: str, labels: Mapping[str, str], today: date) -> TaskRules:
    """Find the rules that are about a task today."""
    mine = [rule for rule in policy.rules if _is_about(rule, task, labels, today)]
    mine.sort(key=lambda rule: (_ORDER[rule.action], rule.default, rule.id))
    held = [each for each in policy.commands if each.for_ is None or each.for_.matches(task, labels)]
    held.sort(key=lambda command: (_ORDER[command.action], command.cite))
    more = max(0, len(mine) - MOST_RULES) + max(0, len(held) - MOST_RULES)
    return TaskRules(tuple(mine[:MOST_RULES]), more, tuple(held[:MOST_RULES]))


def rules_as_json(found: TaskRules) -> list[dict[str, Any]]:
    """Return the rules as values for JSON, without keys that a rule does not set."""
    return [_values(rule) for rule in found.rules]


def commands_as_json(found: TaskRules) -> list[dict[str, Any]]:
    """Return the commands as values for JSON."""
    return [
        {
            "id": each.cite,
            "action": each.action.value,
            "run": list(each.words),
            **({"why": each.why} if each.why else {}),
        }
        for each in found.commands
    ]


def describe_rules(found: TaskRules) -> Iterator[str]:
    """Describe the rules as lines of text."""
    for action, rules in groupby(found.rules, lambda rule: rule.action):
        yield _HEADINGS[action]
        yield from (f"- {_sentence(rule)}" for rule in rules)
    if found.more:
        yield f"- and what {found.more} more rules say"
    if not any(rule.allows for rule in found.rules):
        yield "Nothing may leave."
    for action, commands in groupby(found.commands, lambda command: command.action):
        yield _STARTING[action]
        for command in commands:
            yield f"- {' '.join(command.words)} [{command.cite}]{f': {command.why}' if command.why else ''}"


def _is_about(rule: Rule, task: str, labels: Mapping[str, str], today: date) -> bool:
    if rule.selector is not None and not rule.selector.matches(task, labels):
        return False
    return not (rule.allows and rule.until is not None and today > rule.until)


def _values(rule: Rule) -> dict[str, Any]:
    said: dict[str, Any] = {
        "id": rule.id,
        "action": rule.action.value,
        "to": _targets(rule),
        "ports": describe(rule.ports),
    }
    if rule.http is not None:
        said["http"] = _requests(rule.http)
    if rule.git is not None:
        said["git"] = _git(rule.git)
    if rule.default:
        said["default"] = True
    if rule.when_tainted:
        said["when"] = "tainted"
    if rule.excepts:
        said["exceptions"] = len(rule.excepts)
    if rule.credential is not None:
        said["credential"] = "only with the placeholder that you were given"
    if rule.limits is not None:
        said["limits"] = describe_limits(rule.limits)
    if rule.until is not None:
        said["until"] = rule.until.isoformat()
    if rule.why:
        said["why"] = rule.why
    return said


def _sentence(rule: Rule) -> str:
    said = _values(rule)
    parts = [f"{', '.join(said['to'])} ({said['ports']})"]
    for name, value in (*said.get("http", {}).items(), *said.get("git", {}).items()):
        parts.append(f"{name} {', '.join(value) if isinstance(value, list) else value}")
    if rule.when_tainted:
        parts.append(_ONCE_TAINTED)
    if rule.default:
        parts.append("where no other rule matches")
    if rule.excepts:
        parts.append(f"with {len(rule.excepts)} exception{'s' if len(rule.excepts) > 1 else ''}")
    parts += [said[name] for name in ("credential", "limits") if name in said]
    if rule.until is not None:
        parts.append(f"until {said['until']}")
    return f"{'; '.join(parts)} [{rule.id}]{f': {rule.why}' if rule.why else ''}"


def _targets(rule: Rule) -> list[str]:
    texts = [pattern.text for pattern in rule.names] + [str(network) for network in rule.networks]
    texts += ["the names of a list"] if rule.feeds else []
    return texts if len(texts) <= _MOST_TARGETS else [*texts[:_MOST_TARGETS], f"and {len(texts) - _MOST_TARGETS} more"]


def _requests(http: Http) -> dict[str, Any]:
    said: dict[str, Any] = {}
    if http.methods is not None:
        said["methods"] = sorted(http.methods)
    if http.paths is not None:
        said["paths"] = [path.text for path in http.paths]
    if http.query:
        said["parameters"] = [name for name, _ in http.query]
    if http.headers:
        said["headers"] = [name for name, _ in http.headers]
    if http.websocket:
        said["websocket"] = "allowed"
    return said


def _git(git: GitRule) -> dict[str, Any]:
    said: dict[str, Any] = {"repositories": [repo.text for repo in git.repos]}
    if git.fetch:
        said["fetch"] = "yes"
    if git.push is not None:
        said["push"] = [ref.text for ref in git.push]
        said["changes"] = sorted(change.value for change in git.changes)
    return said
