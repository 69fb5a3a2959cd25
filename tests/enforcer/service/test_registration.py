"""A run's connection to its service: a report for each time that one is wanted, and the service's word to kill."""

import selectors
import socket
from types import SimpleNamespace

import pytest

from enforcer.service.registration import Registration
from proxy import message


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        theirs.settimeout(0.0)
        yield ours, theirs


def heard(service):
    found = []
    while True:
        try:
            found.append(message.receive(service)[0])
        except BlockingIOError:
            return found


def test_a_worker_that_reports_without_end_is_passed_on_once(pair):
    run, service = pair
    asked = []
    worker = SimpleNamespace(tell=asked.append)
    registration = Registration(run, {"alone": "why"})
    piece = {"metrics": "{", "left": 1, "lodge": "another"}
    registration.report(piece)  # nobody has asked
    assert heard(service) == [{"alone": "why"}]
    for _ in range(3):
        registration.turn(worker)  # it is not time again
    assert asked == [{"report": True}]
    for _ in range(3):
        registration.report(piece)
    registration.report({"metrics": "}", "left": 0})
    registration.report(piece)
    assert heard(service) == [{"metrics": "{", "left": 1}] * 3 + [{"metrics": "}", "left": 0}]
    registration.last()
    told = []
    for _ in range(1000):
        registration.report({"metrics": [1], "left": "x"})
        told += heard(service)
    assert len(told) == 100


def test_the_service_s_word_kills_the_task_and_its_end_is_no_trouble(pair):
    run, service = pair
    killed = []
    with selectors.DefaultSelector() as selector:
        registration = Registration(run, {"alone": "why"})
        registration.watch(selector, lambda: killed.append(True))
        for word in ({"asks": True}, {"kill": True}):
            message.send(service, word)
            registration.hear()
        assert killed == [True]
        service.close()
        registration.hear()
        assert not selector.get_map()
        registration.last()
        registration.report({"metrics": "{}", "left": 0})
