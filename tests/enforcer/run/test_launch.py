"""What becomes of a task's terminal, and of what its sockets are to take, before the task is begun."""

import errno
import os
import socket
from types import SimpleNamespace

import pytest

from enforcer.run import launch
from enforcer.sandbox.stdio import SANDBOX_TERMINAL
from proxy.udp.sockets import block_datagrams, blocks_datagrams
from proxy.wire import message


@pytest.fixture
def halves(monkeypatch):
    """Stands for a terminal that a sandbox has made: our half, and the task's."""
    made = os.pipe()
    monkeypatch.setattr(launch, "make_terminal", lambda *_: made)
    return made


RECIPE = SimpleNamespace(
    terminal=object(), identity=SimpleNamespace(kernel_uid=0), stdio=(SANDBOX_TERMINAL, 1, SANDBOX_TERMINAL)
)


def test_streams_of_a_terminal_are_the_tasks_pty(halves):
    assert launch._make_terminal(RECIPE, None, os.close) == ((halves[1], 1, halves[1]), halves[1])
    os.close(halves[1])


def test_task_without_a_terminal_relay_is_not_started(halves):
    """No descriptor may be left, or no process."""

    def carry(primary):
        os.close(primary)
        raise BlockingIOError(errno.EAGAIN, "no process")

    with pytest.raises(OSError, match="nobody can carry what passes through its terminal: no process"):
        launch._make_terminal(RECIPE, None, carry)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(halves[1])


@pytest.mark.parametrize("lets_out", [False, True])
def test_udp_waits_for_the_worker_only_under_udp_rules(lets_out):
    ours, workers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, workers, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        block_datagrams(udp, ())
        launch._send_sockets(
            SimpleNamespace(gate=ours, worker_descriptors={}, may_allow_udp=lets_out),
            {"udp": os.dup(udp.fileno())},
            None,
        )
        _, (given,) = message.receive(workers, 1)
        with socket.socket(fileno=given) as door:
            assert blocks_datagrams(door) is not lets_out
