"""How a sandbox's outermost process is seen out: at once, or once nobody waits for its end any more."""

import contextlib
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from enforcer.sandbox import init
from enforcer.sandbox.init import RemoteExecutor
from enforcer.sandbox.namespaces import SandboxNamespaces
from enforcer.sandbox.step_lists import FORKED_PID


@pytest.fixture
def outermost():
    """One that has begun another, which stands for its init."""
    pid, outer = init.start()
    ours, theirs = init.channel_pair()
    with theirs:
        outer.calls.fork(outer.calls.take(theirs.fileno()), FORKED_PID, leaf=False)
        outer.run()
    sandbox = SandboxNamespaces(pid, outer, RemoteExecutor(ours), ())
    sandbox.init_pid = outer.value(FORKED_PID)
    yield sandbox
    with contextlib.suppress(ChildProcessError, ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _is_there(pid):
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def test_namespaces_that_end_early_are_reaped(outermost):
    assert outermost.wait_until_empty()
    assert outermost.outer.ended == (outermost.init_pid, 125 << 8), "its init ends when nobody is there any more"
    with contextlib.ExitStack() as others:
        outermost.end_later(others)
        outermost.end()
        assert _is_there(outermost.pid), "it was ended before the others"
    with pytest.raises(ChildProcessError):
        os.waitpid(outermost.pid, 0)
    assert (outermost.outer.channel.fileno(), outermost.init.channel.fileno()) == (-1, -1)


def test_namespaces_end_despite_a_fork_of_their_maker(outermost):
    copies = [os.dup(each.channel.fileno()) for each in (outermost.init, outermost.outer)]
    assert outermost.wait_until_empty()
    outermost.end()
    for copy in copies:
        os.close(copy)


def test_unclaimed_sockets_are_closed(outermost):
    reader, writer = os.pipe()
    outermost.sockets = {"kept": writer}
    outermost.end()
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_sockets_are_handed_over_once(outermost):
    outermost.sockets = {"given": (given := os.open("/dev/null", os.O_RDONLY))}
    assert outermost.take_sockets() == {"given": given}
    assert outermost.take_sockets() == {}
    outermost.end()
    os.close(given)


def test_namespaces_with_a_process_are_not_released(outermost):
    with contextlib.ExitStack() as others:
        outermost.end_later(others)
        outermost.end()
        with pytest.raises(ChildProcessError):
            os.waitpid(outermost.pid, 0)


def test_init_ends_with_its_outermost_process(outermost):
    outermost.init.calls.call("getpid")
    outermost.init.run()  # it is there, and has asked to end with who began it
    init = os.pidfd_open(outermost.init_pid)
    os.kill(outermost.pid, signal.SIGKILL)
    poll = select.poll()
    poll.register(init, select.POLLIN)
    assert poll.poll(20_000)
    os.close(init)


NOTHING_MADE = """
import os
from enforcer.sandbox import namespaces
from enforcer.system.errors import HostError

os.unshare(os.CLONE_NEWNS)
namespaces.begin_view = namespaces.execute_steps = namespaces.finish_view = lambda *_: None
try:
    namespaces.enter([])
except HostError as error:
    print(error)
"""


def test_process_in_the_hosts_root_has_no_mounts():
    """The kernel takes a caller along only where its root is the one that is replaced (pivot_root(2))."""
    done = subprocess.run(
        [sys.executable, "-c", NOTHING_MADE], capture_output=True, text=True, timeout=30, cwd=Path(__file__).parents[3]
    )
    assert done.stdout == "the worker's file system view was made, but its root is still the host's\n", done.stderr
