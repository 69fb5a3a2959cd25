"""Sample records of each kind, full and bare, and the characters that no format may let through."""

import json
import unicodedata

from proxy.telemetry.encoding import encode
from proxy.telemetry.events import Kind
from proxy.telemetry.formats.decoded_event import read
from tests.support.telemetry_lab import full_event

_BARE = ("time", "id", "kind")


def record(kind=Kind.CONNECTION_DECIDED, text="text", **more):
    """Return the record of a full event; `more` replaces members, None removes one."""
    line = json.loads(encode(full_event(Kind(kind), text)))
    line |= more
    return read(json.dumps({key: value for key, value in line.items() if value is not None}).encode())


def bare(kind):
    """Return a record with only the required members."""
    return {key: value for key, value in record(kind).items() if key in _BARE}


def unknown():
    """Return a record of an unknown kind."""
    return {**record(), "kind": "later.invented", "later": {"deep": [1, "x"]}}


def everything():
    """Yield a full and a bare record of each kind, and one of an unknown kind."""
    yield unknown()
    for kind in Kind:
        yield record(kind)
        yield bare(kind)


def texts(value):
    """Yield every text in a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner)


def harmful(text):
    """Return the characters of a text that control a terminal, end a line or are invisible."""
    found = set(text) - {" "}
    return sorted(each for each in found if not each.isprintable() or unicodedata.category(each)[0] in "CMZ")


def event(**said):
    """Return a decision as a gate writes it, with changed members."""
    return record(**{"verdict": "allow", "outcome": "passed", "reason": "rule", **said})
