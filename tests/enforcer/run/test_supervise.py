"""What who watches a task passes on of it."""

import errno
import os
import socket
from types import SimpleNamespace

import pytest

from enforcer.network.constants import LOGGED
from enforcer.run.supervise import Supervision, supervise
from enforcer.run.task import record_end
from enforcer.sandbox import init
from enforcer.service.placement import SharedWorker
from proxy.telemetry.events import Component, Kind
from proxy.telemetry.prometheus.metrics import Metrics
from proxy.wire import message
from rules.verdicts import Outcome


class _Sandbox:
    """One of which this is seen, again and again; `status` is its task's at the end."""

    def __init__(self, *seen, status=None):
        self._seen = list(seen)
        self.init = SimpleNamespace(ended=None, turn=self._turn)
        self._status = status
        self.settled = False

    def _turn(self):
        self.init.ended = init.ChildExit(2, self._status)
        return self.init.ended

    def probe(self):
        return self._seen.pop(0), {"disk": "bytes"}

    def settle(self):
        self.settled = True


def test_changed_packet_counts_are_sent_to_the_worker():
    counts = {"udp": 0, LOGGED: 0}, {"udp": 0, LOGGED: 1}, {"udp": 3}, {"udp": 3}, {"udp": 3, "icmp": 1}
    told, seen = [], []
    ward = SimpleNamespace(report_probe=seen.append)
    watch = Supervision(_Sandbox(*counts), SimpleNamespace(send=told.append), ward, None, 0.0)
    for _ in counts:
        watch.read_counters()
    assert told == [{"refused": each} for each in ({"udp": 0}, {"udp": 3}, {"udp": 3, "icmp": 1})]
    assert watch.counters == {"udp": 3, "icmp": 1}
    assert seen == [{"disk": "bytes"}] * 5


def test_lost_init_ends_the_task():
    def turn():
        raise init.ProcessGoneError(errno.ECHILD, "gone")

    ended = Supervision(SimpleNamespace(init=SimpleNamespace(turn=turn)), None, None, None, 0.0).receive_from_init()
    assert (ended.status, ended.failed) == (None, "its init process ended unexpectedly")


def test_gate_lost_at_the_end_is_reported(capfd):
    control, worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel, theirs = socket.socketpair()
    sandbox = _Sandbox({}, status=0)
    sandbox.init.channel, sandbox.supervisor = channel, None
    monitor = SimpleNamespace(report_probe=lambda _: None, wait=lambda: 10.0)
    with control, channel, theirs:
        worker.close()
        theirs.send(b"the task has ended")
        signals, writer = os.pipe()
        gate = SharedWorker(control, shared=True)
        ended = supervise(
            Supervision(sandbox, gate, monitor, None, 0.0),
            signals,
            SimpleNamespace(terminal=None, terminals=None),
            None,
        )
        os.close(signals)
        os.close(writer)
    assert (ended.status, ended.lost_gate) == (0, True)
    assert "the gate ended unexpectedly" in capfd.readouterr().err


def test_end_of_a_task_is_one_last_message():
    control, worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    gate, journal, seen = SharedWorker(control, shared=True), [], []
    sandbox = _Sandbox({"udp": 2, LOGGED: 2}, status=3 << 8)
    with worker:
        ended = Supervision(sandbox, gate, SimpleNamespace(report_probe=seen.append), None, 0.0).receive_from_init()
        assert sandbox.settled
        message.send(worker, {"summary": "of it"})
        worker.shutdown(socket.SHUT_WR)
        metrics = Metrics()
        metrics.count_events(Kind.TASK_STARTED, 100)
        recorder = SimpleNamespace(task_ended=lambda started, **how: journal.append((started, how)), metrics=metrics)

        def finish():
            metrics.count_events(Kind.TAMPERING_DETECTED, 100)
            metrics.failed(Component.WORKER)
            return ("put aside",)

        left = record_end(recorder, gate, "its start", ended, 1.5, finish)
        gate.wait_for_summary()
        gate.wait_for_summary()
        told = message.receive(worker)[0], message.receive(worker)[0]
    assert journal == [("its start", {"seconds": 1.5, "status": 3, "signal": None, "outcome": Outcome.PASSED})]
    counted = {"told": {"task.started": 1, "tampering.detected": 1}, "errors": {"worker": 1}}
    assert told == ({"ended": "passed", "refused": {"udp": 2}, **counted, "stop": True}, {})
    assert left == ("put aside",)
    assert gate.received_fields == {"summary": "of it"}
    assert seen == [{"disk": "bytes"}]


def test_gate_gets_the_end_despite_cleanup_errors():
    ours, worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    recorder = SimpleNamespace(task_ended=lambda _started, **_how: None, metrics=Metrics())
    ended = SimpleNamespace(status=0, lost_gate=False, failed="", counters={})

    def finish():
        raise OSError("no room")

    with ours, worker:
        worker.shutdown(socket.SHUT_WR)
        with pytest.raises(OSError, match="no room"):
            record_end(recorder, SharedWorker(ours, shared=True), "its start", ended, 1.5, finish)
        assert message.receive(worker)[0]["stop"]
