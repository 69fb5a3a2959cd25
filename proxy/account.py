"""What is told of one connection: one decision, and one closing event if it was let out (invariant 6)."""

import time
from typing import TYPE_CHECKING, Protocol

from proxy.dialling.connecting import written
from proxy.telemetry.events import Kind, Tls
from proxy.telemetry.journal.writing import JournalFailed
from rules.verdicts import Outcome

if TYPE_CHECKING:
    from proxy.deciding import Judgement, Wanted
    from proxy.dialling.connecting import Hop
    from proxy.telemetry.events import Process, Where
    from proxy.telemetry.form import Form
    from proxy.telemetry.recorder import Recorder
    from proxy.watched.attributing import Whose
    from rules.addresses import Address
    from rules.decision import Decision
    from rules.verdicts import Reason

type Endpoint = tuple["Address", int]


class Attribute(Protocol):
    """Asks who has opened a connection: (the task's end, where it connected to, whether it is like others before)."""

    def __call__(self, local: Endpoint, remote: Endpoint, *, again: bool = False) -> "Whose | None":
        """Return the question; None: this one is not asked about."""


class Account:
    """One connection's telling. `address` is where it leads, as far as that is known; `via` the proxy that it takes."""

    __slots__ = (
        "_form",
        "_judgement",
        "_recorder",
        "address",
        "closed",
        "event",
        "opened",
        "peer",
        "said",
        "via",
        "wanted",
        "whose",
    )

    def __init__(
        self,
        recorder: "Recorder",
        peer: Endpoint,
        wanted: "Wanted",
        address: "Address | str | None",
        opened: float,
    ) -> None:
        self._recorder = recorder
        self._judgement: Judgement | None = None
        self._form: Form | None = None  # that it was told in
        self.peer = peer
        self.wanted = wanted
        self.address = address
        self.via: str | None = None
        self.whose: Whose | None = None  # who opened it, where that is asked
        self.opened = opened  # time.monotonic()
        self.closed = 0.0  # time.monotonic(), where that was before its end is told
        self.event = ""
        self.said = b""  # first, as it was judged, until that is passed on

    def leads_to(self, hop: "Hop") -> None:
        """Take note of what is dialled. Through a proxy, nobody here knows the address."""
        self.address, self.via = (None, str(hop)) if isinstance(hop, tuple) else (written(hop), None)

    def may_not_lead_to(self, address: "Address | None") -> None:
        """Take note of the address that it is refused for, where it is refused for that."""
        if address is not None:
            self.address = written(address)

    def form(self) -> "Form | None":
        """Return the form in which others like it may be told; None: it isn't a connection that others are like."""
        judgement = self._judgement
        if judgement is None or not judgement.decision.passes:
            return None

        def tell(recorder: "Recorder") -> None:
            like = Account(recorder, self.peer, self.wanted, self.address, self.opened)
            like.via = self.via
            like.decided(judgement)
            like.ended(0, 0, Outcome.PASSED, None)

        return self._recorder.form(tell, judgement.decision, judgement.name, self.address)

    def decided_alike(self, judgement: "Judgement", form: "Form") -> bool:
        """Do as `decided`, in a form that another had which was judged the same and led to the same place."""
        whose = self.whose
        if whose is not None and whose.process is not None:
            return self.decided(judgement)
        assert self._judgement is None, "decided twice"
        self._judgement = judgement
        try:
            self.event = self._recorder.decided_alike(form)
        except JournalFailed:
            return False
        self._form = form
        return True

    def resume(self, judgement: "Judgement", form: "Form", event: str) -> None:
        """Go on with one that was told so, under an id, and whose end is to be told here."""
        assert self._judgement is None, "decided twice"
        self._judgement, self._form, self.event = judgement, form, event
        self._recorder.resume(form, event)

    def decided(self, judgement: "Judgement") -> bool:
        """Tell the decision; False: that could not be written, so nothing may pass. Once a connection."""
        assert self._judgement is None, "decided twice"
        self._judgement = judgement
        wanted, hello = self.wanted, judgement.hello
        try:
            self.event = self._recorder.decided(
                Kind.CONNECTION_DECIDED,
                judgement.decision,
                name=judgement.name,
                address=self.address,
                port=wanted.port,
                via=self.via,
                protocol=judgement.attempt.protocol,
                tls=None if hello is None else Tls(hello.sni, hello.alpn, hello.version, hello.ech, hello.ja4),
                process=self.process,
                detail=judgement.detail,
                approval=judgement.approval,
            )
        except JournalFailed:
            return False
        return True

    @property
    def process(self) -> "Process | None":
        """Who opened it, as far as that is known by now."""
        return None if self.whose is None else self.whose.process

    @property
    def is_decided(self) -> bool:
        """Whether the one decision has been told, or could not be."""
        return self._judgement is not None

    @property
    def judgement(self) -> "Judgement | None":
        """What was told, if anything has been."""
        return self._judgement

    def ended(  # noqa: PLR0917 - what there is to tell, in the order of the others
        self,
        up: int,
        down: int,
        outcome: "Outcome",
        reason: "Reason | None",
        by: "Decision | None" = None,
        detail: str = "",
    ) -> None:
        """Tell how it ended; `by`: the later decision that ended it, `detail`: what went wrong, in words.

        Harmless where nothing was let out, and twice.
        """
        judgement = self._judgement
        if judgement is None or not self.event:
            return
        seconds = (self.closed or time.monotonic()) - self.opened
        is_alike = self._form is not None and outcome is Outcome.PASSED and not (reason or by or detail)
        if is_alike and (self.whose is None or self.whose.process is None):
            assert self._form is not None
            self._recorder.closed_alike(self._form, self.event, up, down, seconds)
            return
        self._recorder.closed(
            self.event,
            name=judgement.name,
            address=self.address,
            port=self.wanted.port,
            via=self.via,
            protocol=judgement.attempt.protocol,
            up=up,
            down=down,
            seconds=seconds,
            outcome=outcome,
            reason=reason,
            by=by,
            process=self.process,
            detail=detail,
        )

    def error(self, where: "Where", error: Exception) -> None:
        """Tell of an exception that nobody expected."""
        self._recorder.error(where, f"{type(error).__name__}: {error}", cause=self.event or None)
