"""What the conversations of one tenant share: certificates, the way out, and the list of those under way.

Imported only when the first connection is to be inspected: mitmproxy takes a quarter of a second.
"""

import asyncio
import time
from typing import TYPE_CHECKING

from proxy.dialling.connecting import DialFailed
from proxy.dialling.dial import CONNECT_TIMEOUT
from proxy.inspection.context import Ends
from proxy.inspection.contexts import FarContexts, NearContexts, Spoken
from proxy.inspection.conversation import Conversation
from proxy.inspection.judging import Place
from proxy.passing import LOOKUP_TIMEOUT
from proxy.rounds import EVERY
from rules.attempt import Protocol
from rules.verdicts import Reason

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

    from proxy.admitted import Admitted
    from proxy.ca.authority import Authority
    from proxy.dialling.connecting import Hop
    from proxy.dialling.dial import Dialer
    from proxy.dialling.proxy_auth import Login
    from proxy.inspection.deciding import Found
    from proxy.telemetry.recorder import Recorder
    from rules.attempt import Attempt
    from rules.decision import Decision
    from rules.policy import Policy


class Engine:
    """Inspects the connections of one tenant. For one thread, within its running loop."""

    def __init__(self, ca: "Authority", dialer: "Dialer", recorder: "Recorder", trusted: FarContexts) -> None:
        self.loop = asyncio.get_running_loop()
        self.recorder = recorder
        self.poller = dialer.poller
        self.ends = Ends(NearContexts(ca), trusted, Spoken())
        self._dialer = dialer
        self._conversations: dict[str, Conversation] = {}  # by the event of the connection
        self._round: asyncio.TimerHandle | None = None

    @property
    def login(self) -> "Login | None":
        """What the upstream proxy is told about who we are."""
        return self._dialer.login

    def adopt(self, admitted: "Admitted") -> None:
        """Take a connection over. Whatever this raises, nothing was begun."""
        conversation = Conversation(self, admitted, place_of(admitted))
        self._conversations[admitted.event] = conversation
        conversation.start()
        if self._round is None:
            self._round = self.loop.call_later(EVERY, self._go_round)

    def review(self, admitted: "Admitted", decision: "Decision") -> None:
        """Go on with a conversation under other rules, which say `decision` to its connection."""
        if conversation := self._conversations.get(admitted.event):
            conversation.review(decision)

    def forget(self, conversation: Conversation) -> None:
        """Note that a conversation is over."""
        if self._conversations.get(conversation.session.cause) is conversation:
            del self._conversations[conversation.session.cause]

    def close(self) -> None:
        """End every conversation with a reset."""
        if self._round is not None:
            self._round.cancel()
        for conversation in list(self._conversations.values()):
            conversation.abort()

    def _go_round(self) -> None:
        """Have each look at the time: one timer for all of them, and none while there are none."""
        self._round = None
        now = time.monotonic()
        for conversation in list(self._conversations.values()):
            try:
                conversation.tick(now)
            except Exception as error:  # noqa: BLE001  the others have their time, too
                conversation.crashed(error)
        if self._conversations:
            self._round = self.loop.call_later(EVERY, self._go_round)

    def addresses(self, policy: "Policy", attempt: "Attempt") -> "Found | Awaitable[Found]":
        """Return where an attempt may be dialled to, or why nowhere: at once if that is known."""
        try:
            known = self._dialer.known(policy, attempt)
        except DialFailed as failure:
            return failure
        if known is not None:
            return known
        answer: asyncio.Future[Found] = self.loop.create_future()

        def found(addresses: "Found") -> None:
            timer.cancel()
            if not answer.done():
                answer.set_result(addresses)

        too_late = DialFailed(Reason.UNRESOLVED, "the lookup took too long")
        timer = self.loop.call_later(LOOKUP_TIMEOUT, found, too_late)
        self._dialer.find(policy, attempt, found)
        return answer

    def connect(
        self,
        addresses: "tuple[Hop, ...]",
        port: int,
        done: "Callable[[socket.socket | DialFailed, Hop | None], None]",
    ) -> "Callable[[], None] | None":
        """Connect, within a time; returns how to call it off. What is there at once `done` is told at once."""

        def too_late() -> None:
            connecting.cancel()
            done(DialFailed(Reason.UPSTREAM_FAILED, f"no answer within {CONNECT_TIMEOUT:.0f} seconds"), None)

        def connected(got: "socket.socket | DialFailed", address: "Hop | None") -> None:
            timer.cancel()
            done(got, address)

        def call_off() -> None:
            timer.cancel()
            connecting.cancel()

        connecting = self._dialer.connect(addresses, port, connected, at_once=True)
        there = connecting.take()
        if there is not None:
            done(*there)
            return None
        timer = self.loop.call_later(CONNECT_TIMEOUT, too_late)
        return call_off


def place_of(admitted: "Admitted") -> Place:
    """Return where a connection leads. Raises ValueError for what is not inspected."""
    if admitted.protocol not in (Protocol.TLS, Protocol.HTTP):
        raise ValueError(f"{admitted.protocol} is not inspected")
    return Place(admitted.target, admitted.port, tls=admitted.protocol is Protocol.TLS)
