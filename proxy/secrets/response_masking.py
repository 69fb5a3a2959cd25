"""Masks values that a server sends back, in heads and in bodies that aren't compressed. Pure.

A body is held back only while its end may be the start of a value. The first few bytes of a value pass, since most
bodies end with some byte that a value starts with. A mask is as long as the value. Misses forms that `echoed` doesn't
list.
"""

from typing import TYPE_CHECKING, Final

from proxy.secrets.encodings import echoed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.request.request_head import Field
    from proxy.secrets.values import SecretValue

_NOT_HELD_BACK: Final = 7  # bytes of a value's start that aren't held back; of a short value a quarter

type _Masks = tuple[tuple[bytes, bytes], ...]  # form, and its replacement


class ResponseMasks:
    """Search patterns of each secret, computed once."""

    __slots__ = ("_all_masks", "_masks")

    def __init__(self, held: "tuple[SecretValue, ...]") -> None:
        self._masks = {id(each): tuple((form, _make_mask(form, each)) for form in echoed(each.value)) for each in held}
        self._all_masks = _sorted(mask for masks in self._masks.values() for mask in masks)

    def mask(self, held: "tuple[SecretValue, ...]") -> "Mask":
        """Return the mask for one response."""
        return Mask(_sorted(mask for each in held for mask in self._masks[id(each)]))

    def text(self, text: str) -> str:
        """Return a text with all values masked."""
        data = text.encode("utf-8", "surrogateescape")
        return _replace_all(data, self._all_masks).decode("utf-8", "surrogateescape")


class Mask:
    """Masks one response while it is forwarded. `holds`: whether bytes may be held back."""

    __slots__ = ("_held_back", "_longest", "_masks", "_sent_tail", "holds")

    def __init__(self, masks: _Masks) -> None:
        self._masks = masks
        self._longest = max(len(form) for form, _ in masks) - 1
        self._sent_tail = b""  # end of the bytes that were forwarded
        self._held_back = b""
        self.holds = True

    def also(self, text: bytes, replacement: bytes) -> None:
        """Mask one more text; its replacement must be as long."""
        self._masks = _sorted((*self._masks, (text, replacement)))
        self._longest = max(self._longest, len(text) - 1)

    def fields(self, fields: "tuple[Field, ...]") -> "tuple[Field, ...]":
        """Return fields with values masked."""
        return tuple((_replace_all(name, self._masks), _replace_all(value, self._masks)) for name, value in fields)

    def line(self, text: bytes) -> bytes:
        """Return a complete text with values masked."""
        return _replace_all(text, self._masks)

    def take(self, data: bytes) -> bytes:
        """Mask the next piece of the body; returns the bytes to forward."""
        before = len(self._sent_tail)
        data = _replace_all(self._sent_tail + self._held_back + data, self._masks)
        keep = max(_partial_match_size(data, form) for form, _ in self._masks) if self.holds else 0
        end = max(len(data) - keep, before)
        self._held_back = data[end:]
        self._sent_tail = data[max(end - self._longest, 0) : end]
        return data[before:end]

    def rest(self) -> bytes:
        """Return the bytes held back, at the end of the body: they are no value."""
        held_back, self._held_back = self._held_back, b""
        return held_back


def _make_mask(form: bytes, held: "SecretValue") -> bytes:
    return held.placeholder if len(form) == len(held.placeholder) else b"*" * len(form)


def _sorted(masks: "Iterable[tuple[bytes, bytes]]") -> _Masks:
    return tuple(sorted(set(masks), key=lambda mask: -len(mask[0])))  # longest first: it may contain a shorter one


def _replace_all(data: bytes, masks: _Masks) -> bytes:
    for form, replacement in masks:
        if form in data:
            data = data.replace(form, replacement)
    return data


def _partial_match_size(data: bytes, form: bytes) -> int:
    """Return how many bytes at the end of `data` start `form`, if that is more than may pass."""
    passable = min(_NOT_HELD_BACK, len(form) // 4)
    first = form[: passable + 1]
    at = data.find(first, max(len(data) - len(form) + 1, 0))
    while at >= 0:
        if form.startswith(data[at:]):
            return len(data) - at
        at = data.find(first, at + 1)
    return 0
