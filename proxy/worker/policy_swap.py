"""Reload of a policy: reads the new one, swaps it in one step, and reviews open connections.

Home of invariant 2 for reloads: whatever is wrong with the new policy, the policy in force stays. This module
must never keep the gate waiting: all that takes long happens in a thread, in small pieces (`policy_transfer`).
"""

import asyncio
import contextlib
import gc
import threading
from typing import TYPE_CHECKING, cast

from proxy.dialing import proxy_auth
from proxy.telemetry.events import Component
from proxy.worker import policy_transfer

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.dialing.proxy_auth import Login
    from proxy.dns.lookup import Lookup
    from proxy.gate.listener import Gate
    from proxy.inspection import Inspection
    from proxy.sandbox.recorder import Recorder
    from proxy.supervisor_channel.channel import SupervisorChannel
    from proxy.udp.listener import UdpGate
    from rules.matching.policy import Policy


class PolicyReload:
    """Swaps the policy of one sandbox. For one thread, within a running loop."""

    def __init__(  # noqa: PLR0917
        self,
        recorder: "Recorder",
        gate: "Gate",
        udp: "UdpGate",
        lookup: "Lookup",
        inspection: "Inspection",
        hearing: "SupervisorChannel | None" = None,
    ) -> None:
        self._recorder = recorder
        self._gate = gate
        self._udp = udp
        self._lookup = lookup
        self._inspection = inspection
        self._hearing = hearing

    def swap(self, policy: "Policy", login: "Login | None") -> None:
        """Put `policy` in force."""
        sandbox = self._recorder.sandbox
        before, sandbox.policy = sandbox.policy, policy
        try:
            if login != self._gate.dialer.login:
                self._gate.dialer.login = login
                sandbox.set_secrets(sandbox.secret_injector, b"" if login is None else login.password)
            sandbox.meters.keep(frozenset(policy.rule_ids))
            self._recorder.rules_loaded(before.revision)
            if policy.unread:  # no more of it is new than what root's files say
                self._recorder.rules_rejected(policy.unread)
            if (policy.box, policy.floor) != (before.box, before.floor):
                self._recorder.error(
                    Component.WORKER, "the rules' `sandbox` is another now, for tasks that start from here on"
                )
            if policy.commands and not sandbox.holds_programs:
                self._recorder.error(
                    Component.SUPERVISOR, "the rules have `commands` now, for tasks that start from here on"
                )
        finally:  # whatever goes wrong with telling: what is open is held against the rules that are in force
            self._lookup.forget_checks()
            self._gate.review()
            self._udp.review()
            if self._hearing is not None:
                self._hearing.review()
        if policy.needs.inspection:
            self._inspection.warm()


async def read_policy(descriptor: int) -> "tuple[Policy, Login | None]":
    """Read policy and login from a descriptor, in a thread, and close it. Raises what is wrong with the content."""
    gc.disable()  # it would walk through all that is made, again and again, while nobody else can go on
    try:
        return await _aside(_read, descriptor)
    finally:
        gc.freeze()  # what is there now is walked through no more
        gc.enable()


async def release_policies(dropped: "list[Policy]") -> None:
    """Free policies that nothing else uses, in a thread."""
    await _aside(policy_transfer.let_go, dropped)


async def _aside[T, R](work: "Callable[[T], R]", what: T) -> R:
    """Do it in a thread; or, where there can be none, here and now: better to wait than to keep rules that are old.

    A task of the same user can use up all threads that may be (pthread_create(3), EAGAIN).
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[R] = loop.create_future()

    def settle(result: R | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(cast("R", result))

    def run() -> None:
        result, problem = None, None
        try:
            result = work(what)
        except BaseException as error:  # noqa: BLE001 - whoever waits gets it
            problem = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(settle, result, problem)

    try:
        threading.Thread(target=run, daemon=True).start()
    except RuntimeError:
        return work(what)
    return await done


def _read(descriptor: int) -> "tuple[Policy, Login | None]":
    with policy_transfer.Copy(descriptor) as file:
        login = proxy_auth.take(file)
        return policy_transfer.take(file), login
