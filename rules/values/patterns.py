"""Patterns that a rule may give for a name, and for the tasks and labels that it is for.

`example.com` is that name alone, `*.example.com` every name below it, `**.example.com` both, `*` every name. A `*`
inside a label stays in that label; a whole label `*` in the middle is exactly one label. Names are compared label by
label, never as text or by a regular expression: an unanchored compare is how `example.com.evil.net` passes other gates.

The caller that starts a task sets its name and labels; `rules.loading.identities` limits which ones it may use. A task
without a name or a label matches no `for` that requires one.
"""

from collections.abc import Mapping
from typing import NamedTuple, Self

from rules.values.globs import MANY, ONE, Glob, Part, pattern_matches
from rules.values.names import HostName, InvalidNameError, is_number, labels_of

_LONGEST_LABEL = 63
_GLOB_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_*")


class NamePattern(NamedTuple):
    """A pattern in normal form. `below` is the name that a wildcard stands under (empty for `*`), None without one."""

    text: str
    parts: tuple[Part, ...]
    below: str | None = None

    def matches(self, name: HostName) -> bool:
        """Whether `name` is covered."""
        return pattern_matches(self.parts, name.labels[::-1])

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a name or a pattern. Raises InvalidNameError with what was probably meant."""
        if "*" not in text:
            name = HostName.parse(text)
            return cls(name, name.labels[::-1])
        if text == "*":
            return cls("*", (MANY,), "")
        labels = text.removesuffix(".").split(".")
        head: tuple[Part, ...] = ()
        if labels[0] == "**":
            head, labels = (MANY,), labels[1:]
        elif labels[0] == "*":
            head, labels = (ONE, MANY), labels[1:]
        normal = _normal_labels(labels, text)
        parts = tuple(_part(label) for label in reversed(normal))
        plain = next((index for index, part in enumerate(parts) if not isinstance(part, str)), len(parts))
        lead = {0: "", 1: "**.", 2: "*."}[len(head)]
        return cls(lead + ".".join(normal), parts + head, ".".join(normal[len(normal) - plain :]))


def _normal_labels(labels: list[str], text: str) -> list[str]:
    normal: list[str] = []
    for label in labels:
        if "*" not in label:
            normal += labels_of(label + ".")
        elif "**" in label:
            raise InvalidNameError(
                f"`{text}`: `**` stands only in front, as in `**.example.com`; every name at all is `*`"
            )
        else:
            normal.append(_glob_label(label, text))
    if not normal or "*" in normal[-1] or is_number(normal[-1]):
        raise InvalidNameError(f"`{text}` needs a whole name behind its wildcard; every name at all is `*`")
    return normal


def _glob_label(label: str, text: str) -> str:
    lowered = label.lower()
    if not _GLOB_CHARACTERS.issuperset(lowered):
        raise InvalidNameError(
            f"`{text}`: a label with `*` in it can have letters, digits, hyphens and underscores besides"
        )
    if len(lowered.replace("*", "")) > _LONGEST_LABEL:
        raise InvalidNameError(f"`{text}` has a label of more than {_LONGEST_LABEL} bytes")
    return lowered


def _part(label: str) -> Part:
    if label == "*":
        return ONE
    return Glob.parse(label) if "*" in label else label


class Pattern(NamedTuple):
    """Text with `*` in it, each standing for any characters, none included. Compared as it is, case too."""

    text: str
    glob: Glob | None = None

    @classmethod
    def parse(cls, text: str) -> "Pattern":
        """Read a pattern."""
        return cls(text, Glob.parse(text) if "*" in text else None)

    def matches(self, text: str) -> bool:
        """Whether all of `text` is covered."""
        return text == self.text if self.glob is None else self.glob.matches(text)


class TaskSelector(NamedTuple):
    """Selects tasks by name and labels; both must match. Empty `tasks`: any name."""

    tasks: tuple[Pattern, ...] = ()
    labels: tuple[tuple[str, tuple[Pattern, ...]], ...] = ()  # name and values, in the order of names

    def matches(self, task: str, labels: Mapping[str, str]) -> bool:
        """Whether a task matches. A task without a required name or label does not."""
        if self.tasks and not (task and any(pattern.matches(task) for pattern in self.tasks)):
            return False
        for name, values in self.labels:
            value = labels.get(name)
            if value is None or not any(pattern.matches(value) for pattern in values):
                return False
        return True

    def __str__(self) -> str:
        parts = ["tasks " + ", ".join(pattern.text for pattern in self.tasks)] if self.tasks else []
        parts += [f"{name}={'|'.join(pattern.text for pattern in values)}" for name, values in self.labels]
        return " and ".join(parts)
