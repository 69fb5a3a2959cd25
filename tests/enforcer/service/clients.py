"""What asks a service, started as the kernel would start it, and a service that is a socket of the test's."""

import contextlib
import ctypes
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from enforcer.service import protocol
from tests.support import harness

PATIENCE = 60
_libc = ctypes.CDLL(None, use_errno=True)


CLIENT = [os.fsencode(word) for word in (sys.executable, "-P", harness.PROJECT / "enforcer/exeat")]


class Asked(NamedTuple):
    """A request that has come: the connection, what it says, and its descriptors."""

    connection: socket.socket
    run: protocol.Run
    descriptors: list[int]


class Listening:
    """The other end. Its clients are started with `start`, and have no other environment than they are given."""

    def __init__(self):
        self.directory = Path(tempfile.mkdtemp(prefix="exeat-c-"))  # short: the name of a socket is
        self.path = self.directory / "control"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.bind(str(self.path))
        self.socket.listen()
        self.socket.settimeout(PATIENCE)
        self._open = contextlib.ExitStack()
        self._given = []

    def start(self, *words, env=(), before=lambda: None, control=None, **more):
        """Start a client; `before` is done in its process."""
        environment = [b"LC_ALL=C.UTF-8", b"PATH=/usr/bin:/bin", *env]
        environment.append(b"EXEAT_CONTROL=" + os.fsencode(self.path if control is None else control))
        argv = [*CLIENT, *map(os.fsencode, words)]

        def execute():
            before()
            _libc.execve(CLIENT[0], _array(argv), _array(environment))

        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
        client = subprocess.Popen(["a client"], executable="/bin/false", preexec_fn=execute, **streams)  # noqa: PLW1509
        self._open.callback(client.communicate)
        self._open.callback(client.kill)
        return client

    def asked(self):
        """Take the next request."""
        connection, _ = self.socket.accept()
        self._open.enter_context(connection)
        connection.settimeout(PATIENCE)
        packet, descriptors, flags, _ = socket.recv_fds(connection, 1 << 16, protocol.MOST_DESCRIPTORS)
        self._given += descriptors
        assert (protocol.packet_request(packet), len(descriptors), flags & socket.MSG_CTRUNC) == (protocol.RUN, 5, 0)
        return Asked(connection, protocol.unpack(descriptors[4]), descriptors)

    def nobody_asks(self):
        self.socket.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            return not self.socket.accept()
        return True

    def ended(self, client):
        """Wait for a client's end; returns its status, as subprocess has it, and what it said."""
        self._let_go()
        out, err = client.communicate(timeout=PATIENCE)
        return client.returncode, (out or b"").decode(), (err or b"").decode()

    def _let_go(self):
        while self._given:
            os.close(self._given.pop())

    def close(self):
        self._let_go()
        self._open.close()
        self.socket.close()
        shutil.rmtree(self.directory)


@contextlib.contextmanager
def elsewhere(become, what, *, stays):
    """Do something in another process, which has become something else; `stays`: until this is over."""
    done, doing = os.pipe()
    over, end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(end)
            become()
            if (inner := os.fork()) == 0:  # in a pid namespace is only what is forked then
                what()
                os.write(doing, b"x")
                os.read(over, 1) if stays else None
            else:
                os.close(doing)
                os.waitpid(inner, 0)
        finally:
            os._exit(0)
    os.close(doing)
    os.close(over)
    assert os.read(done, 1) == b"x"
    if not stays:
        os.waitpid(pid, 0)
    try:
        yield
    finally:
        os.close(done)
        os.close(end)
        if stays:
            os.waitpid(pid, 0)


def _array(words):
    return (ctypes.c_char_p * (len(words) + 1))(*words, None)
