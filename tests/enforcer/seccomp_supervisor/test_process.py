"""When somebody watches a task's calls: from the first that is refused on, and not for one that has ended."""

import os
import selectors
import socket

import pytest

from enforcer.sandbox.seccomp import watched_filter
from enforcer.seccomp_supervisor import process
from enforcer.seccomp_supervisor.process import SupervisorProcess
from enforcer.system.errors import HostError
from proxy.supervisor_channel import messages


class SandboxNamespaces:
    """Stands for a sandbox of which nobody may want anything: nobody is to be begun in it."""


class Full:
    """A fence with no room for another process."""

    def admit_supervisor(self, pid):
        self.pid = pid
        raise HostError("no room")


@pytest.fixture
def listener():
    """Stands for a filter's listener: what it is heard by, and the end that is closed when nobody has the filter."""
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb", buffering=0) as tasks:
        yield reader, tasks


@pytest.fixture
def seat(listener):
    made = SupervisorProcess(watched_filter(commands=False), SandboxNamespaces(), Full())
    yield made
    made.close()


@pytest.fixture
def worker(seat):
    with socket.socket(fileno=seat.give()) as end:
        end.settimeout(20)
        yield end


def test_supervisor_exits_when_no_caller_is_left(seat, worker, listener):
    reader, tasks = listener
    seat.listen(reader)
    with selectors.DefaultSelector() as selector:
        seat.watch(selector)
        worker.send(messages.pack(messages.NewWorker()))
        seat.hear()
        assert len(selector.get_map()) == 2, "who only says that it is there asks nothing"
        tasks.close()
        [(key, _)] = selector.select(20)
        key.data()
        assert not selector.get_map()
    assert worker.recv(1) == b"", "the worker is told that nobody listens any more"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(reader)


def test_worker_without_a_listener_sends_no_query(seat, worker):
    with selectors.DefaultSelector() as selector:
        seat.watch(selector)
        worker.send(messages.pack(messages.ProcessLookup(1, 2)))
        seat.hear()
        assert not selector.get_map()


def test_supervisor_outside_the_task_limits_does_not_start(seat, worker, listener, monkeypatch):
    reader, tasks = listener
    monkeypatch.setattr(SandboxNamespaces, "outer", Outer(), raising=False)
    monkeypatch.setattr(SupervisorProcess, "_run_supervisor", lambda *_: os._exit(0))
    seat.listen(reader)
    with selectors.DefaultSelector() as selector:
        seat.watch(selector)
        os.write(tasks.fileno(), b"asked")
        seat.hear()
    assert messages.unpack(worker.recv(messages.LONGEST)) == messages.SupervisorFailed(b"HostError: no room")
    with pytest.raises(ChildProcessError):
        os.waitpid(seat._resource_limits.pid, 0)


class Outer:
    """Stands for the outermost process, which opens its namespaces."""

    def __init__(self):
        self.calls = self

    def get(self, *_arguments):
        return None

    def run(self, *wanted):
        return [os.open("/dev/null", os.O_RDONLY) for _ in wanted]


def test_greeting_comes_from_the_worker():
    assert messages.pack(messages.NewWorker()) == process.GREETING
