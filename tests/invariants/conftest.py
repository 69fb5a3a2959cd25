import json
from dataclasses import dataclass

import pytest

from tests.lab import Lab, Packets
from tests.support import harness

from .attempt_network import RULES, names
from .lab_runner import LIBRARIES, PYTHON, Journal, Place


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """What looks at every journal comes after everything that writes one."""
    items.sort(key=lambda item: item.path.name == "test_every_journal.py")


@pytest.fixture(
    scope="session",
    params=[pytest.param(who, marks=pytest.mark.xdist_group(f"invariants-{who}")) for who in ("user", "root")],
)
def place(request):
    """A lab of its own for root and for an ordinary user, in a process of its own each."""
    harness.needs_root()
    with Lab(names()) as lab:
        yield Place(lab, None if request.param == "root" else Lab.ORDINARY)


@dataclass(frozen=True)
class Tried:
    """What came of every attempt: what the client saw, what the journal tells, what reached an origin."""

    said: dict
    journal: Journal
    packets: list[Packets]
    loopback: list[Packets]
    requests: list[dict]
    queries: list[tuple[str, str, str]]

    def packets_to(self, *addresses):
        return sum(one.times for one in self.packets if one.destination in addresses)


@pytest.fixture(scope="session")
def tried(place):
    """Every attempt, made once in one sandbox."""
    place.lab.origin.name(names())
    place.lab.origin.forget()
    place.lab.loopback.forget()
    done = place.run("tried", place.rules(RULES), PYTHON, "-m", "task", LIBRARIES)
    assert done.process.returncode == 0, done.process.stderr
    origin, loopback = place.lab.origin, place.lab.loopback
    return Tried(
        json.loads(done.process.stdout),
        done.journal,
        origin.packets(),
        loopback.packets(),
        origin.requests(),
        origin.queries(),
    )
