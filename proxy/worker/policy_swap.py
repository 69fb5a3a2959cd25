"""Reload of a policy: reads the new one, swaps it in one step, and reviews open connections.

Implements invariant 2 for reloads: if the new policy is invalid, the policy in force stays. The gate must not wait, so
slow work runs in a thread, in small pieces (`policy_transfer`).
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
        supervisor_channel: "SupervisorChannel | None" = None,
    ) -> None:
        self._recorder = recorder
        self._gate = gate
        self._udp = udp
        self._lookup = lookup
        self._inspection = inspection
        self._supervisor_channel = supervisor_channel

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
            if policy.unread:  # only root's files could be read: the rest is as before
                self._recorder.rules_rejected(policy.unread)
            if (policy.box, policy.floor) != (before.box, before.floor):
                self._recorder.error(
                    Component.WORKER,
                    "the rules' `sandbox` changed; it applies to tasks that start from now on",
                )
            if policy.commands and not sandbox.holds_programs:
                self._recorder.error(
                    Component.SUPERVISOR, "the rules have `commands` now; they apply to tasks that start from now on"
                )
        finally:  # also if recording fails: open connections are reviewed under the policy in force
            self._lookup.forget_checks()
            self._gate.review()
            self._udp.review()
            if self._supervisor_channel is not None:
                self._supervisor_channel.review()
        if policy.needs.inspection:
            self._inspection.warm()


async def read_policy(descriptor: int) -> "tuple[Policy, Login | None]":
    """Read policy and login from a descriptor, in a thread, and close it. Raises errors of the content."""
    gc.disable()  # a collection would visit all new objects again and again, and stop the gate meanwhile
    try:
        return await _run_in_thread(_read_from_descriptor, descriptor)
    finally:
        gc.freeze()  # later collections skip the objects of the policy
        gc.enable()


async def release_policies(policies: "list[Policy]") -> None:
    """Free policies that nothing else uses, in a thread."""
    await _run_in_thread(policy_transfer.free, policies)


async def _run_in_thread[T, R](work: "Callable[[T], R]", argument: T) -> R:
    """Call `work` in a thread, or directly if no thread can be started: a short stall is better than old rules.

    A task of the same user can use up the user's threads (pthread_create(3), EAGAIN).
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[R] = loop.create_future()

    def settle(result: R | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(cast("R", result))

    def run() -> None:
        result, problem = None, None
        try:
            result = work(argument)
        except BaseException as error:  # noqa: BLE001 - the future gets it
            problem = error
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, result, problem)

    try:
        threading.Thread(target=run, daemon=True).start()
    except RuntimeError:
        return work(argument)
    return await future


def _read_from_descriptor(descriptor: int) -> "tuple[Policy, Login | None]":
    with policy_transfer.DescriptorReader(descriptor) as file:
        login = proxy_auth.take(file)
        return policy_transfer.receive(file), login
