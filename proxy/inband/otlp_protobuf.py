"""OTLP's protobuf, made into what its JSON has: opentelemetry-proto 1.x, logs, trace and common.

Pure. A request costs a bounded number of fields, however it is built: reading is the gate's one thread's work.
"""

import struct
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from proxy.inband.protobuf import fields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from proxy.inband.protobuf import Value

MOST_FIELDS: Final = 20_000  # of one request
MOST_AT_ONCE: Final = 3000  # ... between two records: 5 ms, and then the gate does something else
MOST_ATTRIBUTES: Final = 32
DEEPEST: Final = 4  # of values in values
_LONGEST_BYTES: Final = 256

type Record = dict[str, Any]
type Group = tuple[Record, Iterator[Record]]


class Reader:
    """Reads one request."""

    def __init__(self) -> None:
        self._left = MOST_FIELDS
        self._step = MOST_AT_ONCE

    def logs(self, body: bytes) -> "Iterator[Group]":
        """Yield each resource with its log records. Raises ValueError."""
        return self._records(body, self._log)

    def spans(self, body: bytes) -> "Iterator[Group]":
        """Yield each resource with its spans. Raises ValueError."""
        return self._records(body, self._span)

    def _records(self, body: bytes, read: "Callable[[bytes], Record]") -> "Iterator[Group]":
        for group in self._messages(body, 1):
            resource = next(iter(self._messages(group, 1)), b"")
            yield {"attributes": self._pairs(resource, 1)}, self._of_group(group, read)

    def _of_group(self, group: bytes, read: "Callable[[bytes], Record]") -> "Iterator[Record]":
        for scope in self._messages(group, 2):
            for record in self._messages(scope, 2):
                yield read(record)
                self._step = MOST_AT_ONCE

    def _log(self, data: bytes) -> Record:
        said = dict(self._fields(data))
        return {
            "timeUnixNano": said.get(1, 0),
            "observedTimeUnixNano": said.get(11, 0),
            "severityText": _words(said.get(3)),
            "body": self._any(said[5]) if 5 in said else None,
            "eventName": _words(said.get(12)),
            "attributes": self._pairs(data, 6),
        }

    def _span(self, data: bytes) -> Record:
        said = dict(self._fields(data))
        return {
            "name": _words(said.get(5)),
            "startTimeUnixNano": said.get(7, 0),
            "endTimeUnixNano": said.get(8, 0),
            "attributes": self._pairs(data, 9),
        }

    def _pairs(self, data: bytes, number: int, depth: int = 0) -> list[Record]:
        found: list[Record] = []
        for pair in self._messages(data, number):
            if len(found) >= MOST_ATTRIBUTES:
                break
            said = dict(self._fields(pair))
            found.append({"key": _words(said.get(1)), "value": self._any(said.get(2, b""), depth)})
        return found

    def _any(self, data: "Value", depth: int = 0) -> Record:
        """Read an AnyValue: the one field that it has."""
        if not isinstance(data, bytes) or depth > DEEPEST:
            return {}
        number, value = next(iter(self._fields(data)), (0, b""))
        if isinstance(value, bytes):
            return self._of_bytes(number, value, depth)
        if number == 2:
            return {"boolValue": bool(value)}
        if number == 3:
            return {"intValue": str(value - (1 << 64) if value >> 63 else value)}
        return {"doubleValue": repr(struct.unpack("<d", value.to_bytes(8, "little"))[0])} if number == 4 else {}

    def _of_bytes(self, number: int, value: bytes, depth: int) -> Record:
        if number == 1:
            return {"stringValue": _words(value)}
        if number == 5:
            some = [self._any(each, depth + 1) for each in islice(self._messages(value, 1), MOST_ATTRIBUTES)]
            return {"arrayValue": {"values": some}}
        if number == 6:
            return {"kvlistValue": {"values": self._pairs(value, 1, depth + 1)}}
        return {"bytesValue": value[:_LONGEST_BYTES].hex()} if number == 7 else {}

    def _messages(self, data: bytes, wanted: int) -> "Iterator[bytes]":
        for number, value in self._fields(data):
            if number == wanted and isinstance(value, bytes):
                yield value

    def _fields(self, data: bytes) -> "Iterator[tuple[int, Value]]":
        for field in fields(data):
            self._left -= 1
            self._step -= 1
            if self._left < 0 or self._step < 0:
                most = MOST_FIELDS if self._left < 0 else f"{MOST_AT_ONCE}, in a record or without one,"
                raise ValueError(f"it has too many fields: more than {most}")
            yield field


def _words(value: object) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else ""
