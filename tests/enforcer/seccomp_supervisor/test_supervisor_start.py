"""What a real filter has to ask begins a sandbox's watcher, and who only says that they come or go doesn't."""

import contextlib
import os
import selectors
import socket

import pytest

from enforcer.sandbox.seccomp import watched_filter
from enforcer.seccomp_supervisor.process import SupervisorProcess
from enforcer.system import linux
from proxy.supervisor_channel import messages
from tests.enforcer.seccomp_supervisor.watched import call


@pytest.fixture
def task():
    """A process under a filter that is listened to: the listener, and how it is told to go on."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            call("prctl", 38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
            listener = linux.load_seccomp_with_listener(watched_filter(commands=False).program)
            socket.send_fds(theirs, [b"l"], [listener])
            os.close(listener)
            if theirs.recv(1) == b"r":
                call("mount", 0, 0, 0, 0, 0)
        finally:
            os._exit(0)
    theirs.close()
    _, [listener], _, _ = socket.recv_fds(ours, 1, 1)
    yield listener, ours, pid
    ours.close()
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


@pytest.fixture
def seat(task, monkeypatch):
    """One whose watcher would begin, the worker's end of it, and what has happened."""
    made, begun = SupervisorProcess(watched_filter(commands=False), None, None), []
    monkeypatch.setattr(made, "_start", lambda: begun.append(made._listener >= 0))
    worker = socket.socket(fileno=made.give())
    with selectors.DefaultSelector() as selector, worker:
        made.listen(task[0])
        made.watch(selector)

        def turn():
            for key, _ in selector.select(20):
                key.data()
            return begun

        yield made, worker, turn
    made.close()


def test_refused_call_starts_the_supervisor(seat, task):
    task[1].send(b"r")
    assert seat[2]() == [True]


def test_query_of_the_worker_starts_the_supervisor(seat):
    _, worker, turn = seat
    worker.send(messages.pack(messages.NewWorker()))
    assert turn() == []
    worker.send(messages.pack(messages.ProcessLookup(1, 2)))
    assert turn() == [True]


def test_ended_task_starts_no_supervisor(seat, task):
    made, worker, turn = seat
    task[1].send(b"e")
    os.waitpid(task[2], 0)
    assert turn() == []
    assert made._listener < 0, "it is listened to no more"
    assert worker.recv(1) == b""


def test_closed_worker_channel_keeps_the_listener(seat, task):
    made, worker, turn = seat
    worker.close()
    assert turn() == []
    assert made._listener >= 0
    task[1].send(b"r")
    assert turn() == [True]


def test_worker_that_does_not_read_starts_no_supervisor(seat):
    made, worker, turn = seat
    made._channel.send(b"unread")
    worker.close()
    assert turn() == []
    assert made._listener >= 0
