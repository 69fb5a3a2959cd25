"""What the tests of shapes share: a record of each kind, full and bare, and what no shape may ever let through."""

import json
import unicodedata

from proxy.telemetry.encoding import encode
from proxy.telemetry.events import Kind
from proxy.telemetry.formats.decoded_event import read
from tests.support.telemetry_lab import full_event

_BARE = ("time", "id", "kind")


def record(kind=Kind.CONNECTION_DECIDED, text="text", **more):
    """The record of a full event; `more` replaces members, None takes one away."""
    line = json.loads(encode(full_event(Kind(kind), text)))
    line |= more
    return read(json.dumps({key: value for key, value in line.items() if value is not None}).encode())


def bare(kind):
    """As little as an event of a kind can say."""
    return {key: value for key, value in record(kind).items() if key in _BARE}


def unknown():
    """A kind that is only thought of later."""
    return {**record(), "kind": "later.invented", "later": {"deep": [1, "x"]}}


def everything():
    """A full and a bare record of each kind, and one of a kind unknown."""
    yield unknown()
    for kind in Kind:
        yield record(kind)
        yield bare(kind)


def texts(value):
    """Every text in a JSON value, keys too."""
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
    """The characters of a text that would move a terminal, end a line, or show as nothing."""
    found = set(text) - {" "}
    return sorted(each for each in found if not each.isprintable() or unicodedata.category(each)[0] in "CMZ")


def event(**said):
    """A decision as a gate writes it, with what differs in this test."""
    return record(**{"verdict": "allow", "outcome": "passed", "reason": "rule", **said})
