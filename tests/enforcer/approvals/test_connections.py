"""Who may speak to the registry: known from the kernel, for the connection and for each packet."""

import asyncio
import json
import os
import socket
import tempfile
from collections import deque
from pathlib import Path
from types import SimpleNamespace

import pytest

from enforcer.approvals import client, connections
from enforcer.approvals.server import Server
from enforcer.system import linux
from tests.support import harness


@pytest.fixture
def listener():
    """It lies where every user can reach it, unlike pytest's own directories."""
    with tempfile.TemporaryDirectory(prefix="exeat-test-") as directory, client.bind(Path(directory), 0o666) as sock:
        os.chmod(directory, 0o755)
        sock.settimeout(30)
        yield sock, Path(directory) / "socket"


def other(path, *, before=lambda: None, words=b'{"exeat": 1}', descriptors=()):
    """A process that connects, says something and stays until its connection ends."""
    ready, wake = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            before()
            with client.connect(path) as connection:
                socket.send_fds(connection, [words], descriptors)
                os.write(wake, b"y")
                connection.recv(1)
        finally:
            os._exit(0)
    os.close(wake)
    assert os.read(ready, 1) == b"y"
    os.close(ready)
    return pid


def served(listener, *, stranger=False):
    """Who it was and what was said, or why it was not served."""
    connection, _ = listener.accept()
    with connection:
        try:
            peer = connections.check(connection, stranger=stranger)
            return peer.uid, json.loads(connections.receive(connection, peer).data)
        except connections.UntrustedPeerError as refused:
            return str(refused)


def test_process_of_the_same_user_is_served(listener):
    sock, path = listener
    pid = other(path)
    assert served(sock) == (os.geteuid(), {"exeat": 1})
    os.waitpid(pid, 0)


def test_other_users_are_served_only_by_a_shared_registry(listener):
    harness.needs_root()
    sock, path = listener

    def become():
        os.setresuid(harness.UID, harness.UID, harness.UID)
        linux.prctl(linux.PR_SET_DUMPABLE, 1)  # as every program that is executed then may be

    first = other(path, before=become)
    assert "serves nobody else here" in served(sock)
    second = other(path, before=become)
    assert served(sock, stranger=True) == (harness.UID, {"exeat": 1})
    os.waitpid(first, 0)
    os.waitpid(second, 0)


def test_client_in_another_user_namespace_is_refused(listener):
    sock, path = listener
    pid = other(path, before=lambda: os.unshare(os.CLONE_NEWUSER))
    assert "namespace" in served(sock, stranger=True)
    os.waitpid(pid, 0)


def test_connection_used_by_another_process_is_ignored(listener):
    sock, path = listener
    with client.connect(path) as mine:
        connection, _ = sock.accept()
        with connection:
            peer = connections.check(connection)
            pid = os.fork()
            if pid == 0:
                mine.send(b'{"exeat": 1, "what": "answer"}')
                os._exit(0)
            os.waitpid(pid, 0)
            with pytest.raises(connections.UntrustedPeerError, match="another process"):
                connections.receive(connection, peer)
            mine.send(b"{}")
            assert connections.receive(connection, peer).data == b"{}"


def test_overlong_packets_and_extra_descriptors_are_refused(listener):
    sock, path = listener
    ends = os.pipe()
    for words, descriptors in ((b" " * (1 << 17), ()), (b"{}", [ends[0]] * 9)):
        pid = other(path, words=words, descriptors=descriptors)
        assert served(sock) == "that is too long"
        os.waitpid(pid, 0)
    for end in ends:
        os.close(end)


def test_idle_registry_exits_but_not_while_a_client_connects(tmp_path):
    async def settle(desk, *, needed):
        async with asyncio.timeout(60):
            while desk.is_needed is not needed:  # noqa: ASYNC110  the kernel does it
                await asyncio.sleep(0.001)

    async def leave():
        desk = Server(SimpleNamespace(), deque())
        desk.listen(client.bind(tmp_path, 0o600))
        with client.connect(tmp_path / "socket"):  # in the queue: nobody has taken it
            assert not desk.is_alone(tmp_path)
            assert desk.is_needed
        await settle(desk, needed=False)
        with client.connect(tmp_path / "socket"):  # it listens again
            await settle(desk, needed=True)
        await settle(desk, needed=False)
        assert desk.is_alone(tmp_path)
        assert not (tmp_path / "socket").exists()
        desk.close()

    asyncio.run(leave())


def test_socket_path_longer_than_an_address_works(tmp_path):
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    with client.bind(deep, 0o600) as sock, client.connect(deep / "socket") as mine:
        assert os.stat(deep / "socket").st_mode & 0o777 == 0o600
        mine.send(b"x")
        connection, _ = sock.accept()
        assert connection.recv(9) == b"x"
        connection.close()
