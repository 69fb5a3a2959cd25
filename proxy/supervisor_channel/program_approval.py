"""Approval of programs: the supervisor holds a program at its start until approvers have answered.

Implements invariant 2 for command rules that need approval: without an answer the program doesn't start.
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

_ARGV0: Final = "argv0="


class ProgramStart(NamedTuple):
    """Program that is about to start: the supervisor's request, its arguments and its process."""

    request: "messages.StartRequest"
    argv: tuple[str, ...]
    process: "Process"

    @property
    def shown(self) -> tuple[str, ...]:
        """The file, argv[0] and arguments that approvers see; argv[0] is left out where it is the file's name.

        No two different programs are shown alike.
        """
        _, found, *argv0 = map(os.fsdecode, self.request.names)
        name, words = "".join(argv0), self.argv[1:]
        if name.rpartition("/")[2] == found.rpartition("/")[2] and not "".join(words[:1]).startswith(_ARGV0):
            return found, *words
        return found, _ARGV0 + name, *words


class _PendingStart:
    """A program with a pending approval. `requests_sent` counts the approval requests for it."""

    __slots__ = ("approval", "decision", "grants", "requests_sent", "start", "ticket")

    def __init__(self, start: ProgramStart, decision: "Decision") -> None:
        self.start = start
        self.decision = decision
        self.requests_sent = 0
        self.approval = ""
        self.grants: tuple[Grant, ...] = ()
        self.ticket: Ticket | None = None


class ProgramApprovals:
    """Pending program approvals of one sandbox. For one thread."""

    def __init__(
        self,
        sandbox: "SandboxState",
        decide: "Callable[[messages.StartRequest, frozenset[str]], Decision]",
        send: "Callable[[messages.FromWorker], None]",
        record_and_send: "Callable[[ProgramStart, Decision, str, str], None]",
    ) -> None:
        """Take the callbacks; none may raise.

        `decide` takes the digests of granted rules. `send` sends to the supervisor. `record_and_send` takes the
        final decision, a detail and the id of the approval.
        """
        self._sandbox = sandbox
        self._decide = decide
        self._send = send
        self._record_and_send = record_and_send
        self._pending: dict[int, _PendingStart] = {}

    def submit(self, start: ProgramStart, decision: "Decision") -> bool:
        """Submit an approval request, as `decision` says; False: there is no approvals server."""
        if self._sandbox.approvals is None:
            return False
        pending = self._pending[start.request.number] = _PendingStart(start, decision)
        self._submit(pending)
        return True

    def review(self) -> None:
        """Decide again on pending programs under other rules. A request that stays the same remains pending."""
        for number, pending in tuple(self._pending.items()):
            if pending.ticket is None:
                continue  # its decision is in progress
            granted = frozenset(grant.digest for grant in pending.grants)
            if self._decide(pending.start.request, granted).approval != pending.decision.approval:
                _drop(pending)
                pending.ticket = None
                self._send(messages.CheckStart(number))  # decide only if it still waits, and is unchanged

    def end(self, number: int) -> None:
        """End a request: the program no longer waits."""
        pending = self._pending.pop(number, None)
        if pending is not None:
            _drop(pending)
            self._deny(pending, Reason.APPROVAL_TIMEOUT, CLIENT_LEFT)

    def close(self) -> None:
        """Drop all requests; programs that wait get no answer. Idempotent."""
        for pending in self._pending.values():
            _drop(pending)
        self._pending.clear()

    def _submit(self, pending: _PendingStart) -> None:
        from proxy.approvals.approval_request import describe_program
        from proxy.approvals.client import SLACK  # many rules need no approvals

        approvals_client, start = self._sandbox.approvals, pending.start
        assert approvals_client is not None
        pending.requests_sent += 1
        hold = max((asks.terms.hold for asks in pending.decision.approval), default=0.0)
        # The answer comes within this time; without one the supervisor denies the start
        self._send(messages.StartPending(start.request.number, hold + 2 * SLACK))
        approval_request = describe_program(
            self._sandbox.sources, start.shown, pending.decision, start.process, whole=start.request.whole
        )
        pending.ticket = approvals_client.submit(approval_request, lambda answer: self._handle_answer(pending, answer))

    def _handle_answer(self, pending: _PendingStart, answer: "Answer") -> None:
        """Handle the approver's answer; called from the loop."""
        from proxy.approvals.protocol import Result, reason_of

        ticket, pending.ticket = pending.ticket, None
        number = pending.start.request.number
        if self._pending.get(number) is not pending:
            return
        pending.approval = answer.approval or (ticket.approval if ticket is not None else "")
        approvals_client = self._sandbox.approvals
        if answer.result is not Result.GRANTED or approvals_client is None:
            del self._pending[number]
            self._deny(pending, reason_of(answer), answer.why)
            return
        pending.grants += approvals_client.leases.grants(answer.approval, answer.grants)
        self._send(messages.CheckStart(number))  # the grant is only for a program that still waits, unchanged

    def start_if_unchanged(self, number: int, changed: str) -> None:
        """Start the program if nothing else needs approval; `changed` says how it differs from what was approved."""
        from proxy.approvals.protocol import ROUNDS

        pending, approvals_client = self._pending.get(number), self._sandbox.approvals
        if pending is None or pending.ticket is not None or approvals_client is None:
            return  # the supervisor denies it after its time limit
        if changed:
            del self._pending[number]
            self._deny(pending, Reason.EXPIRED, changed.removeprefix("exeat: "))
            return
        granted = frozenset(grant.digest for grant in pending.grants)
        pending.decision = decision = self._decide(pending.start.request, granted)
        if decision.needs_approval and pending.requests_sent < ROUNDS:
            self._submit(pending)
            return
        del self._pending[number]
        lease = approvals_client.leases.enter(pending.grants, lambda _: None)
        if lease is None:
            self._deny(pending, Reason.EXPIRED, "its approval has ended")
            return
        lease.end()  # a grant for one start is used up now
        self._record_and_send(pending.start, decision, "", pending.approval)

    def _deny(self, pending: _PendingStart, reason: Reason, detail: str) -> None:
        denied = pending.decision._replace(verdict=Verdict.DENY, outcome=Outcome.BLOCKED, reason=reason, approval=())
        self._record_and_send(pending.start, denied, detail, pending.approval)


def _drop(pending: _PendingStart) -> None:
    if pending.ticket is not None:
        pending.approval = pending.approval or pending.ticket.approval
        pending.ticket.drop()
