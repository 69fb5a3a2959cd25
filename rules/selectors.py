"""For whom a rule is: tasks by name, and labels that they carry. The `for:` of a rule.

What a task is called and labelled is said by whoever starts it, and who may say what is in `rules.loading.identities`.
A task without a name or a label is matched by no selector that asks for one.
"""

from collections.abc import Mapping
from typing import NamedTuple

from rules.globs import Glob


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


class For(NamedTuple):
    """Tasks and labels; both have to match. Empty `tasks`: whatever the task's name is."""

    tasks: tuple[Pattern, ...] = ()
    labels: tuple[tuple[str, tuple[Pattern, ...]], ...] = ()  # name and values, in the order of names

    def matches(self, task: str, labels: Mapping[str, str]) -> bool:
        """Whether a task is meant. A name or label that it doesn't have is never one that is asked for."""
        if self.tasks and not (task and any(pattern.matches(task) for pattern in self.tasks)):
            return False
        for name, values in self.labels:
            value = labels.get(name)
            if value is None or not any(pattern.matches(value) for pattern in values):
                return False
        return True

    def __str__(self) -> str:
        said = ["tasks " + ", ".join(pattern.text for pattern in self.tasks)] if self.tasks else []
        said += [f"{name}={'|'.join(pattern.text for pattern in values)}" for name, values in self.labels]
        return " and ".join(said)
