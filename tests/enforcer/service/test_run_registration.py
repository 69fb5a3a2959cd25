"""A run's connection to its service: a report for each time that one is wanted, and the service's word to kill."""

import selectors
import socket

import pytest

from enforcer.service.placement import RegisteredWorker
from proxy.wire import message


@pytest.fixture
def pairs():
    """Return the run's and the service's end of a pair, and a worker's two."""
    run, service = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control, worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with run, service, control, worker:
        for end in (service, worker):
            end.settimeout(0.0)
        yield run, service, control, worker


def heard(end):
    found = []
    while True:
        try:
            found.append(message.receive(end)[0])
        except BlockingIOError:
            return found


def registered(run, control):
    made = RegisteredWorker(-1, control, control)
    made.register(run, {"alone": "why"})
    return made


def test_endless_reports_are_relayed_once(pairs):
    run, service, control, worker = pairs
    gate = registered(run, control)

    def report(said):
        message.send(worker, said)
        assert gate.receive()

    piece = {"metrics": "{", "left": 1, "lodge": "another"}
    report(piece)  # nobody has asked
    assert heard(service) == [{"alone": "why"}]
    for _ in range(3):
        gate.turn()  # it is not time again
    assert heard(worker) == [{"ask": True, "metrics": True}]
    for _ in range(3):
        report(piece)
    report({"metrics": "}", "left": 0})
    report(piece)
    assert heard(service) == [{"metrics": "{", "left": 1}] * 3 + [{"metrics": "}", "left": 0}]
    gate.stop()
    told = []
    for _ in range(1000):
        report({"metrics": [1], "left": "x"})
        told += heard(service)
    assert len(told) == 100


def test_kill_of_the_service_ends_the_task(pairs):
    run, service, control, worker = pairs
    killed = []
    with selectors.DefaultSelector() as selector:
        gate = registered(run, control)
        gate.watch(selector, lambda: killed.append(True))
        for word in ({"asks": True}, {"kill": True}):
            message.send(service, word)
            gate.handle_service_message()
        assert killed == [True]
        service.close()
        gate.handle_service_message()
        assert not selector.get_map()
        gate.stop()
        message.send(worker, {"metrics": "{}", "left": 0})
        assert gate.receive()
