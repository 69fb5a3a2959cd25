"""Watch a running task: pass signals on, notice its end, notice the death of its gate."""

import contextlib
import os
import selectors
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from enforcer.network.capture import LOGGED
from enforcer.sandbox.launch import Sandbox
from enforcer.sandbox.terminal import Terminal
from enforcer.signals import read_signal
from enforcer.worker import Worker
from proxy import message

_COUNTERS_EVERY = 5.0  # seconds between two readings of the kernel's refusal counters


@dataclass(frozen=True, slots=True)
class Ended:
    """How it went: the task's wait status, or why it never started; whether its gate died under it."""

    status: int | None
    failed: str
    lost_gate: bool
    counters: Mapping[str, int]


@dataclass(slots=True)
class _Watch:
    sandbox: Sandbox
    gate: Worker
    began: float
    lost_gate: bool = False
    counters: dict[str, int] = field(default_factory=dict)

    def hear_gate(self) -> bool:
        """Listen to the worker; False once there is none any more."""
        if self.gate.hear() and "failed" not in self.gate.said:
            return True
        self.lost_gate = True
        os.write(2, b"exeat: the gate stopped; the task has no network from here on\n")
        return False

    def hear_sandbox(self) -> Ended | None:
        """Listen to the sandbox's init; how it ended once it has."""
        said, _ = message.receive(self.sandbox.control)
        found = said.get("counters")
        if isinstance(found, dict):
            # How many of them were logged is no kind of packet.
            self.counters = {str(kind): int(count) for kind, count in found.items() if kind != LOGGED}
            self.gate.tell({"refused": self.counters})
        if said.get("started"):
            self.gate.tell({"started": time.monotonic() - self.began})
        if not said or "failed" in said:
            return self._ended(None, str(said.get("failed", "its first process ended unexpectedly")))
        status = said.get("ended")
        return self._ended(status, "") if isinstance(status, int) else None

    def _ended(self, status: int | None, failed: str) -> Ended:
        return Ended(status, failed, self.lost_gate, self.counters)


def supervise(sandbox: Sandbox, gate: Worker, signal_fd: int, terminal: Terminal | None, began: float) -> Ended:
    """Block until the task has ended. `began` is when the run was asked for (monotonic seconds)."""
    watch = _Watch(sandbox, gate, began)
    with selectors.DefaultSelector() as selector:
        for source in (sandbox.control, gate.control, signal_fd):
            selector.register(source, selectors.EVENT_READ)
        while True:
            ready = selector.select(_COUNTERS_EVERY)
            if not ready:
                _say(sandbox, {"counters": True})
            for key, _ in ready:
                if key.fileobj == signal_fd:
                    _pass_on(sandbox, signal_fd, terminal)
                elif key.fileobj is gate.control:
                    if not watch.hear_gate():
                        selector.unregister(gate.control)
                elif (ended := watch.hear_sandbox()) is not None:
                    return ended


def _pass_on(sandbox: Sandbox, signal_fd: int, terminal: Terminal | None) -> None:
    arrived = read_signal(signal_fd)
    if arrived.number == signal.SIGWINCH:
        if terminal is not None:
            terminal.resize()
        return
    _say(sandbox, {"signal": arrived.number, "group": arrived.from_terminal})


def _say(sandbox: Sandbox, what: Mapping[str, object]) -> None:
    """Tell init; one that is ending hears nothing, and its last words are read as ever."""
    with contextlib.suppress(OSError):
        message.send(sandbox.control, what)
