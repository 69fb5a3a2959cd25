"""Supervises a running task: passes signals on, and reacts to its end, its worker's death and changed rule files."""

import contextlib
import selectors
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from enforcer.limits.limit_monitor import LimitMonitor
from enforcer.network.constants import LOGGED
from enforcer.policy.run_request import RunRequest
from enforcer.run.launch import Sandbox
from enforcer.system.notices import print_notice
from enforcer.system.processes import read_signal
from enforcer.worker.worker import Worker
from proxy.worker.messages import SandboxNews

if TYPE_CHECKING:
    from enforcer.approvals.registration import Registration
    from enforcer.journal.keeper import Keeper  # cryptography comes with it: while the sandbox is being made
    from enforcer.journal.signing import AnomalyCountReader
    from enforcer.policy.reload import Reloader
    from enforcer.run.environment import Caller
    from enforcer.sandbox.stdio import Stdio

_FIRST_LOOK = 0.25  # seconds: shorter runs don't watch their rule files
_COUNTERS_EVERY = 5.0  # seconds between two readings of the kernel's counters
_LONGEST = 1000  # characters of a reported error


class TaskEnd(NamedTuple):
    """The task's wait status, or why it never started; whether its gate died before; and denied packets by kind."""

    status: int | None
    failed: str
    lost_gate: bool
    counters: Mapping[str, int]


@dataclass(slots=True, eq=False)
class Supervision:
    """Supervision of one task: its sandbox, its gate and its limits."""

    sandbox: Sandbox
    gate: Worker
    monitor: LimitMonitor
    keeper: "Keeper | None"  # None: another process signs the journal
    began: float  # when the run began (time.monotonic())
    registration: "Registration | None" = None  # registration for approvals; None: no rule needs one
    make_registration: "Callable[[], Registration] | None" = None  # makes one, when changed rules need approvals
    anomalies: "AnomalyCountReader | None" = None  # anomalies that the journal's keeper found
    lost_gate: bool = False
    counters: dict[str, int] = field(default_factory=dict)
    last_count: float = field(default_factory=time.monotonic)
    selector: selectors.BaseSelector | None = None

    def start(self, selector: selectors.BaseSelector) -> None:
        """Register everything with the loop. The task runs by now."""
        self.selector = selector
        self.gate.send(SandboxNews(started=time.monotonic() - self.began))
        for source in (self.sandbox.init.channel, self.gate.control):
            selector.register(source, selectors.EVENT_READ)
        if self.sandbox.supervisor is not None:
            self.sandbox.supervisor.watch(selector)
        self.gate.watch(selector, self._kill)
        self.gate.turn()
        if self.registration is not None:
            self.registration.watch(selector)

    def wait(self) -> float:
        """Return the seconds until `turn` has something to do."""
        due = min(max(0.0, self.last_count + _COUNTERS_EVERY - time.monotonic()), self.monitor.wait(), self.gate.wait())
        return due if self.registration is None else min(due, self.registration.wait())

    def turn(self) -> TaskEnd | None:
        """Do what is due; returns the task's end if it has to end now, and the caller then kills the rest."""
        if "declined" in self.gate.received_fields:  # the service has declined before serving the task
            return self._ended(None, str(self.gate.received_fields.get("failed"))[:_LONGEST])
        if time.monotonic() - self.last_count >= _COUNTERS_EVERY:
            self.last_count = time.monotonic()
            self.read_counters()
            self.monitor.report_counts()
            if self.keeper is not None:
                self.keeper.turn()
            if self.anomalies is not None and (news := self.anomalies.news()):
                self.gate.send(news)
        self.gate.turn()
        if self.registration is not None:
            self.registration.turn(self.gate)
        return self._ended(None, "") if self.monitor.turn(partial(self.sandbox.signal, group=True)) else None

    def register_for_approvals(self) -> None:
        """Register with the approvals server: from now on the rules in force need approvals."""
        if self.registration is None and self.make_registration is not None and self.selector is not None:
            self.registration = self.make_registration()
            self.registration.later()
            self.registration.watch(self.selector)

    def receive_from_gate(self) -> bool:
        """Read a message of the worker; False once it is gone."""
        if self.gate.receive() and "failed" not in self.gate.received_fields:
            if self.gate.received_fields.pop("asks", None):
                self.register_for_approvals()
            if self.gate.received_fields.pop("kill", None):
                self._kill()
            return True
        if "declined" in self.gate.received_fields:
            return False  # `turn` ends the task
        self.lost_gate = True
        why = (
            f" ({str(self.gate.received_fields['failed'])[:_LONGEST]})" if "failed" in self.gate.received_fields else ""
        )
        print_notice(f"the gate ended unexpectedly{why}; the task has no network from now on")
        return False

    def receive_from_init(self) -> TaskEnd | None:
        """Read a message of the sandbox's init; returns the task's end, once it has ended."""
        try:
            task_end = self.sandbox.init.turn()
        except OSError:
            return self._ended(None, "its init process ended unexpectedly")
        if task_end is None:
            return None
        self.read_counters()
        self.sandbox.settle()
        return self._ended(task_end.status, "")

    def read_counters(self) -> None:
        """Read the kernel's counters, and which limits the task is at."""
        counters, limits_reached = self.sandbox.probe()
        # `LOGGED` is no kind of packet.
        counters = {kind: count for kind, count in counters.items() if kind != LOGGED}
        if counters != self.counters:  # mostly nothing happened
            self.counters = counters
            if self.sandbox.init.ended is None:  # otherwise the last message has them
                self.gate.send(SandboxNews(refused=counters))
        self.monitor.report_probe(limits_reached)

    def _kill(self) -> None:
        self.sandbox.signal(signal.SIGKILL, group=False)

    def _ended(self, status: int | None, failed: str) -> TaskEnd:
        return TaskEnd(status, failed, self.lost_gate, self.counters)


def supervise(
    watch: Supervision, signal_fd: int, io: "Stdio", request: RunRequest, caller: "Caller | None" = None
) -> TaskEnd:
    """Block until the task has ended. `caller`: the client that sent the run, if any."""
    sandbox, gate = watch.sandbox, watch.gate
    signals = _Signals(sandbox, io, signal_fd, caller)
    with selectors.DefaultSelector() as selector:
        watch.start(selector)
        for source in signals.sources:
            selector.register(source, selectors.EVENT_READ)
        with contextlib.closing(RuleReload(request, watch, selector)) as rules:
            while True:
                ready = selector.select(min(watch.wait(), rules.wait()))
                # The gate's end first: the task may have ended because of it.
                for key, _ in sorted(ready, key=lambda each: each[0].fileobj is not gate.control):
                    if key.data is not None:
                        rules.handle_ready(key.data)
                    elif key.fileobj in signals.sources:
                        signals.act(key.fileobj, rules, selector)
                    elif key.fileobj is gate.control:
                        if not watch.receive_from_gate():
                            selector.unregister(gate.control)
                    elif (ended := watch.receive_from_init()) is not None:
                        return ended
                if (ended := watch.turn()) is not None:
                    return ended
                rules.turn()


class RuleReload:
    """Reloading of the task's rule files, in the loop: whatever fails here, the task goes on."""

    def __init__(self, request: RunRequest, watch: Supervision, selector: selectors.BaseSelector) -> None:
        self._request, self._watch, self._selector = request, watch, selector
        self._first = time.monotonic() + _FIRST_LOOK
        self._reloader: Reloader | None = None
        self._is_closed = watch.gate.watches_rules  # the service reloads them

    def wait(self) -> float:
        """Return the seconds until `turn` has something to do."""
        if self._is_closed:
            return _COUNTERS_EVERY
        return max(0.0, self._first - time.monotonic()) if self._reloader is None else self._reloader.wait()

    def handle_ready(self, callback: Callable[[], None]) -> None:
        """Handle a ready descriptor; a reloader's error can't end the task."""
        if self._reloader is None or getattr(callback, "__self__", None) is not self._reloader:
            callback()
        elif not self._is_closed:
            self._log_errors(callback)

    def turn(self) -> None:
        """Do what is due."""
        if not self._is_closed and time.monotonic() >= self._first:
            self._log_errors(lambda: self._get_reloader().turn())

    def now(self) -> None:
        """Read the files again."""
        if not self._is_closed:
            self._log_errors(lambda: self._get_reloader().now())
        elif self._watch.gate.watches_rules:
            self._watch.gate.send({"reread": True})

    def close(self) -> None:
        """Stop reloading."""
        self._is_closed = True
        if self._reloader is not None:
            self._reloader.close()

    def _get_reloader(self) -> "Reloader":
        if self._reloader is None:
            from enforcer.policy.reload import Reloader  # most runs end before this is needed

            self._reloader = Reloader(
                self._request, _ReloadMessages(self._watch), self._watch.sandbox.mask, self._selector
            )
        return self._reloader

    def _log_errors(self, callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception as error:  # noqa: BLE001 - the rules in force stay
            problem = (
                f"reloading of rule files has failed, so the rules in force stay: {type(error).__name__}: {error}"[
                    :_LONGEST
                ]
            )
            self._watch.gate.send(SandboxNews(rules_rejected=[problem]))
            print_notice(problem)
            with contextlib.suppress(Exception):
                self.close()


class _ReloadMessages:
    """Passes messages of the reloader to the gate, and registers for approvals when the rules need them."""

    def __init__(self, watch: Supervision) -> None:
        self._watch = watch

    def send(self, fields: Mapping[str, object], descriptors: Sequence[int] = ()) -> None:
        """Pass a message on."""
        if fields.get("asks"):
            self._watch.register_for_approvals()
        self._watch.gate.send(fields, descriptors)


class _Signals:
    """Signals to the runner: most are passed on to the task."""

    def __init__(self, sandbox: Sandbox, io: "Stdio", descriptor: int, caller: "Caller | None") -> None:
        self.sources: tuple[int | Caller, ...] = (descriptor,) if caller is None else (descriptor, caller)
        self._descriptor = descriptor
        self._caller = caller
        self._sandbox = sandbox
        self._terminal = io.terminal
        self._terminals = io.terminals

    def act(self, source: object, rules: RuleReload, selector: selectors.BaseSelector) -> None:
        """Pass one signal on, or act on it."""
        if self._caller is not None and source is self._caller:
            arrived = self._caller.read()
            if arrived.number == signal.SIGKILL:  # the caller is gone
                selector.unregister(self._caller)
        else:
            arrived = read_signal(self._descriptor)
        # SIGHUP of a shell whose terminal was closed means the end; any other reloads the rules.
        hung_up = arrived.number == signal.SIGHUP and self._terminals.have_gone()
        if arrived.number == signal.SIGWINCH:
            if self._terminal is not None:
                self._terminal.resize()
        elif arrived.number == signal.SIGHUP and not (hung_up or arrived.from_terminal):
            rules.now()
        else:
            self._sandbox.signal(arrived.number, group=hung_up or arrived.from_terminal)
