"""What a task does in its sandbox without getting out: programs it starts, system calls it makes, limits it reaches."""

from typing import TYPE_CHECKING

from proxy.telemetry.events import Agent, Approval, Kind
from rules.verdicts import Outcome, Reason

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Sequence

    from proxy.telemetry.events import Event, Process
    from proxy.telemetry.metrics import Metrics
    from proxy.telemetry.summary import Tally
    from proxy.tenant import Tenant
    from rules.addresses import Address
    from rules.decision import Decision


class Inside:
    """The part of a `Recorder` that is about no attempt to get out."""

    __slots__ = ()

    if TYPE_CHECKING:
        tenant: Tenant
        metrics: Metrics
        refused: deque[Event]
        _tally: Tally

        def _event(self, kind: Kind, *, outcome: Outcome | None = None, cause: str | None = None) -> Event: ...
        def _claim(self) -> None: ...
        def _write(self, event: Event) -> None: ...
        def _write_decision(
            self, event: Event, decision: Decision, name: str | None, address: Address | str | None
        ) -> None: ...
        def _report(self, event: Event) -> None: ...

    def command_decided(
        self, decision: "Decision", argv: "Sequence[str]", process: "Process", detail: str = "", approval: str = ""
    ) -> None:
        """Tell what was decided on a program that a task wants to start. Call it before it may go on.

        `approval` is the id of what people were asked about it.

        Raises JournalFailed when that could not be written: it must then not start.
        """
        from proxy.telemetry.masking import masked  # compiles expressions

        kind, name = Kind.COMMAND_DECIDED, argv[0].rpartition("/")[2] if argv else ""
        event = self._event(kind, outcome=decision.outcome)._replace(
            verdict=decision.verdict,
            reason=decision.reason,
            rules=decision.rules,
            revision=decision.revision,
            mode=self.tenant.policy.settings.mode,
            process=process,
            argv=masked(argv),
            detail=detail,
            approval=Approval(approval) if approval else None,
        )
        self._write_decision(event, decision, name, None)
        if approval:
            self._held(decision.reason, approval, detail)
        if not decision.passes:
            self.refused.append(event)

    def _held(self, reason: Reason, approval: str, detail: str) -> None:
        """Count an attempt as held, if people were asked about it and not only about one like it before."""
        from proxy.approvals.putting import GONE  # who has an approval has that already

        asking = self.tenant.asking
        if asking is None or asking.was_asked(approval):
            self._tally.held(reason, given_up=detail == GONE)

    def call_refused(self, call: str, process: "Process", more: int) -> None:
        """Tell of a system call that the task's filter refused, and of how many like it since it was told last.

        Never raises.
        """
        self._tally.call_refused(call)
        event = self._event(Kind.CALL_REFUSED, outcome=Outcome.BLOCKED)
        detail = f"and {more} more since it was told last" if more else ""
        self._report(event._replace(call=call, process=process, detail=detail))

    def agent_said(self, agent: "Agent", process: "Process | None" = None) -> None:
        """Tell what a program of the task says of itself; `process` sent that. Raises JournalFailed."""
        from proxy.telemetry.masking import masked  # compiles expressions
        from proxy.telemetry.pieces import LONGEST_LIST_TEXT, ROOM_FOR_NOTE, cut_members

        # Cut first: what isn't kept costs nothing.
        kept = cut_members(agent.attributes, LONGEST_LIST_TEXT - ROOM_FOR_NOTE)
        attributes = {name: masked((value,))[0] for name, value in kept.items()}
        texts = agent.name, agent.service, agent.conversation, agent.call, agent.tool
        name, service, conversation, call, tool = (masked((text,))[0] for text in texts)
        said = Agent(agent.source, name, service, conversation, call, tool, agent.at, attributes)
        self._claim()
        self._write(self._event(Kind.AGENT_SAID)._replace(agent=said, process=process))

    def task_limited(self, cause: str, reason: Reason, detail: str, outcome: Outcome = Outcome.BLOCKED) -> None:
        """Tell that the task which `cause` started has reached one of its limits, and what came of it. Never raises."""
        event = self._event(Kind.TASK_LIMITED, outcome=outcome, cause=cause)
        self._report(event._replace(reason=reason, detail=detail))

    def changes_kept(self, cause: str, paths: "Sequence[str]", detail: str) -> None:
        """Tell what the task which `cause` started left for somebody to accept or discard. Never raises."""
        event = self._event(Kind.CHANGES_KEPT, outcome=Outcome.PASSED, cause=cause)
        self._report(event._replace(paths=tuple(paths), detail=detail))

    def protected_changed(self, cause: str, paths: "Sequence[str]") -> None:
        """Tell that protected files changed while the task which `cause` started ran. Never raises."""
        event = self._event(Kind.TAMPER, cause=cause)
        said = "protected files are not what they were; it may have been somebody on the host"
        self._report(event._replace(reason=Reason.PROTECTED_PATH, paths=tuple(paths), detail=said))
