"""The worker's end: what a task's watcher asks is decided by the rules in force and told before it is answered.

Home of invariant 2 for commands: whatever goes wrong here, the program does not start.
"""

import os
import time
from typing import TYPE_CHECKING, Final

from proxy.poller import IN
from proxy.telemetry.events import Where
from proxy.telemetry.journal.writing import JournalFailed
from proxy.telemetry.visible import visible
from proxy.watched import wire
from proxy.watched.attributing import process_of
from rules.commands import Run, decide_run
from rules.decision import Decision
from rules.verdicts import Reason

if TYPE_CHECKING:
    import socket

    from proxy.poller import Poller
    from proxy.telemetry.recorder import Recorder
    from proxy.watched.attributing import Attributing

_A_TURN: Final = 16  # packets before others get their turn
_UNREADABLE: Final = "its words can't be read, so nobody knows which command it is: see `exeat doctor`"
_LONGEST: Final = 400  # characters that a caller is told
_SEARCH: Final = 1.0  # seconds in which one process that is refused tries the next directory of its PATH


class Hearing:
    """Hears one sandbox's watcher. For one thread."""

    def __init__(
        self,
        channel: "socket.socket",
        recorder: "Recorder",
        poller: "Poller",
        attributing: "Attributing | None" = None,
    ) -> None:
        """Hear what arrives on `channel`; what it answers to `attributing` is handed on."""
        self.attributing = attributing
        self._channel = channel
        self._channel.setblocking(False)
        self._recorder = recorder
        self._poller = poller
        self._refused: tuple[object, ...] = ()  # what was refused last, and when
        self._at = 0.0

    def start(self) -> None:
        """Begin to hear."""
        self._poller.watch(self._channel.fileno(), IN, self)

    def ready(self, _events: int) -> None:
        """Take what has arrived, a turn's worth of it."""
        for _ in range(_A_TURN):
            try:
                packet = self._channel.recv(wire.LONGEST)
            except BlockingIOError:
                return
            if not packet:
                self._poller.forget(self._channel.fileno())  # the watcher has ended, and its task with it
                return
            self._take(packet)

    def failed(self, error: Exception) -> None:
        """Hear nothing any more: whoever asks gets no answer, and starts no program."""
        self._recorder.error(Where.WATCHER, f"the task's watcher is heard no more: {type(error).__name__}: {error}")
        self._stop()

    def finish(self) -> None:
        """Take all that was said until now, and hear no more. Idempotent."""
        try:
            while self._channel.fileno() >= 0 and (packet := self._channel.recv(wire.LONGEST)):
                self._take(packet)
        except (OSError, ValueError):
            pass
        self._stop()

    def _stop(self) -> None:
        if self._channel.fileno() >= 0:
            self._poller.forget(self._channel.fileno())
            self._channel.close()

    def _take(self, packet: bytes) -> None:
        told = wire.unpack(packet)
        match told:
            case wire.RunAsked():
                self._answer(told)
            case wire.CallRefused(call, who, more):
                self._recorder.call_refused(os.fsdecode(call), process_of(who), more)
            case wire.Counted(calls):
                for call, times in calls:
                    self._recorder.metrics.refused_call(os.fsdecode(call), times)
            case wire.Holds():
                self._recorder.tenant.holds_programs = True
            case wire.WhoseFound() if self.attributing is not None:
                self.attributing.answered(told)
            case wire.Broken(why):
                self._recorder.error(Where.WATCHER, f"the task's watcher refuses everything: {os.fsdecode(why)}")

    def _answer(self, asked: wire.RunAsked) -> None:
        self._recorder.tenant.holds_programs = True  # also where another worker was told so, and is no more
        decision = self._decide(asked)
        program = os.fsdecode(asked.names[0]) if asked.names else ""
        argv = (program, *map(os.fsdecode, asked.words))
        go, says = decision.passes, _refusal(argv, decision)
        if not go and self._searches(asked, decision):
            says = b""
        elif decision.reason is not Reason.NO_COMMAND:
            detail = "" if asked.readable else _UNREADABLE
            try:
                self._recorder.command_decided(decision, argv, process_of(asked.who), detail)
            except JournalFailed:
                go, says = False, _refusal(argv, decision._replace(reason=Reason.JOURNAL_FAILED, rules=(), why=""))
        answer = wire.Answer(asked.number, go, b"" if go else says)
        self._channel.send(wire.pack(answer))

    def _searches(self, asked: wire.RunAsked, decision: Decision) -> bool:
        """Whether a process looks on for what it was refused: shells and libraries do, one directory after another.

        That is one attempt, told once. Only for what is refused again, by the same rules.
        """
        name = asked.names[0].rpartition(b"/")[2] if asked.names else b""
        refused = (asked.who.pid, name, asked.words, asked.whole, decision.reason, decision.rules)
        now = time.monotonic()
        again = refused == self._refused and now - self._at < _SEARCH
        self._refused, self._at = refused, now
        return again

    def _decide(self, asked: wire.RunAsked) -> Decision:
        tenant = self._recorder.tenant
        if not asked.readable:
            return Decision(revision=tenant.policy.revision)  # gate_error
        names, words = tuple(map(os.fsdecode, asked.names)), tuple(map(os.fsdecode, asked.words))
        return decide_run(tenant.policy, Run(names, words, asked.whole), tenant.task.name, tenant.task.labels)


def _refusal(argv: tuple[str, ...], decision: Decision) -> bytes:
    """Return the line that whoever wanted to start it reads."""
    shown = visible(" ".join((argv[0].rpartition("/")[2], *argv[1:])))
    if len(shown) > _LONGEST // 2:
        shown = shown[: _LONGEST // 2] + "…"
    by = f" by {decision.rules[0]}" if decision.rules else ""
    reason = "" if decision.reason is Reason.RULE else f" ({decision.reason})"
    why = f": {visible(decision.why)}" if decision.why else ""
    line = f"exeat: {shown}: not allowed{by}{reason}{why}"
    return line[:_LONGEST].encode("utf-8", "backslashreplace")
