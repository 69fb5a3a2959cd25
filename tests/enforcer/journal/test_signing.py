"""Keeper of a run: it signs the segments of an ended gate, whatever the gate reported."""

import os
import signal
import socket

import pytest

from enforcer.journal import signing
from enforcer.worker.worker import Worker, WorkerProcess, start_error
from proxy.sandbox.recorder import Recorder
from proxy.sandbox.sandbox_state import SandboxState, Task
from proxy.telemetry.journal.ledger import is_left, unsealed
from proxy.telemetry.journal.writer import Journal
from proxy.telemetry.prometheus.metrics import Metrics
from proxy.wire import message
from rules.matching.policy import Policy


def _recorder(journal):
    recorder = Recorder(
        SandboxState("sandbox", Task("1", "a"), Policy([]), frozenset(), 1), Journal(journal), Metrics()
    )
    recorder.rules_loaded()
    return recorder


@pytest.mark.parametrize("says", [{"failed": "no room"}, None], ids=["its words", "nothing"])
def test_stop_of_a_gate_without_sandbox_ends(monkeypatch, says):
    monkeypatch.setattr("enforcer.worker.worker._STOP_TIMEOUT", 0.05)
    control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with control, theirs:  # the other end stays open
        if says is not None:
            message.send(theirs, says)
        why = str(start_error(Worker(control, control)))
    assert why == f"the gate could not be started: {'its process ended' if says is None else 'no room'}"


@pytest.mark.parametrize("closes", [True, False], ids=["it has closed it", "it only says so"])
def test_segments_of_an_ended_worker_are_signed(tmp_path, monkeypatch, request, closes):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    journal = tmp_path / "journal"
    journal.mkdir(mode=0o700)
    control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    gate, gate_end = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        recorder = _recorder(journal)
        if closes:
            recorder.journal.close()
        message.send(theirs, {"summary": "of it"})
        signal.pause()
    theirs.close()
    gate_end.close()
    worker = WorkerProcess(pid, control, gate)
    request.addfinalizer(worker.kill)
    with monkeypatch.context() as slow:
        slow.setattr(WorkerProcess, "_shut_down", lambda _: None)  # it takes long to die
        worker.stop()
        worker.wait_for_summary()
    assert worker.received_fields == {"summary": "of it"}
    signing.stop_keeper(journal, _recorder(journal), worker)
    assert (list(unsealed(journal)), is_left(journal, pid)) == ([], False)
