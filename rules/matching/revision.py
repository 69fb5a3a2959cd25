"""Fingerprint of a policy: equal for equal meaning, whatever the order of rules, files, keys and spellings.

Texts that decide nothing (`why`, comments, tests, where a file lies) are not part of it.
"""

from collections.abc import Iterable, Iterator
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from rules.feeds import Feed
from rules.rule import Rule
from rules.sandbox import NO_SANDBOX_SETTINGS, Command, SandboxSettings
from rules.settings import Settings

if TYPE_CHECKING:
    from rules.matching.layers import Layer
    from rules.secrets import Secret


_SAYS_NOTHING: Final = frozenset({"why"})


def revision_of(
    rules: Iterable[Rule],
    settings: Settings,
    layers: "Iterable[Layer]" = (),
    secrets: "Iterable[Secret]" = (),
    *,
    boxes: Iterable[SandboxSettings] = (),
    commands: Iterable[Command] = (),
) -> str:
    """SHA-256 in hexadecimal over everything that a decision or the sandbox of a task depends on."""
    deciding = [*map(_rule_text, rules), *map(_layer_text, layers), *map(_secret_text, secrets)]
    lines = sorted([*deciding, *_sandbox_texts(boxes), *map(_command_text, commands)])
    return sha256("\n".join([repr(settings), *lines]).encode()).hexdigest()


def digest_of(rule: Rule | Command) -> str:
    """SHA-256 over all that one rule or command decides by, in hexadecimal: a grant is good for this alone."""
    return sha256((_rule_text(rule) if isinstance(rule, Rule) else _command_text(rule)).encode()).hexdigest()


def _layer_text(layer: "Layer") -> str:
    return repr(("layer", layer.kind.value, layer.mode.value, sorted(rule.id for rule in layer.rules)))


def _secret_text(secret: "Secret") -> str:
    """Describe a secret's definition; its value is not available here."""
    return repr(("secret", tuple(secret)))


def _sandbox_texts(boxes: Iterable[SandboxSettings]) -> Iterator[str]:
    """Describe sandbox settings and the layers' floor; empty if neither is set."""
    for number, box in enumerate(boxes):
        if box != NO_SANDBOX_SETTINGS:
            yield repr(("box", number, tuple(box)))


def _command_text(command: Command) -> str:
    return repr(("command", command.cite, command.words, command.action.value, command.for_, command.approval))


def _rule_text(rule: Rule) -> str:
    return content(rule, _SAYS_NOTHING)


def content(rule: Rule, without: frozenset[str]) -> str:
    """Write what the fields of a rule mean, but for some."""
    return ", ".join([meaning(value) for name, value in zip(Rule._fields, rule, strict=True) if name not in without])


def meaning(value: object) -> str:
    """Write a value in one form for all that means the same: every list of the grammar is ORed, and so is a set."""
    if isinstance(value, tuple):
        if hasattr(value, "text"):  # a pattern's normal form
            return repr(value.text)
        if hasattr(value, "_fields"):
            return f"({', '.join(map(meaning, value))})"
    elif isinstance(value, Feed):
        return value.digest
    elif not isinstance(value, frozenset):
        return repr(value)
    return f"{{{', '.join(sorted(set(map(meaning, value))))}}}"
