"""Real namespaces for tests: one that holds a sandbox's network, and functions run inside it as its owner or as a task.

A function runs in a forked child that joins the namespaces, so that it can be a closure and needs no interpreter of its
own (which an ordinary uid may not be able to read). What it returns or raises comes back through a pipe.
"""

import contextlib
import encodings.ascii
import encodings.idna  # noqa: F401  loaded before the uid changes: afterwards the library may be unreadable
import os
import pickle
import signal
import socket
import warnings
from dataclasses import dataclass

from enforcer.network.gate_sockets import GateSockets, open_gate_sockets
from enforcer.network.install import Installed, execute
from enforcer.system import linux
from tests.support.waiting import readable

ORDINARY = 64321  # a uid and gid that nobody has
PATIENCE = 20  # seconds until a child that hangs is killed


@dataclass
class Running:
    """A child at work."""

    pid: int
    pipe: int
    ended: bool = False

    def result(self):
        """Return what the function returned, or raise what it raised."""
        content = b""
        while chunk := self._read():
            content += chunk
        self.end()
        if not content:
            raise AssertionError("the child ended without an answer")
        raised, value = pickle.loads(content)
        if raised:
            raise value
        return value

    def _read(self):
        if not readable(self.pipe, PATIENCE):
            self.end()
            raise AssertionError(f"the child gave no answer for {PATIENCE} s")
        return os.read(self.pipe, 1 << 16)

    def end(self):
        """Kill and reap the child, if it is still there."""
        if not self.ended:
            self.ended = True
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            os.close(self.pipe)


def start(function, *before):
    """Run the `before` steps and then the function in a forked child."""
    reader, writer = os.pipe()
    parent = os.getpid()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pytest-xdist has threads; the child uses none of theirs
        pid = os.fork()
    if pid:
        os.close(writer)
        return Running(pid, reader)
    try:
        signal.alarm(PATIENCE)
        os.close(reader)
        try:
            for step in before:
                step()
            linux.die_with_parent(signal.SIGKILL, parent)
            answer = pickle.dumps((False, function()))
        except BaseException as error:  # noqa: BLE001  told to the parent, which raises it
            answer = pickle.dumps((True, error))
        os.write(writer, answer)
    finally:
        os._exit(0)


def become_ordinary():
    """Give up root for good, if we are it."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(ORDINARY, ORDINARY, ORDINARY)
        os.setresuid(ORDINARY, ORDINARY, ORDINARY)


def own_user_namespace():
    """Become uid 0 of a fresh user namespace."""
    uid, gid = os.geteuid(), os.getegid()
    linux.prctl(linux.PR_SET_DUMPABLE, 1)  # /proc/self belongs to root since the change of uid
    os.unshare(os.CLONE_NEWUSER)
    for name, content in ("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1"):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(content)


class Namespace:
    """A network namespace, as real root's (`rootless` false) or inside an ordinary user's user namespace."""

    def __init__(self, *, rootless):
        self.rootless = rootless
        here, there = socket.socketpair()
        steps = (become_ordinary, own_user_namespace) if rootless else ()

        def hold():
            there.send(b"1")
            there.recv(1)

        self._holder = start(hold, *steps, lambda: os.unshare(os.CLONE_NEWNET))
        there.close()
        self._channel = here
        here.settimeout(PATIENCE)
        if here.recv(1) != b"1":
            self._holder.result()
        spaces = ("user", "net") if rootless else ("net",)
        self._spaces = [os.open(f"/proc/{self._holder.pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC) for name in spaces]

    def close(self):
        """End the holder: the namespace goes with its last socket."""
        self._holder.end()
        self._channel.close()
        for handle in self._spaces:
            os.close(handle)

    def start_as_owner(self, function):
        """Run with every capability over the namespace."""
        return start(function, self._join)

    def start(self, function):
        """Run as a task would: an ordinary uid without capabilities."""
        return start(function, self._join, self._drop)

    def as_owner(self, function):
        """Run to its end, as the owner."""
        return self.start_as_owner(function).result()

    def run(self, function):
        """Run to its end, as a task."""
        return self.start(function).result()

    def _join(self):
        for handle in self._spaces:
            os.setns(handle)
        if self.rootless:  # from root's uid, which isn't mapped, to the one that is
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)

    def _drop(self):
        if not self.rootless:
            become_ordinary()
        linux.drop_capabilities()
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)


class Network(Namespace):
    """A namespace with the whole plan in it and the gate's sockets here, outside."""

    def __init__(self, encoded, *, rootless, before=lambda: None):
        super().__init__(rootless=rootless)
        self.gate_port = encoded.gate_port
        ours, theirs = socket.socketpair()

        def make():
            before()
            installed = execute(encoded)
            made = open_gate_sockets(encoded.gate_port, refusal_log=installed.refusal_log).named()
            socket.send_fds(theirs, [b"s"], [sock.fileno() for sock in made.values()])
            return installed, list(made)

        with ours, theirs:
            made: tuple[Installed, list[str]] = self.as_owner(make)
            self.installed, names = made
            _, fds, _, _ = socket.recv_fds(ours, 1, len(names))
        socks = dict(zip(names, (socket.socket(fileno=fd) for fd in fds), strict=True))
        self.sockets = GateSockets(**{"answers6": None, "refusal_log": None, **socks})
        for sock in socks.values():
            sock.settimeout(PATIENCE)

    def close(self):
        """Close the sockets, then the namespace."""
        self.sockets.close()
        super().close()

    def counters(self):
        """Return what was refused, leaving out the kinds of which nothing was."""
        from enforcer.network.gate_sockets import open_counter_socket, read_counters

        def read():
            with open_counter_socket() as sock:
                return read_counters(sock)

        counted = self.as_owner(read)
        return {name: packets for name, packets in counted.items() if packets and name != "logged"}


def outcome(function):
    """Return what a call gives, or the errno it fails with."""
    try:
        return function()
    except OSError as error:
        return error.errno


@contextlib.contextmanager
def gone(make, **options):
    """A namespace object that is closed at the end."""
    made = make(**options)
    try:
        yield made
    finally:
        made.close()
