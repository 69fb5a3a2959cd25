"""What of a record has the types that an event's fields have, so that no shape meets a list where a text should be.

Who can write into a journal could otherwise stop an export with one line. Words that this version doesn't know stay:
the journal may be a newer one's.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any, Final

from proxy.telemetry.pieces import LONGEST_DURATION
from proxy.telemetry.schema import Schema, event_schema

_UNFIT: Final = object()
_PLAIN: Final[dict[str, tuple[type, ...]]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
}


def fitted(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy without what is of another type than its field; fields that are not known stay."""
    return _members(record, _schema())


@cache
def _schema() -> Schema:
    return event_schema()


def _members(value: Mapping[str, Any], schema: Schema) -> dict[str, Any]:
    known, others = schema.get("properties", {}), schema.get("additionalProperties")
    found = {key: _fitted(inner, known.get(key, others)) for key, inner in value.items()}
    return {key: inner for key, inner in found.items() if inner is not _UNFIT}


def _fitted(value: Any, schema: Schema | None) -> Any:
    if not schema:
        return value
    kind = "string" if "enum" in schema else schema["type"]
    if kind == "object":
        if not isinstance(value, Mapping):
            return _UNFIT
        inner = _members(value, schema)
        return inner if inner.keys() >= set(schema.get("required", ())) else _UNFIT
    if kind == "array":
        if not isinstance(value, list):
            return _UNFIT
        return [each for each in value if _fitted(each, schema["items"]) is not _UNFIT]
    right = isinstance(value, _PLAIN[kind]) and isinstance(value, bool) == (kind == "boolean")
    return value if right and not (kind == "number" and not 0 <= value < LONGEST_DURATION) else _UNFIT
