"""What the supervisor tells the worker arrives whole, whatever is in it: one that can't be read ends the worker."""

import base64
import errno
import os
import selectors
import socket
import zlib

import pytest

from enforcer.policy.reread import _LONGEST, _MOST_PROBLEMS
from enforcer.service.channel import Channel
from enforcer.worker.worker import Worker, WorkerProcess
from proxy.telemetry.summary import Summary
from proxy.wire import message


@pytest.mark.parametrize("letter", ["x", "\u00fc", "\u4e2d", "\U0001f600", "\x01", '"', "\udcff"], ids=ascii)
def test_longest_rule_problems_arrive(letter):
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    told = {"rules_rejected": [letter * _LONGEST] * _MOST_PROBLEMS}
    with here, there:
        message.send(here, told)
        assert message.receive(there) == (told, [])


NONE = [b"\xff", b"[1]", b"{", b"3", b'{"a": ' + b"[" * 60_000]


@pytest.mark.parametrize("packet", NONE, ids=range(len(NONE)))
def test_malformed_message_is_a_value_error_and_leaks_no_descriptor(packet):
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    end, its = socket.socketpair()
    with here, there, end, its:
        socket.send_fds(here, [packet], [its.fileno()])
        its.close()
        with pytest.raises(ValueError, match=r"malformed message|decode|Expecting"):
            message.receive(there, 1)
        assert end.recv(1) == b"", "nobody has the other end any more"


def test_unrequested_descriptors_are_closed():
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    end, its = socket.socketpair()
    with here, there, end, its:
        message.send(here, {"a": 1}, [its.fileno()])
        its.close()
        assert message.receive(there) == ({"a": 1}, [])
        assert end.recv(1) == b""


@pytest.mark.parametrize("packet", NONE, ids=range(len(NONE)))
def test_worker_with_a_malformed_message_is_ended(packet):
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    gate, gate_end = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        there.send(b'{"asks": true, "x": 1}')
        there.send(packet)
        there.recv(1)  # for ever
        os._exit(0)
    there.close()
    gate_end.close()
    worker = WorkerProcess(pid, here, gate)
    assert worker.receive()
    assert worker.received_fields == {"asks": True}, "what no worker has to say isn't kept"
    assert not worker.receive()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -9
    worker.kill()


def test_malformed_worker_summary_is_a_value_error():
    whole = Summary.decode(Summary().encode())
    assert whole == Summary()
    for text in (b"[" * 60_000, Summary().encode().replace(b'"leaks":0', b'"leaks":Infinity'), b"[]"):
        with pytest.raises(ValueError, match="not a summary"):
            Summary.decode(text)


@pytest.mark.parametrize("blocking", [True, False])
def test_last_message_of_a_peer_with_unread_data_is_received(blocking):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(blocking)
    message.send(ours, {"counters": True})
    message.send(theirs, {"ended": 0})
    theirs.close()
    assert message.receive(ours) == ({"ended": 0}, [])
    assert message.receive(ours) == ({}, [])
    assert message.receive(ours) == ({}, [])


def test_peer_that_ended_with_unread_data_is_gone():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    message.send(ours, {"counters": True})
    theirs.close()
    assert message.packet(ours, 100) == (b"", [])
    assert message.packet(ours, 100, 1) == (b"", [])


def _passes_none(monkeypatch):
    """Have the kernel pass no descriptor, as when a task of the same user has all of them under way."""
    send = socket.send_fds

    def refused(channel, buffers, descriptors):
        if descriptors:
            raise OSError(errno.ETOOMANYREFS, os.strerror(errno.ETOOMANYREFS))
        return send(channel, buffers, descriptors)

    monkeypatch.setattr(socket, "send_fds", refused)


def _file(content):
    file = os.memfd_create("test")
    os.write(file, content)
    return file


RULES = b"some rules" * 100_000
TOO_LARGE = os.urandom(1 << 17)


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


def test_file_is_sent_inline_if_the_kernel_passes_no_descriptor(monkeypatch, pair):
    _passes_none(monkeypatch)
    message.send(pair[0], {"rules": "1"}, [_file(RULES)])
    said, (file,) = message.receive(pair[1], 1)
    assert said == {"rules": "1"}
    assert os.pread(file, 2 * len(RULES), 0) == RULES
    message.send(pair[0], {"rules": "1"}, [_file(RULES)])
    assert message.receive(pair[1]) == ({"rules": "1"}, []), "nobody asked for it"


def test_socket_is_not_sent_inline(monkeypatch, pair):
    _passes_none(monkeypatch)
    with pytest.raises(OSError, match="Too many references") as refused:
        message.send(pair[0], {"sockets": ["x"]}, [pair[1].fileno()])
    assert type(refused.value) is OSError
    pair[1].setblocking(False)
    with pytest.raises(BlockingIOError):
        message.receive(pair[1], 1)


BOMB = zlib.compress(bytes(message._MAX_INLINE_FILE + 1))


@pytest.mark.parametrize("content", ["?", "", base64.b64encode(b"no file").decode(), base64.b64encode(BOMB).decode()])
def test_malformed_inline_file_is_a_value_error(pair, content):
    message.send(pair[0], {"rules": "1", "file in words": content})
    with pytest.raises(ValueError, match=r"file in a message|base64|Base64|decode"):
        message.receive(pair[1], 1)


def test_worker_that_cannot_get_new_rules_ends(monkeypatch, pair):
    _passes_none(monkeypatch)
    gate, gate_end = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        pair[1].recv(1)  # for ever
        os._exit(0)
    with gate, gate_end:
        worker = WorkerProcess(pid, pair[0], gate)
        worker.send({"rules": "1"}, [_file(TOO_LARGE)])
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -9
        worker.has_ended = True
        worker.kill()


def test_service_worker_that_cannot_get_new_rules_ends(monkeypatch, pair):
    _passes_none(monkeypatch)
    with selectors.DefaultSelector() as selector:
        channel = Channel(pair[0].dup(), selector, lambda _said, _given: None)
        pair[0].close()
        channel.send({"set": 1, "revision": "x"}, [_file(TOO_LARGE)])
        channel.send({"later": True})
        assert channel.closed
        assert not selector.get_map()
    assert message.receive(pair[1]) == ({}, []), "which is what ends it"


def test_run_that_cannot_send_new_rules_is_dropped(monkeypatch, pair):
    _passes_none(monkeypatch)
    gate, gate_end = socket.socketpair()
    with gate, gate_end:
        run = Worker(pair[0], gate)
        run.send({"rules": "1"}, [_file(TOO_LARGE)])
        assert message.receive(pair[1]) == ({}, [])
        assert not run.receive()
