"""The decision on a request in mitmproxy's terms: at its head, before a byte of its body, before anything is dialled.

An address that the rules don't let be dialled is part of the decision (invariant 9), so the name is looked up first; no
name is looked up for a request that the rules deny.
"""

import inspect
from typing import TYPE_CHECKING, Final

from proxy.connecting import DialFailed
from proxy.inspection.judging import undialled
from proxy.inspection.messages import head_of, response_of, settle

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mitmproxy.http import HTTPFlow

    from proxy.inspection.context import Far
    from proxy.inspection.heads import Head
    from proxy.inspection.judging import Ruling
    from proxy.inspection.session import Session
    from rules.addresses import Address
    from rules.attempt import Attempt
    from rules.policy import Policy

type Found = tuple[Address, ...] | DialFailed

ADDRESSES: Final = "exeat.addresses"  # in a flow's metadata: those that may be dialled for it


class Requests:
    """Decides the requests of one session, as the hooks of mitmproxy ask for it."""

    def __init__(self, session: "Session", addresses: "Callable[[Attempt], Found | Awaitable[Found]]") -> None:
        """`addresses` says where an attempt may be dialled to, or why nowhere, at once or in a while."""
        self._session = session
        self._addresses = addresses

    def requestheaders(self, flow: "HTTPFlow") -> "Awaitable[None] | None":
        """Decide: afterwards the flow has a response that refuses it, or addresses to dial."""
        head = head_of(flow.request)
        ruling = self._session.rule(head)
        if ruling.attempt is None or not ruling.decision.passes:
            self._decided(flow, head, ruling, ())
            return None
        policy = self._session.recorder.tenant.policy
        found = self._addresses(ruling.attempt)
        if inspect.isawaitable(found):
            return self._later(flow, head, ruling, policy, found)
        self._decided(flow, head, ruling, found)
        return None

    async def _later(
        self, flow: "HTTPFlow", head: "Head", ruling: "Ruling", policy: "Policy", found: "Awaitable[Found]"
    ) -> None:
        addresses = await found
        if self._session.recorder.tenant.policy is policy:
            self._decided(flow, head, ruling, addresses)
        elif pending := self.requestheaders(flow):  # other rules are in force by now, and nothing was told yet
            await pending

    def _decided(self, flow: "HTTPFlow", head: "Head", ruling: "Ruling", found: "Found") -> None:
        session = self._session
        if isinstance(found, DialFailed):
            ruling = undialled(ruling, found.reason, found.detail)
        page = session.admit(flow.id, head, ruling)
        if page is not None:
            flow.response = response_of(page)
            if ruling.asked is None:  # what comes after a request that can't be read can't be read either
                flow.response.headers["Connection"] = "close"
            return
        assert ruling.asked is not None
        settle(flow.request, ruling.asked, session.place)
        flow.metadata[ADDRESSES] = found


def is_good(connection: "Far", policy: "Policy", attempt: "Attempt", address: "Address") -> bool:
    """Whether `policy` lets a request go to the address that a connection leads to."""
    key = (policy, attempt.request)
    if connection.good_for != key:
        why_not = policy.check_address(attempt.target, attempt.port, attempt.protocol, address, attempt.request)
        connection.good_for = None if why_not else key
    return connection.good_for is not None
