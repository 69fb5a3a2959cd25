"""What the supervisor tells the worker arrives whole, whatever is in it: one that can't be read ends the worker."""

import os
import socket

import pytest

from enforcer.reloading import _LONGEST, _MOST_PROBLEMS
from enforcer.worker import Worker
from proxy import message
from proxy.telemetry.summary import Summary


@pytest.mark.parametrize("letter", ["x", "\u00fc", "\u4e2d", "\U0001f600", "\x01", '"', "\udcff"], ids=ascii)
def test_the_longest_problems_of_rules_arrive(letter):
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    told = {"rules_rejected": [letter * _LONGEST] * _MOST_PROBLEMS}
    with here, there:
        message.send(here, told)
        assert message.receive(there) == (told, [])


NONE = [b"\xff", b"[1]", b"{", b"3", b'{"a": ' + b"[" * 60_000]


@pytest.mark.parametrize("packet", NONE, ids=range(len(NONE)))
def test_what_is_no_message_is_one_kind_of_error_and_leaves_no_descriptor(packet):
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    end, its = socket.socketpair()
    with here, there, end, its:
        socket.send_fds(here, [packet], [its.fileno()])
        its.close()
        with pytest.raises(ValueError, match=r"no message|decode|Expecting"):
            message.receive(there, 1)
        assert end.recv(1) == b"", "nobody has the other end any more"


def test_descriptors_that_nobody_asked_for_are_closed():
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    end, its = socket.socketpair()
    with here, there, end, its:
        message.send(here, {"a": 1}, [its.fileno()])
        its.close()
        assert message.receive(there) == ({"a": 1}, [])
        assert end.recv(1) == b""


@pytest.mark.parametrize("packet", NONE, ids=range(len(NONE)))
def test_a_worker_that_says_no_message_is_ended_and_its_supervisor_goes_on(packet):
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    gate, its_gate = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        there.send(b'{"asks": true, "x": 1}')
        there.send(packet)
        there.recv(1)  # for ever
        os._exit(0)
    there.close()
    its_gate.close()
    worker = Worker(pid, here, gate)
    assert worker.hear()
    assert worker.said == {"asks": True}, "what no worker has to say isn't kept"
    assert not worker.hear()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -9
    worker.kill()


def test_a_worker_s_summary_that_is_none_is_one_kind_of_error():
    whole = Summary.decode(Summary({}).encode())
    assert whole == Summary({})
    for text in (b"[" * 60_000, Summary({}).encode().replace(b'"leaks": 0', b'"leaks": Infinity'), b"{}", b"[]"):
        with pytest.raises(ValueError, match="not a summary"):
            Summary.decode(text)


@pytest.mark.parametrize("blocking", [True, False])
def test_what_was_said_last_is_heard_from_who_left_something_unread(blocking):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(blocking)
    message.send(ours, {"counters": True})
    message.send(theirs, {"ended": 0})
    theirs.close()
    assert message.receive(ours) == ({"ended": 0}, [])
    assert message.receive(ours) == ({}, [])
    assert message.receive(ours) == ({}, [])


def test_who_left_without_a_word_and_something_unread_is_gone():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    message.send(ours, {"counters": True})
    theirs.close()
    assert message.packet(ours, 100) == (b"", [])
    assert message.packet(ours, 100, 1) == (b"", [])
