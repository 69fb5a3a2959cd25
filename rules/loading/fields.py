"""Reading typed values out of nodes: each function gives the value, or tells the problem and gives None.

So that all problems of a file are told at once, nothing here raises; a caller that gets None goes on with the next key.
"""

from collections.abc import Callable, Iterable
from enum import StrEnum

from rules.loading.document import Listing, Mapping, Node, Scalar, parse
from rules.problems import Problem, RuleFileError, did_you_mean, quoted

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LONGEST_DURATION = 7 * 86400  # seconds
_LONGEST_TEXT = 4096
_SLUG = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")
_LONGEST_SLUG = 63


class Reader:
    """Reads one file's nodes and collects what is wrong with them."""

    __slots__ = ("file", "problems")

    def __init__(self, file: str, problems: list[Problem]) -> None:
        self.file = file
        self.problems = problems

    def complain(self, node: Node, message: str) -> None:
        """Tell a problem with its place."""
        self.problems.append(Problem(self.file, node.line, node.column, message))

    def mapping(self, node: Node, of: str, known: Iterable[str], later: Iterable[str] = ()) -> dict[str, Node] | None:
        """Read a mapping whose keys are all known; `of` says of what, `later` which keys other versions know."""
        if not isinstance(node, Mapping):
            self.complain(node, f"{of} must be a mapping of {', '.join(f'`{key}`' for key in known)}")
            return None
        found: dict[str, Node] = {}
        for word, (key, value) in node.pairs.items():
            if word in known:
                found[word] = value
            elif word in later:
                self.complain(key, f"`{word}` is not supported by this version")
            else:
                self.complain(key, f"{quoted(word)} is not a key of {of}{_hint(of, word, [*known, *later])}")
        return found

    def versioned(self, root: Node, of: str, known: Iterable[str]) -> dict[str, Node] | None:
        """Read the top of a file, which says its version."""
        fields = self.mapping(root, of, known)
        if fields is not None and ("version" not in fields or self.text(fields["version"], "version") != "1"):
            self.complain(fields.get("version", root), "this version of exeat reads `version: 1` and no other")
        return fields

    def lacking(self, node: Node, of: str, needed: Iterable[str], known: Iterable[str]) -> list[str]:
        """List the keys that a mapping needs and hasn't; of one that is only mistyped that has been told."""
        pairs = node.pairs if isinstance(node, Mapping) else {}
        missing = [key for key in needed if key not in pairs]
        if not missing:
            return []
        hints = [_hint(of, word, known) for word in pairs if word not in known]
        return [key for key in missing if not any(f"did you mean `{key}`" in hint for hint in hints)]

    def items(self, node: Node, of: str) -> list[Node]:
        """Read a list, or one value as a list of one. An empty list is a problem: it never means everything."""
        if not isinstance(node, Listing):
            return [node]
        if not node.items:
            self.complain(node, f"`{of}` is empty: leave it out, or say what it is to cover")
        return node.items

    def text(self, node: Node, of: str) -> str | None:
        """Read text that is not empty."""
        if not isinstance(node, Scalar):
            self.complain(
                node, f"`{of}` must be one word or text, not a {'list' if isinstance(node, Listing) else 'mapping'}"
            )
        elif not node.text or (node.plain and node.text.lower() in {"~", "null"}):
            self.complain(
                node, f"`{of}` has no value" + (f"; put {node.text} in quotes if it is one" if node.text else "")
            )
        elif len(node.text) > _LONGEST_TEXT:
            self.complain(node, f"`{of}` is longer than {_LONGEST_TEXT} characters")
        else:
            return node.text
        return None

    def parsed[T](self, node: Node, of: str, parse: Callable[[str], T]) -> T | None:
        """Read text through a parser whose ValueError says what is wrong."""
        text = self.text(node, of)
        if text is None:
            return None
        try:
            return parse(text)
        except ValueError as error:
            self.complain(node, f"{error}" if "`" in str(error) else f"{quoted(text)}: {error}")
            return None

    def each[T](self, node: Node, of: str, parse: Callable[[str], T]) -> list[T]:
        """Read a list of texts through a parser; those that are wrong are told and left out."""
        values = [self.parsed(item, of, parse) for item in self.items(node, of)]
        return [value for value in values if value is not None]

    def choice[E: StrEnum](self, node: Node, of: str, kind: type[E]) -> E | None:
        """Read one word of a closed list."""
        text = self.text(node, of)
        if text is None:
            return None
        try:
            return kind(text)
        except ValueError:
            words = [member.value for member in kind]
            known = f"which is one of {', '.join(words)}{did_you_mean(text, words)}"
            self.complain(node, f"{quoted(text)} is no value of `{of}`, {known}")
            return None

    def boolean(self, node: Node, of: str) -> bool | None:
        """Read `true` or `false`; what YAML 1.1 takes for them besides (`yes`, `off`) is a problem."""
        text = self.text(node, of)
        if text in {"true", "false"}:
            return text == "true"
        if text is not None:
            self.complain(node, f"{quoted(text)} is no value of `{of}`: write `true` or `false`")
        return None


def whole[T](data: bytes, file: str, read: Callable[[Node, list[Problem]], T | None]) -> T:
    """Read the text of a whole file, of which `read` takes the top. Raises RuleFileError with every problem."""
    problems: list[Problem] = []
    root = parse(data, file, problems)
    found = None if root is None else read(root, problems)
    if problems or found is None:
        raise RuleFileError(problems or [Problem(file, 1, 1, "the file is empty: it begins with `version: 1`")])
    return found


def _hint(of: str, word: str, known: Iterable[str]) -> str:
    from rules.loading.key_hints import meant, nearly_meant  # only when something is wrong anyway

    return meant(of, word) or did_you_mean(word, known) or nearly_meant(of, word)


def duration(text: str) -> float:
    """Read `90s`, `10m`, `2h`, `1d` into seconds."""
    number, unit = text[:-1], text[-1:]
    if unit not in _UNITS or not (number.isascii() and number.isdigit()) or len(number) > 6:
        raise ValueError(f"{quoted(text)}: a duration is a number and a unit: `90s`, `10m`, `2h`, `1d`")
    seconds = int(number) * _UNITS[unit]
    if not 0 < seconds <= _LONGEST_DURATION:
        raise ValueError(f"`{text}` is not between 1s and 7d")
    return float(seconds)


def slug(text: str) -> str:
    """Read a name that rules and files are cited by."""
    if not _SLUG.issuperset(text) or text[0] == "-" or len(text) > _LONGEST_SLUG:
        raise ValueError(
            f"{quoted(text)} must be lower-case letters, digits and hyphens, at most {_LONGEST_SLUG}: `{slugged(text)}`"
        )
    return text


def slugged(text: str) -> str:
    """Make a slug of any text."""
    mapped = "".join(character if character in _SLUG else "-" for character in text.lower()[:_LONGEST_SLUG])
    return mapped.strip("-") or "rules"
