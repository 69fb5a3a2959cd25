"""How a sandbox's outermost process is seen out: at once, or once nobody waits for its end any more."""

import contextlib
import os
import signal
import socket

import pytest

from enforcer.sandbox import shipping
from enforcer.sandbox.hull import Hull
from enforcer.sandbox.steps import Directory, Link


@pytest.fixture
def outermost():
    """A process that ends once its pair is closed, and what stands for its sandbox."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.posix_spawn(
        "/bin/sh", ["sh", "-c", "read line"], {}, file_actions=[(os.POSIX_SPAWN_DUP2, theirs.fileno(), 0)]
    )
    theirs.close()
    with other:
        yield Hull(pid, ours, control, ())
    with contextlib.suppress(ChildProcessError, ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _is_there(pid):
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def test_one_that_ends_by_itself_is_seen_out_with_the_others(outermost):
    outermost.settled = True
    with contextlib.ExitStack() as others:
        outermost.end_later(others)
        outermost.end()
        assert _is_there(outermost.pid), "it was ended before the others"
        outermost.steer.shutdown(socket.SHUT_RDWR)
    with pytest.raises(ChildProcessError):
        os.waitpid(outermost.pid, 0)
    assert (outermost.steer.fileno(), outermost.control.fileno()) == (-1, -1)


def test_one_in_which_something_may_still_run_is_not_left_to_anybody(outermost):
    with contextlib.ExitStack() as others:
        outermost.end_later(others)
        outermost.end()
        with pytest.raises(ChildProcessError):
            os.waitpid(outermost.pid, 0)


def test_an_init_is_told_of_steps_before_all_of_them_are_known():
    steer, control = (socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2))
    first, more = (Directory("/first"),), (Directory("/etc"), Link("/link", "/etc"))
    hull = Hull(0, steer[0], control[0], first)
    with steer[0], steer[1], control[0], control[1]:
        hull.take(more)
        assert shipping.unpack(control[1]).what == more
        control[1].close()
        hull.take((Directory("/late"),))  # it has ended: that is heard later
    assert hull.done == (*first, *more, Directory("/late"))
