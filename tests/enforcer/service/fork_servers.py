"""Scenarios of a process that forks others for a service: run by `python -m tests.enforcer.service.fork_servers NAME`."""

import contextlib
import json
import os
import signal
import socket
import sys
import time

from enforcer.service import fork_server
from enforcer.system import processes as children_module
from proxy.wire import message

PATIENCE = 30  # seconds
known = [1]
before = [lambda: None]


def be(service, channel, ahead):
    """Be a child: tell who and what it is, and end when told to."""
    held = [name for name in os.listdir("/proc/self/fd") if int(name) > 2]
    message.send(channel, {"pid": os.getpid(), "parent": os.getppid(), "service": service, "ahead": ahead, "held": len(held),
                           "known": known[0]})  # fmt: skip
    message.receive(channel)
    os._exit(7)


def _before():
    before[0]()


def made():
    """Return one that forks such children."""
    return fork_server.ForkServer(be, _before, lambda: known[0])


def said(channel):
    """Return what a child says of itself."""
    channel.settimeout(PATIENCE)
    return message.receive(channel)[0]


def _over(pid, channel):
    """End a child of ours; how it ended."""
    with contextlib.suppress(OSError):
        message.send(channel, {})
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def children():
    """They are the service's own, and hold nothing of what it has open."""
    ours = [os.memfd_create("a sandbox's") for _ in range(50)]
    every = made()
    found = []
    for ahead in (True, False):
        pid, channel = every.fork(ahead=ahead)
        words = said(channel)
        found.append({"right": words["pid"] == pid and words["parent"] == words["service"] == os.getpid(), "ahead": words["ahead"],
                      "few": words["held"] < 10, "status": _over(pid, channel)})  # fmt: skip
    there = os.listdir(f"/proc/{every.pid}/fd")
    every.close()
    every.close()
    return {"found": found, "few": len(there) < 10 < len(ours), "pid": every.pid, "left": _left()}


def deaths():
    """One that is gone is replaced, whether that is known by then or not; its children go on."""
    every = made()
    pid, channel = every.fork(ahead=False)
    first = every.pid
    os.kill(first, signal.SIGKILL)
    os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
    again, other = every.fork(ahead=False)
    second = every.pid
    os.kill(second, signal.SIGKILL)
    os.waitid(os.P_PID, second, os.WEXITED | os.WNOWAIT)
    every.reap()
    after = every.pid
    last, third = every.fork(ahead=False)
    statuses = [_over(*each) for each in ((pid, channel), (again, other), (last, third))]
    different = len({first, second, every.pid}) == 3
    every.close()
    return {"different": different, "after": after, "statuses": statuses, "left": _left()}


def shared():
    """Where it is told whom has been forked is shared with nobody else: not with who is forked, by it or by the service."""

    def is_shared(pid):
        with open(f"/proc/{pid}/maps") as file:
            return any(line.split()[1] == "rw-s" for line in file)

    every = made()
    pid, channel = every.fork(ahead=False)
    said(channel)
    other, control = children_module.fork(lambda _service, channel: (message.receive(channel), os._exit(7)))
    again = is_shared(os.getpid()), is_shared(every.pid), is_shared(pid), is_shared(other)
    statuses = [_over(pid, channel), _over(other, control)]
    every.close()
    return {"shared": again, "statuses": statuses, "left": _left()}


def out_of_step():
    """What is said of one fork is never taken for the next one's, whatever happens meanwhile."""
    heard = message.receive
    every = made()
    every.fork(ahead=False)

    def fail(*_):
        raise MemoryError

    message.receive = fail
    try:
        every.fork(ahead=False)
        failed = False
    except MemoryError:
        failed = True
    message.receive = heard
    pid, channel = every.fork(ahead=False)
    right = said(channel)["pid"] == pid
    status = _over(pid, channel)
    every.close()
    return {"failed": failed, "right": right, "status": status}


def unheard():
    """One ends after it has forked and before it can say so: who it has forked is known all the same."""
    told = message.send

    def nothing(channel, what, *more):
        if "forked" in what:
            os._exit(1)
        told(channel, what, *more)

    message.send = nothing
    every = made()
    pid, channel = every.fork(ahead=False)
    right = said(channel)["pid"] == pid
    status = _over(pid, channel)
    every.close()
    return {"right": right, "status": status, "left": _left()}


def stopped():
    """One that doesn't go on is killed, and another takes its place."""
    fork_server.PATIENCE = 0.5
    every = made()
    pid, channel = every.fork(ahead=False)
    os.kill(every.pid, signal.SIGSTOP)
    again, other = every.fork(ahead=False)
    statuses = [_over(pid, channel), _over(again, other)]

    def stop():
        os.kill(os.getpid(), signal.SIGSTOP)

    before[0], known[0] = stop, 2
    began = time.monotonic()
    try:
        every.fork(ahead=False)
        failed = ""
    except OSError as error:
        failed = error.strerror
    bounded = time.monotonic() - began < PATIENCE
    every.close()
    return {"statuses": statuses, "failed": failed, "bounded": bounded, "left": _left()}


def refused():
    """What goes wrong with one fork is said, and the next one is made."""
    every = made()

    def fail():
        if known[0] == 1:
            raise OSError(12, "no memory")

    before[0] = fail
    try:
        every.fork(ahead=False)
        failed = ""
    except OSError as error:
        failed = f"{error.errno} {error.strerror}"
    first, known[0] = every.pid, 2
    pid, channel = every.fork(ahead=False)
    words = said(channel)
    status = _over(pid, channel)
    different = first != every.pid
    every.close()
    return {"failed": failed, "different": different, "known": words["known"], "status": status, "left": _left()}


def orphans():
    """A service that is killed takes all of them along."""
    ours, theirs = socket.socketpair()
    service = os.fork()
    if service == 0:
        every = made()
        pid, _ = every.fork(ahead=True)
        theirs.sendall(json.dumps([every.pid, pid]).encode())
        time.sleep(PATIENCE)
        os._exit(0)
    pids = json.loads(ours.recv(100))
    os.kill(service, signal.SIGKILL)
    os.waitpid(service, 0)
    ends = time.monotonic() + PATIENCE
    while (there := [pid for pid in pids if _runs(pid)]) and time.monotonic() < ends:
        time.sleep(0.01)
    return {"there": there}


def _runs(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _left():
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return file.read().split()


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]]()))
