"""What another process says, taken out by type: what doesn't fit is refused, and nothing is guessed or passed over.

Texts come from sandboxes, so each has a bound; surrogates stand for bytes that were no UTF-8 (PEP 383).
"""

from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Final

LONGEST: Final = 1 << 16  # characters
_MOST_ITEMS: Final = 4096
_LARGEST: Final = 1 << 62
_LATEST: Final = 253_402_300_799  # seconds since 1970: the end of the last year that has a date


class Malformed(ValueError):  # noqa: N818  past tense would say nothing more
    """A message or a record that is none of ours."""


class Fields:
    """A JSON object whose members are taken out one by one; `done` refuses it if any is left."""

    __slots__ = ("_left", "_of")

    def __init__(self, value: object, of: str) -> None:
        if not isinstance(value, dict):
            raise Malformed(f"{of} is no object")
        self._left: dict[str, object] = dict(value)
        self._of = of

    def done(self) -> None:
        """Refuse what nobody asked for."""
        if self._left:
            raise Malformed(f"{self._of} has members that nobody knows: {', '.join(sorted(map(ascii, self._left)))}")

    def has(self, key: str) -> bool:
        """Whether there is such a member, of any value."""
        return key in self._left

    def raw(self, key: str) -> object:
        """Take out a member of any type."""
        if key not in self._left:
            raise self._wrong(key, "is missing")
        return self._left.pop(key)

    def text(self, key: str, longest: int = LONGEST) -> str:
        """Take out a text of at most so many characters; a missing one is empty."""
        value = self._left.pop(key, "")
        if not isinstance(value, str) or len(value) > longest:
            raise self._wrong(key, "is no text of a fair length")
        return _told_apart(value)

    def text_or_none(self, key: str, longest: int = LONGEST) -> str | None:
        """Take out a text that is not empty; a missing one, like null, is None."""
        if self._left.get(key) is None:
            self._left.pop(key, None)
            return None
        return self.named(key, longest)

    def named(self, key: str, longest: int = 256) -> str:
        """Take out a text that is not empty."""
        value = self.text(key, longest)
        if not value:
            raise self._wrong(key, "is empty")
        return value

    def number(self, key: str, least: int = 0, most: int = _LARGEST) -> int:
        """Take out a whole number."""
        value = self.raw(key)
        if type(value) is not int or not least <= value <= most:  # `True` is an int to isinstance
            raise self._wrong(key, f"is no number between {least} and {most}")
        return value

    def number_or_none(self, key: str) -> int | None:
        """Take out a whole number that is not negative; a missing one, like null, is None."""
        if self._left.get(key) is None:
            self._left.pop(key, None)
            return None
        return self.number(key)

    def real(self, key: str) -> float:
        """Take out a number of seconds, or a time that has a date (seconds since 1970)."""
        value = self.raw(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(key, "is no number")
        if not 0 <= value <= _LATEST:  # NaN isn't either
            raise self._wrong(key, f"is no number between 0 and {_LATEST}")
        return float(value)

    def real_or_none(self, key: str) -> float | None:
        """Take out such a number, or None."""
        if self._left.get(key) is None:
            self._left.pop(key, None)
            return None
        return self.real(key)

    def flag(self, key: str) -> bool:
        """Take out true or false; a missing one is false."""
        value = self._left.pop(key, False)
        if not isinstance(value, bool):
            raise self._wrong(key, "is neither true nor false")
        return value

    def choice[E: StrEnum](self, key: str, kind: type[E]) -> E:
        """Take out one word of a closed list."""
        value = self.raw(key)
        if not isinstance(value, str) or value not in set(kind):
            raise self._wrong(key, f"is none of {', '.join(kind)}")
        return kind(value)

    def list[T](self, key: str, read: Callable[[object], T], most: int = _MOST_ITEMS) -> tuple[T, ...]:
        """Take out a list, each item of it read; a missing one is empty."""
        value = self._left.pop(key, [])
        if not isinstance(value, list) or len(value) > most:
            raise self._wrong(key, "is no list of a fair length")
        return tuple(map(read, value))

    def texts(self, key: str, most: int = _MOST_ITEMS) -> tuple[str, ...]:
        """Take out a list of texts."""
        return self.list(key, as_text, most)

    def labels(self, key: str) -> dict[str, str]:
        """Take out an object of texts."""
        value = self._left.pop(key, {})
        if not isinstance(value, dict) or len(value) > _MOST_ITEMS:
            raise self._wrong(key, "is no object of texts")
        return {as_text(name): as_text(content) for name, content in value.items()}

    def inner[T](self, key: str, read: Callable[[object], T]) -> T | None:
        """Take out something of a shape of its own; a missing one, like null, is None."""
        value = self._left.pop(key, None)
        return None if value is None else read(value)

    def _wrong(self, key: str, what: str) -> Malformed:
        return Malformed(f"`{key}` of {self._of} {what}")


def as_text(value: object) -> str:
    """Take a text as it is. Raises Malformed."""
    if not isinstance(value, str) or len(value) > LONGEST:
        raise Malformed("a text of a list is none, or too long")
    return _told_apart(value)


def _told_apart(text: str) -> str:
    """Return text without halves of surrogate pairs: JSON would make one character of two that were apart."""
    if text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text):
        return text
    return "".join(
        "\ufffd" if "\ud800" <= character <= "\udfff" and not "\udc80" <= character <= "\udcff" else character
        for character in text
    )


def only(fields: Fields, kinds: Iterable[str], of: str) -> str:
    """Return which one of several members an object has: it says what kind of message this is. Raises Malformed."""
    found = [kind for kind in kinds if fields.has(kind)]
    if len(found) != 1:
        raise Malformed(f"{of} is of {'no' if not found else 'more than one'} known kind")
    return found[0]
