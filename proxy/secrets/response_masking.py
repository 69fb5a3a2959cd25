"""Masks values that a server sends back, in heads and in bodies that aren't compressed. Pure.

A body is held back only while its end may be the beginning of a value, but for the first few bytes of one, which pass:
a message may end with any byte. A mask is as long as the value. Missed is what `echoed` doesn't list.
"""

from typing import TYPE_CHECKING, Final

from proxy.secrets.encodings import echoed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.request.request_head import Field
    from proxy.secrets.values import SecretValue

_FREE: Final = 7  # bytes of a value's beginning that aren't held back; of a short one a quarter

type _Masks = tuple[tuple[bytes, bytes], ...]  # what is looked for, and what is put in its place


class ResponseMasks:
    """Search patterns of each secret, computed once."""

    __slots__ = ("_every", "_masks")

    def __init__(self, held: "tuple[SecretValue, ...]") -> None:
        self._masks = {
            id(each): tuple((form, _in_place_of(form, each)) for form in echoed(each.value)) for each in held
        }
        self._every = _sorted(mask for masks in self._masks.values() for mask in masks)

    def mask(self, held: "tuple[SecretValue, ...]") -> "Mask":
        """Look through one response for these."""
        return Mask(_sorted(mask for each in held for mask in self._masks[id(each)]))

    def text(self, text: str) -> str:
        """Return a text without any value."""
        data = text.encode("utf-8", "surrogateescape")
        return _masked(data, self._every).decode("utf-8", "surrogateescape")


class Mask:
    """Masking of one response as it passes. `holds`: whether bytes may be held back."""

    __slots__ = ("_kept", "_longest", "_masks", "_passed", "holds")

    def __init__(self, masks: _Masks) -> None:
        self._masks = masks
        self._longest = max(len(form) for form, _ in masks) - 1
        self._passed = b""  # the end of what went on, as it went on
        self._kept = b""
        self.holds = True

    def also(self, text: bytes, instead: bytes) -> None:
        """Look for one thing more, which is as long as what is put in its place."""
        self._masks = _sorted((*self._masks, (text, instead)))
        self._longest = max(self._longest, len(text) - 1)

    def fields(self, fields: "tuple[Field, ...]") -> "tuple[Field, ...]":
        """Return fields without values."""
        return tuple((_masked(name, self._masks), _masked(value, self._masks)) for name, value in fields)

    def line(self, text: bytes) -> bytes:
        """Return a text that is whole without values."""
        return _masked(text, self._masks)

    def take(self, data: bytes) -> bytes:
        """Take the next piece of the body; returns what may go on."""
        before = len(self._passed)
        data = _masked(self._passed + self._kept + data, self._masks)
        keep = max(_beginning(data, form) for form, _ in self._masks) if self.holds else 0
        end = max(len(data) - keep, before)
        self._kept = data[end:]
        self._passed = data[max(end - self._longest, 0) : end]
        return data[before:end]

    def rest(self) -> bytes:
        """Return what was held back, at the end: it was none."""
        kept, self._kept = self._kept, b""
        return kept


def _in_place_of(form: bytes, held: "SecretValue") -> bytes:
    return held.placeholder if len(form) == len(held.placeholder) else b"*" * len(form)


def _sorted(masks: "Iterable[tuple[bytes, bytes]]") -> _Masks:
    return tuple(sorted(set(masks), key=lambda mask: -len(mask[0])))  # a longer one may hold a shorter one


def _masked(data: bytes, masks: _Masks) -> bytes:
    for form, instead in masks:
        if form in data:
            data = data.replace(form, instead)
    return data


def _beginning(data: bytes, form: bytes) -> int:
    """Return how many bytes at the end of `data` are the beginning of `form`, if they are more than may pass."""
    free = min(_FREE, len(form) // 4)
    first = form[: free + 1]
    at = data.find(first, max(len(data) - len(form) + 1, 0))
    while at >= 0:
        if form.startswith(data[at:]):
            return len(data) - at
        at = data.find(first, at + 1)
    return 0
