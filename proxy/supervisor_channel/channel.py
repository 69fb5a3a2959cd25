"""The worker's end: what a task's watcher asks is decided by the rules in force and told before it is answered.

Home of invariant 2 for commands: whatever goes wrong here, the program does not start.
"""

import os
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.event_loop.poller import IN
from proxy.supervisor_channel import messages
from proxy.supervisor_channel.attribution import process_of
from proxy.supervisor_channel.program_approval import ProgramApprovals, Starting
from proxy.telemetry.events import Where
from proxy.telemetry.journal.writer import JournalFailed
from proxy.telemetry.visible import visible
from proxy.wire import message
from rules.decision import Decision
from rules.matching.commands import Run, decide_run
from rules.verdicts import Reason

if TYPE_CHECKING:
    import socket

    from proxy.event_loop.poller import Poller
    from proxy.supervisor_channel.attribution import ProcessAttribution
    from proxy.telemetry.journal.recorder import Recorder

_A_TURN: Final = 16  # packets before others get their turn
_UNREADABLE: Final = "its words can't be read, so nobody knows which command it is: see `exeat doctor`"
_LONGEST: Final = 400  # characters that a caller is told
_SEARCH: Final = 1.0  # seconds in which one process that is refused tries the next directory of its PATH
_MOST_REFUSED: Final = 64  # processes whose last refusal is remembered
_ANSWERED: Final = frozenset({
    Reason.APPROVAL_DENIED, Reason.APPROVAL_TIMEOUT, Reason.APPROVAL_FLOOD, Reason.APPROVAL_UNAVAILABLE,
})  # fmt: skip


class _Refused(NamedTuple):
    """What a process was refused, and when."""

    what: tuple[object, ...]
    reason: Reason
    rules: tuple[str, ...]
    at: float  # of the monotonic clock


class SupervisorChannel:
    """Hears one sandbox's watcher. For one thread."""

    def __init__(
        self,
        channel: "socket.socket",
        recorder: "Recorder",
        poller: "Poller",
        attributing: "ProcessAttribution | None" = None,
    ) -> None:
        """Hear what arrives on `channel`; what it answers to `attributing` is handed on."""
        self.attributing = attributing
        self._channel = channel
        self._channel.setblocking(False)
        self._recorder = recorder
        self._poller = poller
        self._refused: dict[int, _Refused] = {}  # what each process was refused last
        self._finishing = False  # nobody is asked any more
        self._approvals: ProgramApprovals | None = None  # once people are asked

    def start(self) -> None:
        """Begin to hear. What people were asked about by another worker gets no answer any more."""
        self._poller.watch(self._channel.fileno(), IN, self)
        self._say(messages.Anew())

    def ready(self, _events: int) -> None:
        """Take what has arrived, a turn's worth of it."""
        for _ in range(_A_TURN):
            try:
                packet, _ = message.packet(self._channel, messages.LONGEST)
            except BlockingIOError:
                return
            if not packet:
                self._poller.forget(self._channel.fileno())  # the watcher has ended, and its task with it
                return
            self._take(packet)

    def review(self) -> None:
        """Decide again on programs that people are asked about: other rules are in force."""
        if self._approvals is not None:
            self._approvals.review()

    def failed(self, error: Exception) -> None:
        """Hear nothing any more: whoever asks gets no answer, and starts no program."""
        self._recorder.error(Where.WATCHER, f"the task's watcher is heard no more: {type(error).__name__}: {error}")
        self._stop()

    def finish(self) -> None:
        """Take all that was said until now, and hear no more. Idempotent."""
        if self._approvals is not None:
            self._approvals.close()
        self._finishing = True
        try:
            while self._channel.fileno() >= 0 and (packet := message.packet(self._channel, messages.LONGEST)[0]):
                self._take(packet)
        except (OSError, ValueError):
            pass
        self._stop()

    def _stop(self) -> None:
        if self._channel.fileno() >= 0:
            self._poller.forget(self._channel.fileno())
            self._channel.close()

    def _take(self, packet: bytes) -> None:
        told = messages.unpack(packet)
        match told:
            case messages.RunAsked():
                self._asked(told)
            case messages.Gone(number) if self._approvals is not None:
                self._approvals.gone(number)
            case messages.Still(number, changed) if self._approvals is not None:
                self._approvals.still(number, os.fsdecode(changed))
            case messages.CallRefused(call, who, more):
                self._recorder.call_refused(os.fsdecode(call), process_of(who), more)
            case messages.Counted(calls):
                for call, times in calls:
                    self._recorder.metrics.refused_call(os.fsdecode(call), times)
            case messages.Holds():
                self._recorder.tenant.holds_programs = True
            case messages.WhoseFound() if self.attributing is not None:
                self.attributing.answered(told)
            case messages.Broken(why):
                self._recorder.error(Where.WATCHER, f"the task's watcher refuses everything: {os.fsdecode(why)}")

    def _asked(self, asked: messages.RunAsked) -> None:
        self._recorder.tenant.holds_programs = True  # also where another worker was told so, and is no more
        decision = self._decide(asked)
        program = os.fsdecode(asked.names[0]) if asked.names else ""
        starting = Starting(asked, (program, *map(os.fsdecode, asked.words)), process_of(asked.who))
        if decision.asks and self._looks_on(asked):
            self._say(messages.Answer(asked.number, go=False))
            return
        if decision.asks and not self._finishing:
            if self._approvals is None:
                self._approvals = ProgramApprovals(self._recorder.tenant, self._decide, self._say, self._conclude)
            if self._approvals.ask(starting, decision):
                return
        self._conclude(starting, decision, "" if asked.readable else _UNREADABLE, "")

    def _conclude(self, starting: Starting, decision: Decision, detail: str, approval: str) -> None:
        """Tell what was decided, and answer."""
        asked, argv = starting.asked, starting.argv
        go, says = decision.passes, _refusal(argv, decision, approval, detail)
        if not go and self._searches(asked, decision):
            says = b""
        elif decision.reason is not Reason.NO_COMMAND:
            try:
                self._recorder.command_decided(decision, argv, starting.process, detail, approval)
            except JournalFailed:
                go, says = False, _refusal(argv, decision._replace(reason=Reason.JOURNAL_FAILED, rules=(), why=""))
        self._say(messages.Answer(asked.number, go, b"" if go else says))

    def _say(self, said: "messages.Said") -> None:
        """Say something to the watcher; where that can't be, no program starts."""
        if self._channel.fileno() < 0:
            return
        try:
            self._channel.send(messages.pack(said))
        except OSError as error:
            if isinstance(said, messages.Anew) and isinstance(error, ConnectionError):
                return  # the task was over before we began: nobody is left who could ask
            self._recorder.error(Where.WATCHER, f"the task's watcher takes no answer: {error.strerror}")

    def _searches(self, asked: messages.RunAsked, decision: Decision) -> bool:
        """Whether a process looks on for what it was refused: shells and libraries do, one directory after another.

        That is one attempt, told once. Only for what is refused again, by the same rules.
        """
        before, now = self._refused.pop(asked.who.pid, None), time.monotonic()
        while len(self._refused) >= _MOST_REFUSED:
            self._refused.pop(next(iter(self._refused)))
        refused = _Refused(_what(asked), decision.reason, decision.rules, now)
        self._refused[asked.who.pid] = refused
        return before is not None and before[:3] == refused[:3] and now - before.at < _SEARCH

    def _looks_on(self, asked: messages.RunAsked) -> bool:
        """Whether a process looks on for what people were asked about just now, and it was not let start."""
        before = self._refused.get(asked.who.pid)
        if before is None or before.what != _what(asked) or time.monotonic() - before.at >= _SEARCH:
            return False
        return before.reason in _ANSWERED

    def _decide(self, asked: messages.RunAsked, granted: frozenset[str] = frozenset()) -> Decision:
        tenant = self._recorder.tenant
        if not asked.readable:
            return Decision(revision=tenant.policy.revision)  # gate_error
        names, words = tuple(map(os.fsdecode, asked.names)), tuple(map(os.fsdecode, asked.words))
        run = Run(names, words, asked.whole)
        return decide_run(tenant.policy, run, tenant.task.name, tenant.task.labels, granted)


def _what(asked: messages.RunAsked) -> tuple[object, ...]:
    """Say what is looked for, whatever directory it is in."""
    return asked.names[0].rpartition(b"/")[2] if asked.names else b"", asked.words, asked.whole


def _refusal(argv: tuple[str, ...], decision: Decision, approval: str = "", detail: str = "") -> bytes:
    """Return the line that whoever wanted to start it reads; `detail` is what people said, or what went wrong."""
    shown = visible(" ".join((argv[0].rpartition("/")[2], *argv[1:])))
    if len(shown) > _LONGEST // 2:
        shown = shown[: _LONGEST // 2] + "…"
    by = f" by {decision.rules[0]}" if decision.rules else ""
    asked = f", approval {approval}" if approval else ""
    reason = "" if decision.reason is Reason.RULE else f" ({decision.reason}{asked})"
    why = "".join(f": {visible(text)}" for text in dict.fromkeys((detail, decision.why)) if text)
    line = f"exeat: {shown}: not allowed{by}{reason}{why}"
    return line[:_LONGEST].encode("utf-8", "backslashreplace")
