"""Reading rule files again that itself goes wrong: no policy is handed on, that is told, and what runs goes on."""

import errno
import os
import selectors
import signal
import time
from types import SimpleNamespace

import pytest

from enforcer.policy import reload, rule_files
from enforcer.policy import reread as rereading
from enforcer.policy.run_request import RunRequest
from enforcer.run import supervise

RULES = "version: 1\nname: web\nrules:\n  - {id: first, to: first.example, action: allow}\n"
WAIT = 30  # seconds for what must happen


class Gate:
    """What a worker was told."""

    watches_rules = False

    def __init__(self):
        self.told = []

    def send(self, what, descriptors=()):
        self.told.append((what, tuple(descriptors)))


@pytest.fixture
def wanted(tmp_path):
    path = tmp_path / "web.yaml"
    path.write_text(RULES)
    system, workspace = tmp_path / "etc", tmp_path / "workspace"
    workspace.mkdir()
    loaded = rule_files.load([path], system)
    return RunRequest(
        ("true",), "web", loaded.policy, (str(path),), str(workspace), system=system, searched_paths=(str(path),)
    )


def reread(wanted):
    """Read the files again, and give what the gate was told."""
    gate = Gate()
    with selectors.DefaultSelector() as selector:
        reloader = reload.Reloader(wanted, gate, lambda _paths: None, selector)
        reloader.now()
        deadline = time.monotonic() + WAIT
        while not gate.told and time.monotonic() < deadline:
            for key, _ in selector.select(min(1.0, reloader.wait())):
                key.data()
            reloader.turn()
        reloader.close()
        assert not selector.get_map()
    return gate.told


def _killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def _hanging(*_):
    time.sleep(10 * WAIT)


def _failing(*_):
    raise MemoryError


def _exiting(*_):
    raise SystemExit


def _no_process():
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def test_valid_rules_are_sent_to_the_worker(wanted):
    [(what, [_])] = reread(wanted)
    assert what == {"rules": wanted.policy.revision}


@pytest.mark.parametrize(
    ("reading", "message"),
    [
        (_killed, "the process that reads them ended"),
        (_failing, "could not be read: MemoryError"),
        (lambda *_: {"revision": object()}, "the process that reads them ended"),  # what can't be said
        (lambda *_: os._exit(0), "the process that reads them ended"),
    ],
    ids=["killed", "fails", "can't tell", "says nothing"],
)
def test_failed_reader_sends_nothing(wanted, monkeypatch, reading, message):
    monkeypatch.setattr(rereading, "_try_to_read", reading)
    [(what, descriptors)] = reread(wanted)
    assert message in what["rules_rejected"][0]
    assert not descriptors


def test_hanging_reader_is_killed(wanted, monkeypatch):
    monkeypatch.setattr(rereading, "_try_to_read", _hanging)
    monkeypatch.setattr(reload, "_PATIENCE", 0.1)
    started, fork = [], os.fork
    monkeypatch.setattr(os, "fork", lambda: started.append(pid := fork()) or pid)
    [(what, descriptors)] = reread(wanted)
    assert "could not be read within" in what["rules_rejected"][0]
    assert not descriptors
    assert len(started) == 2, "the second reads root's files alone"
    for pid in started:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize("reading", [_exiting, lambda *_: {"revision": object()}])
def test_reader_never_continues_as_the_supervisor(wanted, monkeypatch, reading):
    monkeypatch.setattr(rereading, "_try_to_read", reading)
    parent, says = os.getpid(), os.open(os.devnull, os.O_WRONLY)
    pid = os.fork()
    if pid == 0:
        try:
            rereading.run_reader(parent, says, -1, rereading.RereadRequest(wanted, wanted.searched_paths, -1))
        finally:
            os._exit(7)  # it came back
    os.close(says)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_failed_fork_of_a_reader_is_reported(wanted, monkeypatch):
    monkeypatch.setattr(os, "fork", _no_process)
    before = len(os.listdir("/proc/self/fd"))
    [(what, descriptors)] = reread(wanted)
    assert "no process can be started" in what["rules_rejected"][0]
    assert not descriptors
    assert len(os.listdir("/proc/self/fd")) == before


def test_broken_reloader_is_reported_once_and_stopped(wanted, capfd, monkeypatch):
    monkeypatch.setattr(reload.Reloader, "_notice", _failing)
    gate = Gate()
    with selectors.DefaultSelector() as selector:
        rules = supervise.RuleReload(wanted, SimpleNamespace(gate=gate, sandbox=SimpleNamespace(mask=None)), selector)
        notice = rules._get_reloader()._notice
        for _ in range(2):  # what one look at the selector gave may be for it more than once
            rules.handle_ready(notice)
        rules.turn()
        rules.now()
        rules.close()
    [(what, descriptors)] = gate.told
    assert what == {"rules_rejected": ["reloading of rule files has failed, so the rules in force stay: MemoryError: "]}
    assert not descriptors
    assert capfd.readouterr().err.count("reloading of rule files has failed") == 1
