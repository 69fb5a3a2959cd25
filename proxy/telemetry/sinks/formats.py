"""What an item is sent as, by name: the journal's own line, or one of the shapes."""

from collections.abc import Callable
from typing import Final

from proxy.telemetry.shapes.cef import cef
from proxy.telemetry.shapes.ecs import ecs
from proxy.telemetry.shapes.ocsf import ocsf
from proxy.telemetry.shapes.record import one_line
from proxy.telemetry.sinks.sink import Item

type Format = Callable[[Item], str]


def _event(item: Item) -> str:
    """Return the line exactly as it was written, so that its hash can be checked where it arrives."""
    plain = item.line.isascii() and item.line[:-1].decode("ascii", "replace").isprintable()
    return item.line[:-1].decode("ascii") if item.line and plain else one_line(item.record)[:-1].decode("ascii")


FORMATS: Final[dict[str, Format]] = {
    "event": _event,
    "ocsf": lambda item: one_line(ocsf(item.record))[:-1].decode("ascii"),
    "ecs": lambda item: one_line(ecs(item.record))[:-1].decode("ascii"),
    "cef": lambda item: cef(item.record),
}
