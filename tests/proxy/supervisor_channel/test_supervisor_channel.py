"""The worker's end of a task's watcher, where the watcher ends before it."""

import socket
from types import SimpleNamespace

import pytest

from proxy.supervisor_channel import messages
from proxy.supervisor_channel.channel import SupervisorChannel


@pytest.fixture
def heard():
    ours, watchers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    told = []
    recorder = SimpleNamespace(
        sandbox=SimpleNamespace(policy=SimpleNamespace(revision="r"), approvals=None, holds_programs=False),
        error=lambda _where, detail: told.append(detail),
        command_decided=lambda *_: None,
    )
    poller = SimpleNamespace(watch=lambda *_: None, forget=lambda _: None)
    with ours, watchers:
        yield SupervisorChannel(ours, recorder, poller), watchers, told


def test_task_that_ended_before_its_worker_is_no_error(heard):
    hearing, watcher, told = heard
    watcher.close()
    hearing.start()
    hearing.ready(0)
    assert told == []


def test_undeliverable_answer_is_recorded(heard):
    hearing, watcher, told = heard
    hearing.start()
    watcher.send(
        messages.pack(
            messages.StartRequest(1, messages.ProcessInfo(7, 0, b"/bin/sh"), (b"/bin/true",), (b"true",), True, False)
        )
    )
    watcher.close()
    hearing.ready(0)
    assert told == ["can't send to the seccomp supervisor: Broken pipe"]
