import gc
import os
import shutil
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest

from tests.support import event_schema, harness, homes

# A commit that passed passes again. `pytest --hypothesis-profile=default` draws other examples each time.
hypothesis.settings.register_profile("same", derandomize=True)
hypothesis.settings.load_profile("same")

# What a shell starts with `&` ignores interrupts, what nohup(1) does hanging up, and so would all that is started here,
# with no way to undo it in sh
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

_sent = []  # where a worker keeps its reports


def pytest_sessionstart(session):
    if hasattr(session.config, "workerinput"):
        _sent.append(session.config.pluginmanager.getplugin("terminalreporter").stats)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Give a file's tests to one worker, so that what they share is made once; but not those that take long each.

    Workers begin with what takes longest in one piece and end with the least, so that none waits for another.
    """
    for item in items:
        if "someone" not in item.fixturenames and not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))
    yield
    if hasattr(config, "workerinput"):
        items.sort(key=_turn)


def _turn(item):
    group = item.get_closest_marker("xdist_group")
    if group is None:
        return 1  # has a sandbox of its own
    return 0 if ".py" not in group.args[0] else 3 if group.args[0].startswith("tests/rules/") else 2


def pytest_collection_finish():
    """Walk no more through what is there now and stays: tests that count descriptors collect garbage first."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    event_schema.listen()


@pytest.hookimpl(trylast=True)
def pytest_runtest_logfinish():
    """Keep no report in a worker, which has sent each: walking through ten thousand was most of collecting garbage."""
    for reports in _sent:
        reports.clear()


@pytest.fixture(autouse=True)
def _events_are_as_their_schema_says():
    yield
    assert event_schema.heard() == []


@dataclass(frozen=True)
class Someone:
    """Root or an ordinary user, with a home and a directory to work in."""

    user: bool
    home: Path
    work: Path

    def run(self, argv, **more):
        return harness.run(argv, user=self.user, home=self.home, **{"cwd": self.work, **more})

    def exeat(self, *words, **more):
        return harness.exeat(*words, user=self.user, home=self.home, **{"cwd": self.work, **more})

    def write(self, path, text):
        """Write a file that belongs to whoever this is."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        if self.user:
            os.chown(path, harness.UID, harness.UID)
        return path

    def events(self):
        return harness.journal(self.home)


@pytest.fixture(scope="session")
def lived_in():
    """A home in which something has run."""
    harness.needs_root()
    with homes.first() as home:
        yield home


@pytest.fixture(params=["root", "user"])
def someone(request):
    """Both ways of running a task, where something has run before; with `first_run`, where nothing has.

    The directories lie where both can reach them, unlike pytest's own.
    """
    harness.needs_root()
    base = Path(tempfile.mkdtemp(prefix="exeat-test-"))
    base.chmod(0o755)
    user = request.param == "user"
    for name in ("home", "work"):
        (base / name).mkdir()
        if user:
            os.chown(base / name, harness.UID, harness.UID)
    if not request.node.get_closest_marker("first_run"):
        homes.furnish(base / "home", request.getfixturevalue("lived_in"), harness.UID if user else 0)
    yield Someone(user, base / "home", base / "work")
    shutil.rmtree(base)
