"""What a process that a task has taken over says in the place of a number, and where numbers stand in a text."""

import json

import msgspec

TOO_LARGE = ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", str(2**64), str(-(2**63) - 1), "9" * 400, "9" * 5000]
ODD = [
    "29496729640000000",
    str(2**63 - 1),
    str(2**63),
    str(2**64 - 1),
    "1e308",
    "1e18",
    "253402300800",
    "1.5",
    "-1",
    "-0.0",
]
OTHERS = ["true", "null", '"7"', '"nan"', '"inf"', '"9999999999999999999999"', "[]", "{}"]
EACH = [*TOO_LARGE, *ODD, *OTHERS]
PACKED = [
    float("nan"), float("inf"), -float("inf"), 1e308, 1e18, 1.5, -0.0, -1, 2**63 - 1, 2**63, 2**64 - 1, -(2**63),
    True, None, "7", "nan", b"7", [], [1], {},
]  # fmt: skip


def in_each_place(said):
    """Give a JSON value as texts, each with something else in the place of one of its numbers."""
    for place in range(_marked(said, None)[1]):
        marked = json.dumps(_marked(said, place)[0])
        for number in EACH:
            yield number, marked.replace('"\\u0000here"', number)


def _marked(said, wanted, seen=0):
    """Return a value whose number in that place is marked, and how many numbers there are up to its end."""
    if isinstance(said, int | float) and not isinstance(said, bool):
        return ("\0here" if seen == wanted else said), seen + 1
    if isinstance(said, dict):
        found = {}
        for key, value in said.items():
            found[key], seen = _marked(value, wanted, seen)
        return found, seen
    if isinstance(said, list | tuple):
        items = []
        for value in said:
            item, seen = _marked(value, wanted, seen)
            items.append(item)
        return items, seen
    return said, seen


def in_each_part(packet):
    """Give a msgpack packet, each time with something else in the place of one of its numbers."""
    said = msgspec.msgpack.decode(packet)
    for place in range(_marked(said, None)[1]):
        for value in PACKED:
            yield value, msgspec.msgpack.encode(_replaced(_marked(said, place)[0], value))


def _replaced(said, value):
    if isinstance(said, list):
        return [_replaced(each, value) for each in said]
    return value if said == "\0here" else said
