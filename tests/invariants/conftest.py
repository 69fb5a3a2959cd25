import json
from dataclasses import dataclass

import pytest

from tests.lab import Lab, Packets
from tests.support import harness

from .attempt_network import RULES, dns_names
from .lab_runner import LIBRARIES, PYTHON, Journal, LabRunner


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Run the tests that read every journal after all tests that write one."""
    items.sort(key=lambda item: item.path.name == "test_every_journal.py")


@pytest.fixture(
    scope="session",
    params=[pytest.param(who, marks=pytest.mark.xdist_group(f"invariants-{who}")) for who in ("user", "root")],
)
def runner(request):
    """A runner as root and one as an ordinary user, each with its own lab and process."""
    harness.needs_root()
    with Lab(dns_names()) as lab:
        yield LabRunner(lab, None if request.param == "root" else Lab.ORDINARY)


@dataclass(frozen=True)
class AttemptResults:
    """Results of every attempt: what the client received, the journal, and what reached an origin."""

    client: dict
    journal: Journal
    packets: list[Packets]
    loopback: list[Packets]
    requests: list[dict]
    queries: list[tuple[str, str, str]]

    def packets_to(self, *addresses):
        return sum(one.times for one in self.packets if one.destination in addresses)


@pytest.fixture(scope="session")
def attempt_results(runner):
    """Run every attempt once in one sandbox."""
    runner.lab.origin.name(dns_names())
    runner.lab.origin.forget()
    runner.lab.loopback.forget()
    done = runner.run("tried", runner.rules(RULES), PYTHON, "-m", "task", LIBRARIES)
    assert done.process.returncode == 0, done.process.stderr
    origin, loopback = runner.lab.origin, runner.lab.loopback
    return AttemptResults(
        json.loads(done.process.stdout),
        done.journal,
        origin.packets(),
        loopback.packets(),
        origin.requests(),
        origin.queries(),
    )
