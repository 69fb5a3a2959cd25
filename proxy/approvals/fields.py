"""Messages between processes as msgspec structs: what doesn't fit its type and its bounds is refused.

Texts come from sandboxes, so each has a bound; surrogates stand for bytes that were no UTF-8 (PEP 383). A member that
is missing has its default. One that no field has is refused.
"""

from typing import Annotated, Any, Final, Self

from msgspec import Meta, MsgspecError, Struct, convert, to_builtins
from msgspec.structs import replace

_MOST_ITEMS: Final = 4096
Text = Annotated[str, Meta(max_length=1 << 16)]  # characters
Texts = Annotated[tuple[Text, ...], Meta(max_length=_MOST_ITEMS)]
Line = Annotated[str, Meta(max_length=4096)]
Short = Annotated[str, Meta(max_length=256)]
Word = Annotated[str, Meta(max_length=128)]
Id = Annotated[str, Meta(max_length=64)]
Named = Annotated[str, Meta(min_length=1, max_length=256)]
NamedId = Annotated[str, Meta(min_length=1, max_length=64)]
NamedRule = Annotated[str, Meta(min_length=1, max_length=512)]
Digest = Annotated[str, Meta(min_length=1, max_length=128)]
Whole = Annotated[int, Meta(ge=0, le=1 << 62)]
Real = Annotated[float, Meta(ge=0, le=253_402_300_799)]  # seconds, or a time that has a date (seconds since 1970)


class Malformed(ValueError):  # noqa: N818  past tense would say nothing more
    """A message or a record that is none of ours."""


class Message(Struct, frozen=True, forbid_unknown_fields=True):
    """An immutable value that goes from one process to another as a JSON object."""

    def packed(self) -> dict[str, Any]:
        """Return it as JSON."""
        found: dict[str, Any] = to_builtins(self)
        return found

    @classmethod
    def read(cls, value: object) -> Self:
        """Read what `packed` gave. Raises Malformed."""
        found: Self = read(value, cls)
        return found

    def _replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed."""
        return replace(self, **changes)


def read(value: object, of: Any) -> Any:
    """Read a value of JSON as a type. Raises Malformed."""
    try:
        return convert(_told_apart(value), of)
    except (MsgspecError, ValueError, RecursionError) as error:
        raise Malformed(f"no message or record of approvals: {error}") from error


def _told_apart(value: object) -> object:
    """Return JSON without halves of surrogate pairs: it would make one character of two that were apart."""
    if isinstance(value, str):
        if value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value):
            return value
        return "".join(
            "\ufffd" if "\ud800" <= character <= "\udfff" and not "\udc80" <= character <= "\udcff" else character
            for character in value
        )
    if isinstance(value, dict):
        return {key: _told_apart(each) for key, each in value.items()}
    return list(map(_told_apart, value)) if isinstance(value, list | tuple) else value
