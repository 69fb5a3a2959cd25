"""Whether tasks of a name went somewhere before: for whoever has to decide about the next time."""

from typing import TYPE_CHECKING, NamedTuple

from proxy.telemetry.usual.habits import place_of
from proxy.telemetry.usual.looking import FILE, load

if TYPE_CHECKING:
    from pathlib import Path

    from proxy.telemetry.events import Destination


class Before(NamedTuple):
    """How many runs of a name are known, and in how many of them a place was let out to."""

    runs: int
    times: int


def before(state: "Path", name: str, destination: "Destination") -> Before | None:
    """Say so; None: nothing is known of that name, or nothing can be read. Never raises.

    `state` is where the journal's keeper keeps what belongs to it (`enforcer.keeping.place`).
    """
    try:
        habits, *_ = load(state / FILE)
    except (OSError, ValueError):
        return None
    habit = habits.names.get(name)
    if habit is None:
        return None
    times, _ = habit.places.get(place_of(destination), (0, 0))
    return Before(habit.runs, times)
