"""The patterns that a rule may give for a name, as parts for the trie: reversed labels, compared one by one.

`example.com` is that name alone, `*.example.com` every name below it, `**.example.com` both, `*` every name. A `*`
inside a label stays in that label; a whole label `*` in the middle is exactly one label. Never text or a regular
expression: an unanchored compare is how `example.com.evil.net` passes other gates.
"""

from typing import NamedTuple, Self

from rules.globs import MANY, ONE, Glob, Part, covers
from rules.names import HostName, InvalidName, is_number, labels_of

_LONGEST_LABEL = 63
_GLOB_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_*")


class NamePattern(NamedTuple):
    """A pattern in normal form. `below` is the name that a wildcard stands under (empty for `*`), None without one."""

    text: str
    parts: tuple[Part, ...]
    below: str | None = None

    def matches(self, name: HostName) -> bool:
        """Whether `name` is covered."""
        return covers(self.parts, name.labels[::-1])

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a name or a pattern. Raises InvalidName with what was probably meant."""
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
            raise InvalidName(f"`{text}`: `**` stands only in front, as in `**.example.com`; every name at all is `*`")
        else:
            normal.append(_glob_label(label, text))
    if not normal or "*" in normal[-1] or is_number(normal[-1]):
        raise InvalidName(f"`{text}` needs a whole name behind its wildcard; every name at all is `*`")
    return normal


def _glob_label(label: str, text: str) -> str:
    lowered = label.lower()
    if not _GLOB_CHARACTERS.issuperset(lowered):
        raise InvalidName(f"`{text}`: a label with `*` in it can have letters, digits, hyphens and underscores besides")
    if len(lowered.replace("*", "")) > _LONGEST_LABEL:
        raise InvalidName(f"`{text}` has a label of more than {_LONGEST_LABEL} bytes")
    return lowered


def _part(label: str) -> Part:
    if label == "*":
        return ONE
    return Glob.parse(label) if "*" in label else label
