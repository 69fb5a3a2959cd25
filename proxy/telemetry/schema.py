"""JSON Schema (draft-07) of events, generated from the types in `events`; and fits records of unknown origin to it.

The reference documentation describes each field. Within a version fields and kinds may be added; none is removed or
changes its meaning or type. The schema also lists the former names of kinds.
"""

from collections.abc import Mapping
from enum import StrEnum
from functools import cache
from types import NoneType
from typing import Any, Final, get_args, get_origin, get_type_hints

from msgspec import Struct

from proxy.telemetry.encoding import LONGEST_DURATION
from proxy.telemetry.events import APPROVALS, FORMER_KINDS, Event, Instant, Kind, Seconds

type Schema = dict[str, Any]

VERSION: Final = 1
ADDRESS: Final = f"https://exeat.example/event.v{VERSION}.schema.json"

_TIME: Final[Schema] = {"type": "string", "pattern": r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}\.[0-9]{9}Z$"}
_ID: Final[Schema] = {
    "type": "string",
    "pattern": "^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$",  # RFC 9562 section 5.7
}
_TEXT: Final[Schema] = {"type": "string"}
_WHOLE: Final[Schema] = {"type": "integer"}

# Last members of a line of the journal (`journal.segments`); an event outside the journal has none of them.
_LINKS: Final[Schema] = {
    "prev": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
    "hash": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
    "signature": {"type": "string", "pattern": "^[A-Za-z0-9+/]{86}==$"},
}

_IDS: Final[dict[str, Schema]] = {"id": _ID, "cause": _ID}  # of an event
_SIMPLE_TYPES: Final[dict[Any, Schema]] = {
    str: _TEXT,
    int: _WHOLE,
    bool: {"type": "boolean"},
    Instant: _TIME,
    Seconds: {"type": "number", "minimum": 0},
}

# Fields that every event of a kind has. The reference documentation lists all fields of a kind.
_DECISION: Final = ("verdict", "outcome", "reason", "revision", "mode")
_CLOSE: Final = ("cause", "outcome", "destination", "bytes", "duration")
ALWAYS: Final[dict[Kind, tuple[str, ...]]] = {
    Kind.GATE_ERROR: ("fault",),
    Kind.CONNECTION_DECIDED: _DECISION,
    Kind.CONNECTION_CLOSED: _CLOSE,
    Kind.REQUEST_DECIDED: (*_DECISION, "destination"),
    Kind.REQUEST_COMPLETED: _CLOSE,
    Kind.DNS_DECIDED: _DECISION,
    Kind.TASK_STARTED: ("outcome",),
    Kind.TASK_ENDED: ("outcome", "duration"),
    Kind.RULES_LOADED: ("revision", "mode"),
    Kind.RULES_REJECTED: ("revision", "mode"),
    Kind.TAMPERING_DETECTED: ("cause", "reason"),
    Kind.COMMAND_DECIDED: (*_DECISION, "argv", "process"),
    Kind.SYSCALL_DENIED: ("outcome", "process"),
    Kind.SECRET_DETECTED: ("cause", *_DECISION, "destination"),
    **dict.fromkeys((kind for kind in Kind if kind in APPROVALS), ("approval",)),
    Kind.FLAG_SEEN: ("cause",),
    Kind.TASK_TAINTED: ("rules",),
    Kind.ANOMALY_DETECTED: ("unusual",),
}


def event_schema(*, closed: bool = False) -> Schema:
    """Return the schema; `closed`: it rejects fields that this version doesn't know."""
    parts = _property_schemas(Event, closed) | _LINKS
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$id": ADDRESS,
        "title": "Exeat event",
        "description": "One line of the journal. Readers ignore unknown fields: docs/reference/telemetry.md",
        **_object_schema(parts, ("time", "id", "kind"), closed),
        "allOf": [
            {"if": {"properties": {"kind": {"enum": [*kind.names()]}}}, "then": {"required": list(always)}}
            for kind, always in ALWAYS.items()
        ],
    }


def _property_schemas(of: Any, closed: bool) -> Schema:  # noqa: FBT001  keyword-only in `event_schema`
    """Return the schema of each field of a class."""
    given = _IDS if of is Event else {}
    return {name: given.get(name) or _type_schema(hint, closed) for name, hint in get_type_hints(of).items()}


def _type_schema(hint: Any, closed: bool) -> Schema:  # noqa: FBT001
    """Return the schema of a type in `events`. Raises TypeError for a type that `encoding` can't write either."""
    base, arguments = get_origin(hint), get_args(hint)
    if hint in _SIMPLE_TYPES:
        return _SIMPLE_TYPES[hint]
    if base is not None and NoneType in arguments:
        (some,) = (each for each in arguments if each is not NoneType)
        return _type_schema(some, closed)
    if base is tuple:
        return {"type": "array", "items": _type_schema(arguments[0], closed)}
    if base is Mapping:
        return {"type": "object", "additionalProperties": _type_schema(arguments[1], closed)}
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return {"enum": [*(member.value for member in hint), *(FORMER_KINDS if hint is Kind else ())]}
    if isinstance(hint, type) and issubclass(hint, Struct):
        needed = hint.__struct_fields__[: len(hint.__struct_fields__) - len(hint.__struct_defaults__)]
        return _object_schema(_property_schemas(hint, closed), needed, closed)
    raise TypeError(f"no schema for `{hint}`")


def _object_schema(properties: Schema, required: tuple[str, ...], closed: bool) -> Schema:  # noqa: FBT001
    found: Schema = {"type": "object", "properties": properties}
    if required:
        found["required"] = list(required)
    return {**found, "additionalProperties": False} if closed else found


_MISFIT: Final = object()
_PLAIN: Final[dict[str, tuple[type, ...]]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
}


def fitted(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy without the values whose type does not match their field; unknown fields stay."""
    return _fit_members(record, _event_schema())


@cache
def _event_schema() -> Schema:
    return event_schema()


def _fit_members(value: Mapping[str, Any], schema: Schema) -> dict[str, Any]:
    known, others = schema.get("properties", {}), schema.get("additionalProperties")
    found = {key: _fit_value(inner, known.get(key, others)) for key, inner in value.items()}
    return {key: inner for key, inner in found.items() if inner is not _MISFIT}


def _fit_value(value: Any, schema: Schema | None) -> Any:
    if not schema:
        return value
    kind = "string" if "enum" in schema else schema["type"]
    if kind == "object":
        if not isinstance(value, Mapping):
            return _MISFIT
        inner = _fit_members(value, schema)
        return inner if inner.keys() >= set(schema.get("required", ())) else _MISFIT
    if kind == "array":
        if not isinstance(value, list):
            return _MISFIT
        return [each for each in value if _fit_value(each, schema["items"]) is not _MISFIT]
    right = isinstance(value, _PLAIN[kind]) and isinstance(value, bool) == (kind == "boolean")
    return value if right and not (kind == "number" and not 0 <= value < LONGEST_DURATION) else _MISFIT
