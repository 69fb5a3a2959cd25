"""What the watcher is made of, by itself: the budget, the memory of another process, packets."""

import contextlib
import ctypes
import mmap
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enforcer.seccomp_supervisor import notification_listener
from enforcer.seccomp_supervisor.supervisor import AT_ONCE, EACH, REFILLED, EventBudget
from proxy.supervisor_channel import messages


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def test_denied_calls_are_reported_periodically_with_counts():
    clock = Clock()
    budget = EventBudget(clock)
    assert budget.take("mount", b"/bin/sh") == 0
    assert [budget.take("mount", b"/bin/sh") for _ in range(5)] == [None] * 5
    assert budget.take("mount", b"/bin/other") == 0
    assert budget.take("bpf", b"/bin/sh") == 0
    clock.now += EACH
    assert budget.take("mount", b"/bin/sh") == 5
    clock.now += EACH
    assert budget.take("mount", b"/bin/sh") == 0


def test_reported_calls_are_bounded():
    clock = Clock()
    budget = EventBudget(clock)
    assert sum(budget.take("mount", b"%d" % n) is not None for n in range(10_000)) == AT_ONCE
    clock.now += 10 * REFILLED
    assert sum(budget.take("mount", b"other %d" % n) is not None for n in range(10_000)) == 10
    assert len(budget._last_sent) + len(budget._suppressed) <= 1024


def _array(*addresses):
    return (ctypes.c_uint64 * (len(addresses) + 1))(*addresses, 0)


def test_texts_are_read_across_pages():
    pages = mmap.mmap(-1, 3 * 4096)
    start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    pages[:] = b"x" * len(pages)
    pages[5000] = 0
    assert notification_listener.read_text(os.getpid(), start, 4096) is None
    assert notification_listener.read_text(os.getpid(), start + 1000, 4097) == b"x" * 4000
    assert notification_listener.read_text(os.getpid(), start + 1000, 4000) is None
    assert notification_listener.read_text(os.getpid(), start + 5000, 4096) == b""
    ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + 8192), 4096, 0)
    with pytest.raises(OSError, match="process_vm_readv"):
        notification_listener.read_text(os.getpid(), start + 6000, 4096)
    ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + 8192), 4096, 3)


@pytest.mark.parametrize("off", [0, 1, 4, 4093])
def test_arguments_are_read_wherever_they_lie(off):
    texts = [ctypes.create_string_buffer(b"w%d" % n) for n in range(600)]
    room = ctypes.create_string_buffer(4096 * 4)
    base = (ctypes.addressof(room) + 4095) // 4096 * 4096
    array = bytes(_array(*map(ctypes.addressof, texts)))
    ctypes.memmove(base + off, array, len(array))
    found = notification_listener.read_arguments(os.getpid(), base + off)
    assert found == (tuple(b"w%d" % n for n in range(600)), True)


def test_number_of_read_arguments_is_bounded():
    long = ctypes.create_string_buffer(b"x" * 1000)
    found = notification_listener.read_arguments(
        os.getpid(), ctypes.addressof(array := _array(*[ctypes.addressof(long)] * 100))
    )
    assert not found.is_complete
    assert 60 <= len(found.values) <= 66
    short = ctypes.create_string_buffer(b"")
    found = notification_listener.read_arguments(
        os.getpid(), ctypes.addressof(array := _array(*[ctypes.addressof(short)] * 5000))
    )
    assert (len(found.values), found.is_complete) == (notification_listener.MAX_ARGUMENTS, False)
    del array
    assert notification_listener.read_arguments(os.getpid(), 0) == ((), True)


PART = st.binary(max_size=20).map(lambda part: part.replace(b"\0", b""))
PARTS = st.lists(PART, max_size=4).map(tuple)
USER = st.integers(-1, 1 << 31)
WHO = st.builds(messages.ProcessInfo, st.integers(1, 1 << 22), USER, PART, PARTS, USER)
TOLD = st.one_of(
    st.builds(messages.StartRequest, st.integers(1, 1 << 40), WHO, PARTS, PARTS, st.booleans(), st.booleans()),
    st.builds(messages.SyscallDenied, PART, WHO, st.integers(0, 1 << 40)),
    st.builds(messages.SyscallCounts, st.lists(st.tuples(PART, st.integers(0, 1 << 40)), max_size=4).map(tuple)),
    st.builds(messages.StartDecision, st.integers(0, 1 << 40), st.booleans(), PART),
    st.builds(messages.SupervisorFailed, PART),
    st.just(messages.HoldsPrograms()),
    st.just(messages.NewWorker()),
    st.builds(messages.StartGone, st.integers(0, 1 << 40)),
    st.builds(messages.CheckStart, st.integers(0, 1 << 40)),
    st.builds(messages.CheckResult, st.integers(0, 1 << 40), PART),
    st.builds(messages.StartPending, st.integers(0, 1 << 40), st.integers(0, 1 << 20).map(float)),
)


@settings(max_examples=150)
@given(TOLD)
def test_packet_round_trips(told):
    assert messages.unpack(messages.pack(told)) == told


@settings(max_examples=150)
@given(st.one_of(st.binary(max_size=60), TOLD.map(messages.pack).map(lambda packet: packet[:-3])))
def test_arbitrary_bytes_are_a_packet_or_a_value_error(packet):
    with contextlib.suppress(ValueError):
        messages.unpack(packet)
