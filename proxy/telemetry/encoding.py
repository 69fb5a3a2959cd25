"""An event as one line of JSON; `decoding` reads it back.

Every byte written is printable ASCII but for the newline that ends the line (invariant 7). So no text of a sandbox can
break a line, drive the terminal of its reader, or be taken for a key. Texts and lists are cut (`pieces`).
"""

import json
import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

from msgspec import Raw
from msgspec.json import Encoder

from proxy.telemetry.events import Event, Instant, Seconds, Value
from proxy.telemetry.pieces import (
    LONGEST_LIST,
    LONGEST_TEXT,
    cut,
    cut_list,
    cut_members,
    duration,
    timestamp,
    without_surrogates,
)

LONGEST_LINE: Final = 1024 * 1024  # bytes; more than all of these together can come to
_NOT_PLAIN: Final = re.compile("[\x7f-\U0010ffff]+")  # DEL is the one control character that JSON may hold as it is


def encode(event: Event) -> bytes:
    """Return the event as one line of JSON, newline included."""
    try:
        line = _encoder.encode(event)
    except UnicodeEncodeError:  # half a surrogate pair: no text in UTF-8
        line = _encoder.encode(_bounded(event))
    else:
        # Each text and list of a shorter line is within its bounds.
        if len(line) > LONGEST_TEXT or line.count(b",") >= LONGEST_LIST:
            line = _encoder.encode(_bounded(event))
    if not line.isascii() or b"\x7f" in line:
        line = _NOT_PLAIN.sub(_escaped, line.decode()).encode("ascii")
    return line + b"\n"


def _written(value: Any) -> Any:
    """Return what stands for a value of a type of our own."""
    if type(value) is Instant:
        return timestamp(value)
    if type(value) is Seconds:
        return Raw(duration(value))
    if isinstance(value, str):  # a name, the words of an error
        return str(value)
    raise TypeError(f"an event has no {type(value).__name__}")


_encoder: Final = Encoder(enc_hook=_written)


def _bounded(value: Any) -> Any:
    """Return a part of an event with all its texts and lists cut, and as UTF-8 can have them; the same if they are."""
    if isinstance(value, StrEnum):
        return value
    if isinstance(value, str):
        return without_surrogates(cut(value))
    if type(value) is tuple and value and isinstance(value[0], str):
        kept = tuple(map(_bounded, cut_list(value)))
        return value if kept == value else kept
    if isinstance(value, Mapping):
        members = {_bounded(key): _bounded(text) for key, text in cut_members(value).items()}
        return value if members == value else members
    if isinstance(value, Value):
        old = {name: getattr(value, name) for name in value.__struct_fields__}
        new = {name: kept for name, each in old.items() if (kept := _bounded(each)) is not each}
        return value._replace(**new) if new else value
    return value


def _escaped(found: re.Match[str]) -> str:
    r"""Return characters as `\uXXXX`, in UTF-16 (RFC 8259 section 7)."""
    return json.dumps(found[0])[1:-1]
