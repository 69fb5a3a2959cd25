"""What who watches a task passes on of it."""

import errno
import os
import socket
from types import SimpleNamespace

import pytest

from enforcer.network.place import LOGGED
from enforcer.service.lodging import Lodging
from enforcer.supervise import Watch
from enforcer.task import tell_end
from proxy import message
from proxy.telemetry.events import Kind, Where
from proxy.telemetry.metrics import Metrics
from rules.verdicts import Outcome


def test_counts_of_refused_packets_are_passed_on_when_they_are_others():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    told, seen = [], []
    ward = SimpleNamespace(see=seen.append)
    watch = Watch(SimpleNamespace(control=ours), SimpleNamespace(tell=told.append), ward, None, 0.0)
    with ours, theirs:
        for counts in ({"udp": 0, LOGGED: 0}, {"udp": 0, LOGGED: 1}, {"udp": 3}, {"udp": 3}, {"udp": 3, "icmp": 1}):
            message.send(theirs, {"counters": counts})
            assert watch.hear_sandbox() is None
    assert told == [{"refused": each} for each in ({"udp": 0}, {"udp": 3}, {"udp": 3, "icmp": 1})]
    assert watch.counters == {"udp": 3, "icmp": 1}
    assert seen == [{}] * 5


@pytest.mark.parametrize("given", [0, 2])
def test_a_task_whose_terminal_nobody_can_carry_is_ended(given):
    """No descriptor may be left, or no process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    reader, writer = os.pipe()

    def has_terminal(primary):
        os.close(primary)
        raise BlockingIOError(errno.EAGAIN, "no process")

    with ours, theirs:
        watch = Watch(SimpleNamespace(control=ours), None, None, None, 0.0)
        watch.has_terminal = has_terminal
        message.send(theirs, {"terminal": True}, [reader, writer][:given])
        ended = watch.hear_sandbox()
    os.close(writer)
    assert (ended.status, ended.failed.partition(": ")[0]) == (
        None,
        "nobody can carry what passes through its terminal",
    )
    if given:
        assert os.read(reader, 1) == b"", "what its first process waits for is closed"
    os.close(reader)


def test_what_is_told_of_a_task_s_end_is_one_message_and_the_last():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    steer, outermost = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control, worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    gate, journal, seen = Lodging(-1, control, control, watches_rules=True), [], []
    sandbox = SimpleNamespace(control=ours, hull=SimpleNamespace(steer=steer, settled=False))
    with ours, theirs, steer, outermost, worker:
        message.send(theirs, {"ended": 3 << 8, "counters": {"udp": 2, LOGGED: 2}, "at": {"disk": "bytes"}})
        message.send(outermost, {"over": True})
        ended = Watch(sandbox, gate, SimpleNamespace(see=seen.append), None, 0.0).hear_sandbox()
        message.send(worker, {"summary": "of it"})
        worker.shutdown(socket.SHUT_WR)
        metrics = Metrics()
        metrics.told(Kind.TASK_STARTED, 100)
        recorder = SimpleNamespace(task_ended=lambda started, **how: journal.append((started, how)), metrics=metrics)

        def finish():
            metrics.told(Kind.TAMPER, 100)
            metrics.failed(Where.WORKER)
            return ("put aside",)

        left = tell_end(recorder, gate, "its start", ended, 1.5, finish)
        told = message.receive(worker)[0], message.receive(worker)[0]
    assert journal == [("its start", {"seconds": 1.5, "status": 3, "signal": None, "outcome": Outcome.PASSED})]
    counted = {"told": {"task.started": 1, "tamper": 1}, "errors": {"worker": 1}}
    assert told == ({"ended": "passed", "refused": {"udp": 2}, **counted, "stop": True}, {})
    assert left == ("put aside",)
    assert gate.said == {"summary": "of it"}
    assert seen == [{"disk": "bytes"}]


def test_the_gate_hears_the_end_also_where_what_the_task_left_can_t_be_seen_to():
    ours, worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    recorder = SimpleNamespace(task_ended=lambda _started, **_how: None, metrics=Metrics())
    ended = SimpleNamespace(status=0, lost_gate=False, failed="", counters={})

    def finish():
        raise OSError("no room")

    with ours, worker:
        worker.shutdown(socket.SHUT_WR)
        with pytest.raises(OSError, match="no room"):
            tell_end(recorder, Lodging(-1, ours, ours, watches_rules=True), "its start", ended, 1.5, finish)
        assert message.receive(worker)[0]["stop"]
