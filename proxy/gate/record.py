"""Record of one connection: one decision event, and one close event if it was allowed (invariant 6)."""

import time
from typing import TYPE_CHECKING

from proxy.dialing.dialer import written
from proxy.telemetry.events import Kind, Tls
from proxy.telemetry.journal.writer import JournalFailed

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.dialing.dialer import Hop
    from proxy.gate.decide import Judgement, Wanted
    from proxy.sandbox.recorder import Recorder
    from proxy.supervisor_channel.channel import Whose
    from proxy.telemetry.events import Process, Where
    from rules.addresses import Address
    from rules.decision import Decision
    from rules.names import HostName
    from rules.verdicts import Outcome, Reason

type Endpoint = tuple["Address", int]
type Attribute = "Callable[[Endpoint, Endpoint], Whose | None]"  # finds the process that opened a connection


class ConnectionRecord:
    """One connection's events. `address` is where it leads, as far as that is known; `via` the proxy that it takes."""

    __slots__ = (
        "_judgement",
        "_name",
        "_recorder",
        "address",
        "event",
        "opened",
        "peer",
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
        self._name: HostName | None = None  # of the host, once it is decided
        self.peer = peer
        self.wanted = wanted
        self.address = address
        self.via: str | None = None
        self.whose: Whose | None = None  # the process that opened it, where that is looked for
        self.opened = opened  # time.monotonic()
        self.event = ""

    def leads_to(self, hop: "Hop") -> None:
        """Note what is dialed. Through a proxy, the address is not known here."""
        self.address, self.via = (None, str(hop)) if isinstance(hop, tuple) else (written(hop), None)

    def may_not_lead_to(self, address: "Address | None") -> None:
        """Take note of the address that it is refused for, where it is refused for that."""
        if address is not None:
            self.address = written(address)

    def decided(self, judgement: "Judgement") -> bool:
        """Tell the decision; False: that could not be written, so nothing may pass. Once a connection."""
        assert self._judgement is None, "decided twice"
        self._judgement = judgement
        wanted, hello, whose = self.wanted, judgement.hello, self.whose
        self._name = judgement.name
        try:
            self.event = self._recorder.decided(
                Kind.CONNECTION_DECIDED,
                judgement.decision,
                name=self._name,
                address=self.address,
                port=wanted.port,
                via=self.via,
                protocol=judgement.attempt.protocol,
                tls=None if hello is None else Tls(hello.sni, hello.alpn, hello.version, hello.ech, hello.ja4),
                process=None if whose is None else whose.process,
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
        """Whether the one decision has been recorded, or could not be."""
        return self._judgement is not None

    @property
    def judgement(self) -> "Judgement | None":
        """The judgement that was recorded, if one was."""
        return self._judgement

    def ended(  # noqa: PLR0917 - what there is to record, in the order of the others
        self,
        up: int,
        down: int,
        outcome: "Outcome",
        reason: "Reason | None",
        by: "Decision | None" = None,
        detail: str = "",
    ) -> None:
        """Tell how it ended; `by`: the later decision that ended it, `detail`: what went wrong, in words.

        Harmless where nothing was allowed, and twice.
        """
        judgement, whose = self._judgement, self.whose
        if judgement is None or not self.event:
            return
        self._recorder.closed(
            self.event,
            name=self._name,
            address=self.address,
            port=self.wanted.port,
            via=self.via,
            protocol=judgement.attempt.protocol,
            up=up,
            down=down,
            seconds=time.monotonic() - self.opened,
            outcome=outcome,
            reason=reason,
            by=by,
            process=None if whose is None else whose.process,
            detail=detail,
        )

    def error(self, where: "Where", error: Exception) -> None:
        """Tell of an exception that nobody expected."""
        self._recorder.error(where, f"{type(error).__name__}: {error}", cause=self.event or None)
