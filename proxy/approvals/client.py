"""Approvals client of a worker: submits requests of one sandbox through its socket pair, delivers each answer once.

Home of invariant 2 for approvals: each request gets exactly one answer, and any trouble is `unavailable`. Nothing here
waits: what the socket doesn't take at once is kept, up to a bound.

A worker that replaces another finds that one's answers still in the socket. So its numbers begin at a random place, and
the task's state counts only after the answer to a first look of its own. Another registry comes with another channel
(`renew`).
"""

import asyncio
import os
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from proxy.approvals import protocol
from proxy.approvals.approval_request import MalformedMessageError
from proxy.approvals.leases import Leases
from proxy.approvals.protocol import Answer, Result
from proxy.event_loop.poller import IN, OUT
from proxy.event_loop.rate_limiter import RateLimiter
from proxy.telemetry.events import Answer as Said
from proxy.telemetry.events import Component
from proxy.telemetry.prometheus.metrics import ApprovalWaits
from proxy.wire import message
from rules.verdicts import Verdict

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping, Sequence

    from proxy.approvals.approval_request import ApprovalRequest, Message, Source
    from proxy.approvals.protocol import RequestState
    from proxy.event_loop.poller import Poller
    from rules.decision import Decision

SLACK: Final = 15.0  # seconds beyond the longest `hold` in which an answer has to be there
LOOK: Final = 5.0  # seconds for what the info API asks
MOST_OPEN: Final = 4096  # questions
ASKS: Final = (500, 200.0)  # at once, and a second: the registry is everybody's, and one task's flood its own trouble
MOST_UNSENT: Final = 256  # packets that the socket didn't take
_SAID: Final = {Result.GRANTED: Said.APPROVED, Result.DENIED: Said.REJECTED} | {
    result: Said(result.value) for result in (Result.TIMEOUT, Result.UNAVAILABLE, Result.FLOOD, Result.WIDE)
}
_A_TURN: Final = 16  # packets before others get their turn
_NOBODY: Final = "the approvals server is not running"
_FLOOD: Final = "too many approval requests at once"
_FIRST_BYTES: Final = 7  # of the number that counting begins with; numbers have 62 bits


@dataclass(slots=True, eq=False)
class Ticket:
    """One request without an answer. `holds`: an attempt waits for it; `approval`: its id once people are asked."""

    client: "ApprovalsClient"
    number: int
    timer: asyncio.TimerHandle
    then: "Callable[[Any], None]"  # takes an Answer where it holds, else a RequestState or None
    holds: bool
    approval: str = ""

    def drop(self) -> None:
        """Withdraw the request; its answer is discarded. Idempotent."""
        self.client.drop(self)

    def settle(self, answer: "Answer | RequestState | None") -> None:
        """Deliver the answer."""
        self.timer.cancel()
        self.then(answer)


class ApprovalsClient:
    """Approval requests of one sandbox. For one thread, within a running loop; the caller owns the channel."""

    def __init__(self, channel: "socket.socket", poller: "Poller", tell: "Callable[[Component, str], None]") -> None:
        """`tell` takes what went wrong."""
        self.on_task_state: Callable[[protocol.TaskTaint], None] = lambda _: (
            None
        )  # takes what the registry says of the task
        self.known_sources: Callable[[], Sequence[Source]] = (
            tuple  # gives what it has read, for a registry that missed it
        )
        self.leases = Leases(self._use)
        self.waiting = ApprovalWaits()  # counts what is held, and what came of it
        self._channel = channel
        self._channel.setblocking(False)
        self._poller = poller
        self._tell = tell
        self._room = RateLimiter(*ASKS)
        self._loop = asyncio.get_running_loop()
        self._open: dict[int, Ticket] = {}
        self._asked: dict[str, int] = {}  # of each approval: attempts that wait for it, or did and are not told yet
        self._next = int.from_bytes(os.urandom(_FIRST_BYTES))
        self._fence: int | None = None  # None: what is said now is meant for us
        self._unsent: deque[Mapping[str, object]] = deque()
        self._started = self._gone = False

    @property
    def is_there(self) -> bool:
        """Whether there is a registry that can be asked."""
        return self._started and not self._gone

    def start(self) -> None:
        """Send `Hello` and the known taint."""
        self._started = True
        self._poller.watch(self._channel.fileno(), IN, self)
        self._fence = self._number()
        self._send(protocol.StatusQuery(self._fence, ""))
        self._send(protocol.Hello())
        for source in self.known_sources():
            self._send(protocol.Tainted(source))

    def renew(self, channel: "socket.socket") -> "socket.socket":
        """Go on over another channel, and return the one before it: what was asked there has no answer any more."""
        self._lose("")
        before, self._channel = self._channel, channel
        channel.setblocking(False)
        self._gone = False
        self.leases.begin_anew()
        if self._started:
            self.start()
        return before

    def close(self) -> None:
        """Stop. Waiting callers get no answer, and end by themselves. Idempotent."""
        if self._started and not self._gone:
            self._poller.forget(self._channel.fileno())
        self._gone = True
        for number, one in self._open.items():
            one.timer.cancel()
            self.waiting.finish(number, None)
        self._open.clear()
        self._unsent.clear()

    def submit(self, question: "ApprovalRequest", then: "Callable[[Answer], None]") -> Ticket:
        """Submit an approval request; calls `then` with the answer, once, from the loop. `then` must not raise."""
        hold = max((rule.terms.hold for rule in question.rules), default=0.0)
        ticket = self._ticket(hold + SLACK, then, holds=True)
        if self.is_there and (len(self._open) > MOST_OPEN or not self._room.take()):
            self._loop.call_soon(self._settle, ticket.number, Answer(ticket.number, Result.FLOOD, why=_FLOOD))
            return ticket
        problem = "" if self.is_there else _NOBODY
        if not problem:
            try:
                if self._send(protocol.Submit(ticket.number, question.fitted())):
                    return ticket
                problem = "the approvals server does not take the request"
            except MalformedMessageError as malformed:
                problem = str(malformed)
        self._loop.call_soon(self._settle, ticket.number, _unavailable(ticket.number, problem))
        return ticket

    def request_access(
        self, question: "ApprovalRequest", decision: "Decision", why: str, seen: "Callable[[RequestState | None], None]"
    ) -> Ticket:
        """Send a pre-request; calls `seen` with its state, or None on failure."""

        def word(number: int) -> "Message":
            verdict = Verdict.ASK if question.rules else decision.verdict
            attempt = protocol.EvaluatedAttempt(question.fitted(), verdict, decision.reason, decision.rules)
            return protocol.PreRequest(number, attempt, why)

        return self._query(word, seen)

    def query_status(self, approval: str, seen: "Callable[[RequestState | None], None]") -> Ticket:
        """Query the state of one of this task's requests; calls `seen` with it, or None on failure."""
        return self._query(lambda number: protocol.StatusQuery(number, approval), seen)

    def tainted(self, source: "Source") -> bool:
        """Report an untrusted source; False: it could not be sent, so the task must not read from it."""
        return not self._gone and not self._unsent and self._send(protocol.Tainted(source), keep=False)

    def drop(self, ticket: Ticket) -> None:
        """Withdraw a request (`Ticket.drop`)."""
        if self._open.pop(ticket.number, None) is not None:
            ticket.timer.cancel()
            if ticket.holds:
                self._send(protocol.Withdraw(ticket.number))
                self.waiting.finish(ticket.number, None)

    def take_submitted(self, approval: str) -> bool:
        """Whether people were asked under this id about an attempt that is told now; say so of each once.

        One that an earlier answer settled at once, a grant or a rejection that stands, has its id and asked nobody.
        """
        count = self._asked.pop(approval, 0)
        if count > 1:
            self._asked[approval] = count - 1
        return count > 0

    # for the poller

    def ready(self, events: int) -> None:
        """Take what has arrived, a turn's worth of it, and send what is left."""
        if events & OUT:
            self._send_on()
        for _ in range(_A_TURN):
            if self._gone:
                return
            try:
                said, _ = message.receive(self._channel)
            except BlockingIOError:
                return
            except (OSError, ValueError) as error:
                self._lose(f"{type(error).__name__}: {error}")
                return
            if not said:
                self._lose("it has ended")
                return
            try:
                reply = protocol.read_registry_message(said)
            except MalformedMessageError as error:
                self._lose(str(error))
                return
            self._take(reply)

    def failed(self, error: Exception) -> None:
        """Ask nothing any more: a bug of ours."""
        self._lose(f"{type(error).__name__}: {error}")

    def _take(self, reply: protocol.RegistryMessage) -> None:
        match reply:
            case protocol.Answer(number):
                self._settle(number, reply)
            case protocol.Pending(number, approval, _):
                if (one := self._open.get(number)) is not None:
                    self._named(one, approval)
                    self.waiting.start(number)
            case protocol.GrantsEnded(grants):
                self.leases.over(grants)
            case protocol.StatusReply(number, state):
                if number == self._fence:
                    self._fence = None
                elif (one := self._open.get(number)) is not None and not one.holds:
                    del self._open[number]
                    one.settle(state)
            case protocol.TaskState(done) if self._fence is None:
                self.on_task_state(done)

    def _ticket(self, patience: float, then: "Callable[[Any], None]", *, holds: bool) -> Ticket:
        number = self._number()
        timer = self._loop.call_later(patience, self._late, number)
        ticket = self._open[number] = Ticket(self, number, timer, then, holds)
        return ticket

    def _query(self, word: "Callable[[int], Message]", seen: "Callable[[RequestState | None], None]") -> Ticket:
        ticket = self._ticket(LOOK, seen, holds=False)
        try:
            sent = self.is_there and self._send(word(ticket.number))
        except MalformedMessageError:
            sent = False
        if not sent:
            self._loop.call_soon(self._settle, ticket.number, _unavailable(ticket.number, ""))
        return ticket

    def _settle(self, number: int, answer: Answer) -> None:
        ticket = self._open.pop(number, None)
        if ticket is not None:  # else nobody waits for it any more, or ever did
            if ticket.approval and answer.approval:
                self._named(ticket, answer.approval)  # it may be that of another grant which is used beside it
            self._conclude(ticket, answer)

    def _named(self, ticket: Ticket, approval: str) -> None:
        """Take note of what people are asked for a ticket under which id, instead of the one before."""
        self.take_submitted(ticket.approval)
        ticket.approval = approval
        while len(self._asked) >= MOST_OPEN:
            self._asked.pop(next(iter(self._asked)))
        self._asked[approval] = self._asked.get(approval, 0) + 1

    def _conclude(self, ticket: Ticket, answer: Answer) -> None:
        if ticket.holds:
            self.waiting.finish_or_count(answer.number, _SAID[answer.result])
        ticket.settle(answer if ticket.holds else None)

    def _late(self, number: int) -> None:
        ticket = self._open.get(number)
        if ticket is None:
            return
        if ticket.holds:
            self._send(protocol.Withdraw(number))
        self._settle(number, _unavailable(number, "the approvals server does not answer"))

    def _use(self, grant: str, size: int) -> bool:
        return self._send(protocol.BytesUsed(grant, size))

    def _number(self) -> int:
        number, self._next = self._next, self._next + 1
        return number

    def _send(self, word: "Message", *, keep: bool = True) -> bool:
        """Send, or keep for later; False: neither could be done."""
        if self._gone or not self._started or len(self._unsent) >= MOST_UNSENT:
            return False
        said = word.packed()
        if self._unsent:
            self._unsent.append(said)
            return True
        try:
            message.send(self._channel, said)
        except BlockingIOError:
            if not keep:
                return False
            self._unsent.append(said)
            self._poller.change(self._channel.fileno(), IN | OUT)
        except OSError:
            self._loop.call_soon(self._lose, "it has ended")
            return False
        return True

    def _send_on(self) -> None:
        while self._unsent and not self._gone:
            try:
                message.send(self._channel, self._unsent[0])
            except BlockingIOError:
                return
            except OSError:
                self._lose("it has ended")
                return
            self._unsent.popleft()
        if not self._gone:
            self._poller.change(self._channel.fileno(), IN)

    def _lose(self, why: str) -> None:
        """Do without a registry: what waits is refused, and what passes by its leave, which nobody can end, is cut."""
        if self._gone:
            return
        self._gone = True
        self._poller.forget(self._channel.fileno())
        self._unsent.clear()
        if why:
            self._tell(Component.APPROVALS, f"approval requests are no longer possible: {why}")
        waiting, self._open = list(self._open.values()), {}
        for ticket in waiting:
            self._conclude(ticket, _unavailable(ticket.number, "the approvals server has stopped"))
        self.leases.lost()


def _unavailable(number: int, why: str) -> Answer:
    return Answer(number, Result.UNAVAILABLE, why=why)
