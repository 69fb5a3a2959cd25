"""Approval of programs: the supervisor holds a program at its start until approvers have answered.

Home of invariant 2 for command rules that ask: without an answer the program doesn't start.
"""

import os
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.supervisor_channel import messages
from proxy.telemetry.events import CLIENT_LEFT
from rules.verdicts import Outcome, Reason, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.approvals.client import Ticket
    from proxy.approvals.leases import Grant
    from proxy.approvals.protocol import Answer
    from proxy.sandbox.sandbox_state import SandboxState
    from proxy.telemetry.events import Process
    from rules.decision import Decision

_CALLED: Final = "argv0="


class ProgramStart(NamedTuple):
    """Program that is about to start: the supervisor's request, its arguments and its process."""

    asked: "messages.StartRequest"
    argv: tuple[str, ...]
    process: "Process"

    @property
    def shown(self) -> tuple[str, ...]:
        """The file, argv[0] and arguments that approvers see; argv[0] is left out where it is the file's name.

        No two different programs are shown alike.
        """
        _, found, *called = map(os.fsdecode, self.asked.names)
        name, words = "".join(called), self.argv[1:]
        if name.rpartition("/")[2] == found.rpartition("/")[2] and not "".join(words[:1]).startswith(_CALLED):
            return found, *words
        return found, _CALLED + name, *words


class _Waiting:
    """One program with a pending approval. `asked` counts the approval requests for it."""

    __slots__ = ("approval", "asked", "decision", "grants", "starting", "ticket")

    def __init__(self, starting: ProgramStart, decision: "Decision") -> None:
        self.starting = starting
        self.decision = decision
        self.asked = 0
        self.approval = ""
        self.grants: tuple[Grant, ...] = ()
        self.ticket: Ticket | None = None


class ProgramApprovals:
    """Pending program approvals of one sandbox. For one thread."""

    def __init__(
        self,
        sandbox: "SandboxState",
        decide: "Callable[[messages.StartRequest, frozenset[str]], Decision]",
        say: "Callable[[messages.FromWorker], None]",
        conclude: "Callable[[ProgramStart, Decision, str, str], None]",
    ) -> None:
        """Take the callbacks; none may raise.

        `decide` takes the digests of granted rules. `say` sends to the supervisor. `conclude` takes the final decision,
        a detail and the id of the approval.
        """
        self._sandbox = sandbox
        self._decide = decide
        self._say = say
        self._conclude = conclude
        self._waiting: dict[int, _Waiting] = {}

    def ask(self, starting: ProgramStart, decision: "Decision") -> bool:
        """Submit an approval request, as `decision` says; False: there is no approvals server."""
        if self._sandbox.approvals is None:
            return False
        waiting = self._waiting[starting.asked.number] = _Waiting(starting, decision)
        self._put(waiting)
        return True

    def review(self) -> None:
        """Decide again on pending programs under other rules. A request that stays the same remains pending."""
        for number, waiting in tuple(self._waiting.items()):
            if waiting.ticket is None:
                continue  # it is about to be decided
            granted = frozenset(grant.digest for grant in waiting.grants)
            if self._decide(waiting.starting.asked, granted).approval != waiting.decision.approval:
                _drop(waiting)
                waiting.ticket = None
                self._say(messages.CheckStart(number))  # decide only if it still waits, and is unchanged

    def gone(self, number: int) -> None:
        """End a request: the program no longer waits."""
        waiting = self._waiting.pop(number, None)
        if waiting is not None:
            _drop(waiting)
            self._refuse(waiting, Reason.APPROVAL_TIMEOUT, CLIENT_LEFT)

    def close(self) -> None:
        """Drop all requests; programs that wait get no answer. Idempotent."""
        for waiting in self._waiting.values():
            _drop(waiting)
        self._waiting.clear()

    def _put(self, waiting: _Waiting) -> None:
        from proxy.approvals.approval_request import describe_program
        from proxy.approvals.client import SLACK  # many rules ask nobody

        asking, starting = self._sandbox.approvals, waiting.starting
        assert asking is not None
        waiting.asked += 1
        hold = max((asks.terms.hold for asks in waiting.decision.approval), default=0.0)
        # The answer comes within this time; without one the supervisor denies the start
        self._say(messages.StartPending(starting.asked.number, hold + 2 * SLACK))
        question = describe_program(
            self._sandbox.sources, starting.shown, waiting.decision, starting.process, whole=starting.asked.whole
        )
        waiting.ticket = asking.submit(question, lambda answer: self._answered(waiting, answer))

    def _answered(self, waiting: _Waiting, answer: "Answer") -> None:
        """Handle the approver's answer; called from the loop."""
        from proxy.approvals.protocol import Result, reason_of

        ticket, waiting.ticket = waiting.ticket, None
        number = waiting.starting.asked.number
        if self._waiting.get(number) is not waiting:
            return
        waiting.approval = answer.approval or (ticket.approval if ticket is not None else "")
        asking = self._sandbox.approvals
        if answer.result is not Result.GRANTED or asking is None:
            del self._waiting[number]
            self._refuse(waiting, reason_of(answer), answer.why)
            return
        waiting.grants += asking.leases.grants(answer.approval, answer.grants)
        self._say(messages.CheckStart(number))  # the grant is only for a program that still waits, unchanged

    def still(self, number: int, changed: str) -> None:
        """Start the program if nothing else needs approval; `changed` says how it differs from what was approved."""
        from proxy.approvals.protocol import ROUNDS

        waiting, asking = self._waiting.get(number), self._sandbox.approvals
        if waiting is None or waiting.ticket is not None or asking is None:
            return  # the supervisor denies it when its time is over
        if changed:
            del self._waiting[number]
            self._refuse(waiting, Reason.EXPIRED, changed.removeprefix("exeat: "))
            return
        granted = frozenset(grant.digest for grant in waiting.grants)
        waiting.decision = decision = self._decide(waiting.starting.asked, granted)
        if decision.needs_approval and waiting.asked < ROUNDS:
            self._put(waiting)
            return
        del self._waiting[number]
        lease = asking.leases.enter(waiting.grants, lambda _: None)
        if lease is None:
            self._refuse(waiting, Reason.EXPIRED, "its approval has ended")
            return
        lease.end()  # it is used by having started
        self._conclude(waiting.starting, decision, "", waiting.approval)

    def _refuse(self, waiting: _Waiting, reason: Reason, detail: str) -> None:
        refused = waiting.decision._replace(verdict=Verdict.DENY, outcome=Outcome.BLOCKED, reason=reason, approval=())
        self._conclude(waiting.starting, refused, detail, waiting.approval)


def _drop(waiting: _Waiting) -> None:
    if waiting.ticket is not None:
        waiting.approval = waiting.approval or waiting.ticket.approval
        waiting.ticket.drop()
