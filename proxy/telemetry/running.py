"""A task's own life and the rules that it is under: when they began, and how they ended."""

from typing import TYPE_CHECKING

from proxy.telemetry.events import Ending, Kind
from proxy.telemetry.inside import Inside
from rules.verdicts import Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxy.telemetry.events import StartedBy


class Running(Inside):
    """The part of a `Recorder` that is about the task and its rules as such."""

    __slots__ = ()

    def task_started(
        self, argv: "Sequence[str]", detail: str = "", *, started_by: "StartedBy | None" = None, workspace: str = ""
    ) -> str:
        """Tell that the task is about to run and return the event's id. Raises JournalFailed: don't run it then.

        `detail` says how it is kept within its limits.
        """
        from proxy.telemetry.masking import masked  # compiles expressions

        event = self._event(Kind.TASK_STARTED, outcome=Outcome.PASSED)._replace(
            argv=masked(argv), detail=detail, started_by=started_by, workspace=workspace
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
        """Tell how the task that `cause` started ended: exit status or signal. Never raises.

        `outcome` is `failed` when it could not be run or lost its gate, `passed` whatever its own status was.
        """
        self.metrics.task_ended(outcome)
        ending = None if status is None and signal is None else Ending(status, signal)
        event = self._event(Kind.TASK_ENDED, outcome=outcome, cause=cause)
        self._report(event._replace(duration=seconds, ending=ending))

    def rules_loaded(self, previous: str = "") -> None:
        """Tell that the tenant's policy is in force now, after a reload instead of `previous`. Never raises."""
        policy = self.tenant.policy
        event = self._event(Kind.RULES_LOADED)._replace(
            revision=policy.revision,
            previous=previous,
            mode=policy.settings.mode,
            sources=tuple(map(str, policy.sources)),
        )
        now = event.time / 1e9
        self.metrics.rules_loaded(policy.revision, policy.rule_ids, policy.settings.mode, now, policy.endings)
        self._report(event)

    def rules_rejected(self, problems: "Sequence[str]") -> None:
        """Tell that new rule files are broken and the old policy stays. Never raises."""
        self.metrics.rules_rejected()
        policy = self.tenant.policy
        self._report(
            self._event(Kind.RULES_REJECTED)._replace(
                revision=policy.revision,
                mode=policy.settings.mode,
                sources=tuple(map(str, policy.sources)),
                problems=tuple(problems),
            )
        )
