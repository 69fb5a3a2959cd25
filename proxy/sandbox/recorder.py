"""Records the events of one sandbox's task and counts them: one decision event for each attempt.

Home of invariant 6. The caller records a decision first and allows after: `decided` raises JournalWriteError when the
event could not be written, and the attempt is then blocked. Only under `on_journal_failure: continue` an event that the
disk doesn't take is counted, and the attempt passes; a used-up disk quota and a bug in encoding block even then.

Reports of what has already happened never raise; what they could not write is counted as dropped.
"""

import contextlib
import os
import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any

from proxy.telemetry.encoding import encode
from proxy.telemetry.events import (
    CLIENT_LEFT,
    DECISIONS,
    Agent,
    Approval,
    Component,
    Destination,
    Ending,
    Event,
    Fault,
    IdMaker,
    Instant,
    Kind,
    Origin,
    Seconds,
    Transferred,
)
from proxy.telemetry.journal.writer import DiskQuota, Journal, JournalWriteError
from proxy.telemetry.masking import masked
from proxy.telemetry.prometheus.metrics import Tally
from proxy.telemetry.summary import Summary
from rules.verdicts import OnJournalFailure, Outcome, Reason, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxy.sandbox.sandbox_state import SandboxState
    from proxy.telemetry.events import Dns, Git, Http, Process, StartedBy, Tls
    from proxy.telemetry.prometheus.metrics import Metrics
    from rules.attempt import Protocol
    from rules.decision import Decision
    from rules.values.addresses import Address

_REMEMBERED = 50
_ids = IdMaker()  # one a process: ids grow across its sandboxes
os.register_at_fork(after_in_child=_ids.forked)


class Recorder:
    """Records the events of one sandbox. For one thread."""

    __slots__ = (
        "_open",
        "_open_requests",
        "_quota",
        "_tally",
        "_task_fields",
        "failed",
        "journal",
        "metrics",
        "origin",
        "refused",
        "sandbox",
    )  # fmt: skip

    def __init__(self, sandbox: "SandboxState", journal: Journal, metrics: "Metrics") -> None:
        self.sandbox = sandbox
        self.journal = journal
        self.metrics = metrics
        self._quota = DiskQuota(journal)
        self.failed = False  # whether the last event could not be written; the next one tries again
        task = sandbox.task
        # Whose events these are, for others that record events of the same task, too
        self.origin = Origin.of(task.id, task.name, dict(task.labels), sandbox.id, os.uname().nodename)
        self._task_fields = self.origin._asdict()
        # Decision events of what is let out and not over yet, connections and requests, with what became of it so far
        self._open: dict[str, Outcome] = {}
        self._open_requests: dict[str, Outcome] = {}
        self._tally = Tally()
        self.refused: deque[Event] = deque(maxlen=_REMEMBERED)  # the last ones, for a task that asks why

    def decided(
        self,
        kind: Kind,
        decision: "Decision",
        *,
        name: str | None,
        address: "Address | str | None",
        port: int | None,
        protocol: "Protocol | None",
        tls: "Tls | None" = None,
        http: "Http | None" = None,
        dns: "Dns | None" = None,
        git: "Git | None" = None,
        process: "Process | None" = None,
        cause: str | None = None,
        via: str | None = None,
        detail: str = "",
        approval: str = "",
    ) -> str:
        """Record the decision on one attempt, once and before it passes; return the event's id.

        `approval` is the id of its approval request. Raises JournalWriteError if the event could not be written; under
        `on_journal_failure: continue` only for a used-up disk quota or a bug. Then block the attempt and don't record
        it again: it is counted as denied with `journal_failed`.
        """
        if kind not in DECISIONS:
            raise ValueError(f"`{kind}` is not a kind of decision")
        event = self._event(
            kind,
            **self._decision_fields(decision),
            cause=cause,
            process=process,
            destination=_destination(name, address, port, via),
            protocol=protocol,
            tls=tls,
            http=http,
            dns=dns,
            git=git,
            detail=self._mask(detail),
            approval=Approval(approval) if approval else None,
        )
        self._write_decision(event, decision, name, address)
        if dns is not None:
            self.metrics.dns_query(dns.type, decision.verdict)
        if not decision.outcome.passes:
            return event.id
        if kind is Kind.CONNECTION_DECIDED:
            self._open[event.id] = decision.outcome
            self.metrics.connections_open += 1
        elif kind is Kind.REQUEST_DECIDED:
            self._open_requests[event.id] = decision.outcome
        return event.id

    def closed(
        self,
        cause: str,
        *,
        name: str | None,
        address: "Address | str | None",
        port: int | None,
        protocol: "Protocol | None",
        up: int,
        down: int,
        seconds: float,
        outcome: Outcome = Outcome.PASSED,
        reason: Reason | None = None,
        by: "Decision | None" = None,
        process: "Process | None" = None,
        via: str | None = None,
        detail: str = "",
    ) -> None:
        """Tell that the connection which `cause` let out is over, and what it carried. Never raises.

        Safe to call twice and for a connection that was not let out: there is one closing event for each that was,
        none for others. `reason` says why it did not end by itself; `by` is the decision of a later policy, or of a
        later day, that ended it.
        """
        earlier = self._open.pop(cause, None)
        if earlier is None:
            return
        self._tally.ended(Kind.CONNECTION_DECIDED, earlier, outcome, name, address, reason)
        metrics = self.metrics
        metrics.connections_open -= 1
        metrics.bytes_up += up
        metrics.bytes_down += down
        metrics.connection_seconds.observe(seconds)
        self._report(
            Kind.CONNECTION_CLOSED,
            process=process,
            outcome=outcome,
            reason=reason,
            rules=() if by is None else by.rules,
            revision="" if by is None else by.revision,
            cause=cause,
            destination=_destination(name, address, port, via),
            protocol=protocol,
            bytes=Transferred(up, down),
            duration=Seconds(seconds),
            detail=self._mask(detail),
        )

    def completed(
        self,
        cause: str,
        *,
        name: str | None,
        address: "Address | str | None",
        port: int | None,
        protocol: "Protocol | None",
        http: "Http | None",
        up: int,
        down: int,
        seconds: float,
        outcome: Outcome = Outcome.PASSED,
        reason: Reason | None = None,
        by: "Decision | None" = None,
        via: str | None = None,
        detail: str = "",
    ) -> None:
        """Tell how the request that `cause` let out ended, with the response's status in `http`. Never raises.

        Its bytes are bodies; they are part of what the connection's closing event counts, and not counted twice.
        """
        earlier = self._open_requests.pop(cause, None)
        if earlier is not None:
            self._tally.ended(Kind.REQUEST_DECIDED, earlier, outcome, name, address, reason)
        event = self._report(
            Kind.REQUEST_COMPLETED,
            outcome=outcome,
            reason=reason,
            rules=() if by is None else by.rules,
            revision="" if by is None else by.revision,
            cause=cause,
            destination=_destination(name, address, port, via),
            protocol=protocol,
            http=http,
            bytes=Transferred(up, down),
            duration=Seconds(seconds),
            detail=self._mask(detail),
        )
        if earlier is not None and outcome is Outcome.BLOCKED:
            self.refused.append(event._replace(id=cause))  # the page names the decision's event

    def error(self, where: Component | str, detail: str, *, cause: str | None = None) -> None:
        """Record a gate error: `where` in the gate, and what happened. Never raises."""
        place = Component(where) if where in Component else Component.OTHER
        self.metrics.failed(place)
        self._report(Kind.GATE_ERROR, cause=cause, fault=Fault(place, self._mask(detail)))

    def record_tampering(self, cause: str, detail: str, *, name: str | None, address: str | None, port: int) -> None:
        """Record that a task sent a secret's placeholder where it doesn't belong. Never raises."""
        self._tally.tampers += 1
        self._report(
            Kind.TAMPERING_DETECTED,
            cause=cause,
            reason=Reason.SECRET_MISUSE,
            destination=_destination(name, address, port),
            detail=self._mask(detail),
        )

    def record_secret(
        self,
        cause: str,
        detail: str,
        *,
        rules: tuple[str, ...],
        blocked: bool,
        name: str | None,
        address: str | None,
        port: int,
        protocol: "Protocol",
        http: "Http",
    ) -> None:
        """Record a detected secret, blocked or sent; `detail` says its kind and where it was found.

        `rules` allowed the request. Never raises.
        """
        if not blocked:
            self._tally.count_secret(name, address)
        self._report(
            Kind.SECRET_DETECTED,
            cause=cause,
            verdict=Verdict.DENY if blocked else Verdict.FLAG,
            outcome=Outcome.BLOCKED if blocked else Outcome.PASSED,
            reason=Reason.LEAK,
            rules=rules,
            revision=self.sandbox.policy.revision,
            mode=self.sandbox.policy.settings.mode,
            destination=_destination(name, address, port),
            protocol=protocol,
            http=http,
            detail=self._mask(detail),
        )

    def task_started(
        self, argv: "Sequence[str]", detail: str = "", *, started_by: "StartedBy | None" = None, workspace: str = ""
    ) -> str:
        """Record that the task starts; returns the event's id. Raises JournalWriteError: don't start it then.

        `detail` says how its resource limits are enforced.
        """
        event = self._event(
            Kind.TASK_STARTED,
            outcome=Outcome.PASSED,
            argv=masked(argv),
            detail=detail,
            started_by=started_by,
            workspace=workspace,
        )
        self._write(event)
        return event.id

    def task_ended(
        self,
        cause: str | None,
        *,
        seconds: float,
        status: int | None = None,
        signal: int | None = None,
        outcome: Outcome = Outcome.PASSED,
    ) -> None:
        """Record how the task started by `cause` ended: exit status or signal. Never raises.

        `outcome` is `failed` when it could not be run or lost its gate, `passed` whatever its own status was.
        """
        self.metrics.task_ended(outcome)
        ending = None if status is None and signal is None else Ending(status, signal)
        self._report(Kind.TASK_ENDED, outcome=outcome, cause=cause, duration=Seconds(seconds), ending=ending)

    def rules_loaded(self, previous: str = "") -> None:
        """Record that the sandbox's policy is in force, after a reload in place of `previous`. Never raises."""
        policy = self.sandbox.policy
        event = self._report(
            Kind.RULES_LOADED,
            revision=policy.revision,
            previous=previous,
            mode=policy.settings.mode,
            sources=tuple(map(str, policy.sources)),
        )
        now = event.time / 1e9
        self.metrics.rules_loaded(policy.revision, policy.rule_ids, policy.settings.mode, now, policy.needs.endings)

    def rules_rejected(self, problems: "Sequence[str]") -> None:
        """Record that new rule files are invalid and the policy in force stays. Never raises."""
        self.metrics.rules_rejected()
        policy = self.sandbox.policy
        self._report(
            Kind.RULES_REJECTED,
            revision=policy.revision,
            mode=policy.settings.mode,
            sources=tuple(map(str, policy.sources)),
            problems=tuple(problems),
        )

    def command_decided(
        self, decision: "Decision", argv: "Sequence[str]", process: "Process", detail: str = "", approval: str = ""
    ) -> None:
        """Record the decision on a program before it may start. Raises JournalWriteError: it must not start then.

        `approval` is the id of its approval request.
        """
        name = argv[0].rpartition("/")[2] if argv else ""
        event = self._event(
            Kind.COMMAND_DECIDED,
            **self._decision_fields(decision),
            process=process,
            argv=masked(argv),
            detail=detail,
            approval=Approval(approval) if approval else None,
        )
        self._write_decision(event, decision, name, None)

    def record_denied_call(self, call: str, process: "Process", more: int) -> None:
        """Record a system call that the task's filter denied, and `more` like it since the last. Never raises."""
        self._tally.count_denied_call(call)
        detail = f"and {more} more since the last event" if more else ""
        self._report(Kind.SYSCALL_DENIED, outcome=Outcome.BLOCKED, call=call, process=process, detail=detail)

    def agent_said(self, agent: "Agent", process: "Process | None" = None) -> None:
        """Record what a program of the task reports of itself; `process` sent it. Raises JournalWriteError."""
        from proxy.telemetry.masking import LONGEST_LIST_TEXT, ROOM_FOR_NOTE, cut_members

        # Cut before masking, so that dropped text costs nothing.
        attributes_kept = cut_members(agent.attributes, LONGEST_LIST_TEXT - ROOM_FOR_NOTE)
        attributes = {name: masked((value,))[0] for name, value in attributes_kept.items()}
        texts = agent.name, agent.service, agent.conversation, agent.call, agent.tool
        name, service, conversation, call, tool = (masked((text,))[0] for text in texts)
        text = Agent(agent.source, name, service, conversation, call, tool, agent.at, attributes)
        if not self._quota.has_room():
            raise self._quota_error()
        self._write(self._event(Kind.AGENT_SAID, agent=text, process=process))

    def task_limited(self, cause: str, reason: Reason, detail: str, outcome: Outcome = Outcome.BLOCKED) -> None:
        """Record that the task started by `cause` reached a limit, and the outcome. Never raises."""
        self._report(Kind.TASK_LIMITED, outcome=outcome, cause=cause, reason=reason, detail=detail)

    def changes_kept(self, cause: str, paths: "Sequence[str]", detail: str) -> None:
        """Record the changes that wait for review after the task started by `cause`. Never raises."""
        self._report(Kind.CHANGES_KEPT, outcome=Outcome.PASSED, cause=cause, paths=tuple(paths), detail=detail)

    def protected_changed(self, cause: str, paths: "Sequence[str]") -> None:
        """Record that protected files changed during the task started by `cause`. Never raises."""
        text = "protected files changed; a program on the host may have changed them"
        self._report(
            Kind.TAMPERING_DETECTED, cause=cause, reason=Reason.PROTECTED_PATH, paths=tuple(paths), detail=text
        )

    def _mask(self, text: str) -> str:
        """Return a text of the gate with the values of secrets masked, as it may quote a server."""
        injector = self.sandbox.secret_injector
        return text if injector is None else injector.masked(text)

    def telemetry_dropped(self, records: int) -> None:
        """Count records of the task's own telemetry that were dropped."""
        self.metrics.agent_records_refused += records
        self._tally.dropped += records

    def summary(self) -> Summary:
        """Return the number of attempts so far, by kind and final outcome."""
        return self._tally.summary()

    def _decision_fields(self, decision: "Decision") -> dict[str, Any]:
        """Return the event fields of a decision."""
        return {
            "verdict": decision.verdict,
            "outcome": decision.outcome,
            "reason": decision.reason,
            "rules": decision.rules,
            "revision": decision.revision,
            "mode": self.sandbox.policy.settings.mode,
        }

    def _event(self, kind: Kind, **more: Any) -> Event:
        now = time.time_ns()
        return Event(Instant(now), _ids.make(now), kind, **self._task_fields, **more)

    def _report(self, kind: Kind, **more: Any) -> Event:
        """Write an event about the past; if that fails, there is nothing to block."""
        event = self._event(kind, **more)
        with contextlib.suppress(JournalWriteError):  # it is counted
            self._write(event)
        return event

    def _write_decision(
        self, event: Event, decision: "Decision", name: str | None, address: "Address | str | None"
    ) -> None:
        """Write and count a decision. Raises JournalWriteError; the attempt is then counted as blocked."""
        try:
            if not self._quota.has_room():
                raise self._quota_error()
            self._write(event)
        except JournalWriteError:
            self.metrics.decided(event.kind, Verdict.DENY, Outcome.BLOCKED, Reason.JOURNAL_FAILED)
            self._tally.decided(event.kind, Outcome.BLOCKED, name, address, reason=Reason.JOURNAL_FAILED)
            raise
        kind = event.kind
        rules = () if kind is Kind.COMMAND_DECIDED else decision.rules  # a command is no rule with a series of its own
        self.metrics.decided(kind, decision.verdict, decision.outcome, decision.reason, rules)
        self._tally.decided(kind, decision.outcome, name, address, reason=decision.reason)
        if decision.verdict is Verdict.FLAG and decision.outcome is Outcome.PASSED and kind is not Kind.DNS_DECIDED:
            # requests of an inspected connection are counted one by one
            self._tally.flagged += kind is not Kind.CONNECTION_DECIDED or not decision.inspect
        approvals = self.sandbox.approvals
        # Count only attempts that submitted a request, not those that used an earlier grant
        if event.approval is not None and (approvals is None or approvals.take_submitted(event.approval.id)):
            self._tally.held(decision.reason, given_up=event.detail == CLIENT_LEFT)
        if not decision.outcome.passes:
            self.refused.append(event)

    def _quota_error(self) -> JournalWriteError:
        """Return the exception for a used-up disk quota, whatever `on_journal_failure` says."""
        self.metrics.events_dropped += 1
        return self._quota.used_up(partial(self.error, Component.JOURNAL))

    def _write(self, event: Event) -> None:
        """Write an event. Raises JournalWriteError for every failure, also for a bug.

        With `on_journal_failure: continue`, events that can't be written are dropped and counted.
        """
        try:
            written = self.journal.append(encode(event), event.time)
        except Exception as error:
            self.failed = True
            self.metrics.events_dropped += 1
            self.metrics.failed(Component.JOURNAL)
            if not isinstance(error, JournalWriteError):
                raise JournalWriteError(None, f"cannot write an event: {type(error).__name__}: {error}") from error
            if self.sandbox.policy.settings.on_journal_failure is OnJournalFailure.CONTINUE:
                return
            raise
        self.failed = False
        self._quota.taken += written
        self.metrics.count_events(event.kind, written)


def _destination(name: str | None, address: object, port: int | None, via: str | None = None) -> Destination:
    return Destination(None if name is None else str(name), None if address is None else str(address), port, via)
