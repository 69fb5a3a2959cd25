"""Worker process: unprivileged, with a `SandboxServer` for each sandbox.

A worker of the service serves many sandboxes. Its channel brings rule sets (a compiled policy each, shared by all
sandboxes with the same files), sandboxes with their sockets, facts to record, and pings. The worker has no state of
its own: when it dies, the service gives its sandboxes to another worker, which goes on accepting.

A worker of one run has `OnlySandbox` from its start, with one rule set; its channel is about that sandbox. Each worker
ends with the process that started it.
"""

import asyncio
import contextlib
import os
import resource
import socket
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast

from proxy.event_loop import turn
from proxy.event_loop.poller import Loop
from proxy.sandbox.sandbox_state import MOST, DescriptorQuotas, SandboxState, Task
from proxy.telemetry.events import Component
from proxy.telemetry.journal.writer import Journal
from proxy.wire import message
from proxy.worker.messages import Admission, OnlySandbox, RuleSetNews, SandboxNews, SandboxReport, Setup, WorkerAnswer
from proxy.worker.policy_swap import read_policy, release_policies
from proxy.worker.sandbox import SandboxServer, WorkerResources
from rules.values.addresses import normalize

if TYPE_CHECKING:
    from proxy.dialing.proxy_auth import Login
    from proxy.telemetry.prometheus.metrics import Metrics
    from proxy.telemetry.prometheus.scrape_server import ScrapeServer
    from proxy.telemetry.summary import Summary
    from rules.matching.policy import Policy
    from rules.values.addresses import Address

_MOST_DESCRIPTORS: Final = 16  # in one message
_SOCKETS: Final = frozenset({"tcp", "dns_udp", "udp", "answers"})  # every sandbox has these
_ONLY_SET: Final = 0  # the rules of the only sandbox


@dataclass(slots=True)
class _RuleSet:
    """One set of rule files: the policy in force, the policies to read, and the sandboxes that wait for the first."""

    policy: "Policy | None" = None
    login: "Login | None" = None
    pending_policy: int = -1
    policy_error: str = ""  # why the last policy could not be read
    waiting: "list[_WaitingSandbox]" = field(default_factory=list)
    servers: "dict[str, SandboxServer]" = field(default_factory=dict)


@dataclass(slots=True)
class _WaitingSandbox:
    """A sandbox that waits for its policy, with the messages received for it meanwhile."""

    sandbox: str
    state_under: "Callable[[Policy], SandboxState]"
    sockets: dict[str, socket.socket]
    before: int | None  # workers that have died while they served it; None: it ends with its first
    context: Context  # in which all of its work is done
    wait: float = 0.0  # seconds until the addresses of its names are free
    messages: list[SandboxNews] = field(default_factory=list)


def serve(setup: Setup) -> None:
    """Serve until a stop message arrives, or the parent process ends. Raises OSError when it can't start.

    The caller ends the process afterwards: a thread may still be importing modules for inspection.
    """
    sockets = {} if setup.only is None else _receive_sockets(setup.only.gate)
    if setup.only is not None and not sockets:
        return
    loop = Loop(None if setup.page is None else turn.Marker(setup.page))
    asyncio.set_event_loop(loop)
    loop.run_until_complete(SandboxServers(setup).run(sockets))


def _receive_sockets(gate: socket.socket) -> dict[str, socket.socket]:
    """Wait for the only sandbox's sockets, by name (enforcer.network.gate_sockets); empty if the run has ended."""
    fields, descriptors = message.receive(gate, _MOST_DESCRIPTORS)
    names = fields.get("sockets")
    return _sockets_by_name(map(str, names), descriptors) if isinstance(names, list) else {}


def _sockets_by_name(names: Iterable[str], descriptors: Iterable[int]) -> dict[str, socket.socket]:
    return {name: socket.socket(fileno=descriptor) for name, descriptor in zip(names, descriptors, strict=True)}


class SandboxServers:
    """All sandboxes of a worker. For one thread."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._control = setup.control
        self._journal = Journal(setup.journal)
        os.close(setup.journal)
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._resources = WorkerResources(
            self._journal,
            setup.keyholder,
            setup.roots,
            authority_expires=setup.authority_expires,
            descriptors=DescriptorQuotas(limit, MOST if setup.only is None else 1),
            forbidden=_parse_endpoints(setup.forbidden),
            in_turn=setup.only is None,
        )
        self._rule_sets: dict[int, _RuleSet] = {}
        self._rule_set_of: dict[str, int] = {}  # number of the rule set, by sandbox
        self._ended_metrics: Metrics | None = None  # metrics of ended sandboxes
        self._reports_metrics = False  # a ping has requested metrics
        self._tasks: set[asyncio.Task[None]] = set()
        self._policy_reader: asyncio.Task[None] | None = None
        self._stopped = asyncio.Event()
        self._unsent: deque[Mapping[str, object]] = deque()
        self._scrape_server: ScrapeServer | None = None

    async def run(self, sockets: dict[str, socket.socket]) -> None:
        """Serve until a stop message arrives. `sockets` belong to the only sandbox, if there is one."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._report_unexpected)
        self._control.setblocking(False)
        loop.add_reader(self._control, self._read_control)
        if self._setup.only is not None:
            await self._serve_only(self._setup.only, sockets)
        await self._stopped.wait()
        loop.remove_reader(self._control)
        summaries = [sandbox_server.close() for sandbox_server in self._sandbox_servers()]
        self._resources.close()
        if self._scrape_server is not None:
            await self._scrape_server.close()
        self._journal.close()  # the summary tells the run that it may sign the journal
        if self._setup.only is not None:
            self._send_last(*(SandboxReport(summary=summary.encode().decode()) for summary in summaries))

    async def _serve_only(self, only: OnlySandbox, sockets: dict[str, socket.socket]) -> None:
        """Start the sandbox of a worker that has no other."""
        state = only.state
        rules = self._rule_sets[_ONLY_SET] = _RuleSet(state.policy, only.login)
        self._rule_set_of[state.id] = _ONLY_SET
        self._start_sandbox(rules, _WaitingSandbox(state.id, lambda _: state, sockets, None, copy_context()))
        if only.metrics is not None and (served := rules.servers.get(state.id)) is not None:
            from proxy.telemetry.prometheus.scrape_server import ScrapeServer  # few runs have `--metrics`

            self._scrape_server = ScrapeServer(only.metrics, served.metrics)
            await self._scrape_server.start()

    def _read_control(self) -> None:
        """Handle the service's messages; stop if the service is gone."""
        try:
            fields, descriptors = message.receive(self._control, _MOST_DESCRIPTORS)
        except BlockingIOError:
            return
        except (OSError, ValueError):
            fields, descriptors = {}, []
        try:
            self._handle_message(fields, descriptors)
        except Exception as error:  # noqa: BLE001 - one bad message must not stop the worker
            self._report_failed_message(fields, f"{type(error).__name__}: {error}")
        finally:
            for descriptor in descriptors:  # those that no handler kept
                os.close(descriptor)

    def _report_failed_message(self, fields: Mapping[str, Any], why: str) -> None:
        """Report a message that could not be handled. A worker of one run records it in the journal, and goes on."""
        if self._setup.only is None:
            self._queue({"of": str(fields.get("admit", fields.get("to", ""))), "failed": why})
            return
        for sandbox_server in self._sandbox_servers():
            sandbox_server.recorder.error(Component.WORKER, why)
        if "stop" in fields:
            self._stopped.set()

    def _handle_message(self, fields: Mapping[str, Any], descriptors: list[int]) -> None:
        only = self._setup.only
        if not fields or (only is None and fields.keys() == {"stop"}):
            self._stopped.set()
        elif "set" in fields or (only is not None and "rules" in fields):
            self._receive_policy(int(fields.get("set", _ONLY_SET)), cast("RuleSetNews", fields), descriptors)
        elif "forget" in fields:
            self._drop_rule_set(int(fields["forget"]))
        elif "admit" in fields:
            self._admit(cast("Admission", fields), descriptors)
        elif fields.get("keyholder") is True and descriptors:
            self._resources.signer.renew(socket.socket(fileno=descriptors.pop(0)))
        elif fields.get("roots") is True and descriptors:
            pem = os.pread(descriptors[0], os.fstat(descriptors[0]).st_size, 0)
            self._resources.renew_roots(pem)
        elif "ask" in fields:
            self._answer_ping(int(fields["ask"]), with_metrics="metrics" in fields)
        elif "to" in fields or only is not None:
            sandbox = str(fields["to"]) if only is None else only.state.id
            if fields.get("approvals") is True and descriptors:
                self._renew(sandbox, socket.socket(fileno=descriptors.pop(0)))
            self._deliver(sandbox, cast("SandboxNews", fields))

    # --- rules ---

    def _receive_policy(self, number: int, fields: RuleSetNews, descriptors: list[int]) -> None:
        rules = self._rule_sets.setdefault(number, _RuleSet())
        if isinstance(problems := fields.get("rejected"), list):
            for sandbox_server in rules.servers.values():
                sandbox_server.recorder.rules_rejected(list(map(str, problems)))
        if descriptors:
            if rules.pending_policy >= 0:
                os.close(rules.pending_policy)
            rules.pending_policy, rules.policy_error = descriptors.pop(0), ""
            if self._policy_reader is None:
                self._policy_reader = asyncio.get_running_loop().create_task(self._read_pending_policies())

    async def _read_pending_policies(self) -> None:
        """Read the policies that wait, one after the other."""
        try:
            while waiting := [rules for rules in self._rule_sets.values() if rules.pending_policy >= 0]:
                rules = waiting[0]
                descriptor, rules.pending_policy = rules.pending_policy, -1
                try:
                    policy, login = await read_policy(descriptor)
                except Exception as error:  # noqa: BLE001 - the policy in force stays
                    self._reject(rules, f"{type(error).__name__}: {error}")
                    continue
                try:
                    await self._put_in_force(rules, policy, login)
                except Exception as error:  # noqa: BLE001 - a newer policy may wait already
                    for sandbox_server in rules.servers.values():
                        sandbox_server.recorder.error(Component.WORKER, f"{type(error).__name__}: {error}")
        finally:
            self._policy_reader = None

    async def _put_in_force(self, rules: _RuleSet, policy: "Policy", login: "Login | None") -> None:
        replaced = [] if rules.policy is None else [rules.policy]
        rules.policy, rules.login = policy, login
        for sandbox_server in tuple(rules.servers.values()):
            try:
                self._in_turn(sandbox_server.context, sandbox_server.swap, policy, login)
            except Exception as error:  # noqa: BLE001 - the other sandboxes still get the new policy
                sandbox_server.recorder.error(Component.WORKER, f"{type(error).__name__}: {error}")
            await asyncio.sleep(0)
        while rules.waiting:
            self._start_sandbox(rules, rules.waiting[0])
            rules.waiting.pop(0)
            await asyncio.sleep(0)
        if replaced:
            await release_policies(replaced)

    def _reject(self, rules: _RuleSet, why: str) -> None:
        """Record that a policy can't be read. The one in force stays; without one, no sandbox is served."""
        if rules.pending_policy < 0:
            rules.policy_error = why
        problem = f"the gate can't read the new rules, and keeps the earlier ones: {why}"
        for sandbox_server in rules.servers.values():
            sandbox_server.recorder.error(Component.WORKER, problem)
            sandbox_server.recorder.rules_rejected([problem])
        waiting, rules.waiting = rules.waiting, []
        for admission in waiting:
            self._fail(admission, why, "unread")

    def _drop_rule_set(self, number: int) -> None:
        rules = self._rule_sets.get(number)
        if rules is None or rules.servers or rules.waiting:
            return
        del self._rule_sets[number]
        if rules.pending_policy >= 0:
            os.close(rules.pending_policy)

    # --- sandboxes ---

    def _admit(self, fields: Admission, descriptors: list[int]) -> None:
        sandbox, number, names = str(fields["admit"]), int(fields["under"]), list(map(str, fields["sockets"]))
        if sandbox in self._rule_set_of or len(names) != len(descriptors) or number not in self._rule_sets:
            raise ValueError("the sandbox is known already, its rule set is not, or descriptors are missing")
        if not _SOCKETS.issubset(names):
            raise ValueError("the sandbox's sockets are incomplete")
        if self._resources.descriptors.is_full:
            raise ValueError("this worker has no descriptors left for another sandbox")
        task = Task(str(fields["id"]), str(fields["name"]), {str(k): str(v) for k, v in dict(fields["labels"]).items()})
        foreign, setup = fields["foreign"] is True, self._setup
        context, before, wait = turn.context_of(int(fields["turn"])), int(fields["before"]), float(fields["wait"])
        sockets = _sockets_by_name(names, descriptors)
        descriptors.clear()

        def state_under(policy: "Policy") -> SandboxState:
            state = SandboxState(sandbox, task, policy, setup.own_addresses, setup.gate_port)
            state.is_foreign = foreign
            return state

        admission = _WaitingSandbox(sandbox, state_under, sockets, before, context, wait)
        self._rule_set_of[sandbox] = number
        rules = self._rule_sets[number]
        if rules.policy is not None:
            self._start_sandbox(rules, admission)
        elif rules.policy_error:
            self._fail(admission, rules.policy_error, "unread")
        else:
            rules.waiting.append(admission)

    def _start_sandbox(self, rules: _RuleSet, admission: _WaitingSandbox) -> None:
        assert rules.policy is not None
        loop, state = asyncio.get_running_loop(), admission.state_under(rules.policy)

        def start() -> None:
            sandbox_server = SandboxServer(
                state,
                admission.sockets,
                self._resources,
                rules.login,
                before=admission.before,
                wait=admission.wait,
                on_failure=lambda why: loop.call_soon(self._stop_failed_sandbox, admission, why),
            )
            rules.servers[admission.sandbox] = sandbox_server
            sandbox_server.start()

        try:
            self._in_turn(admission.context, start)
        except Exception as error:  # noqa: BLE001 - the other sandboxes are still served
            self._fail(admission, f"{type(error).__name__}: {error}")
            return
        for fields in admission.messages:
            self._deliver(admission.sandbox, fields)

    def _stop_failed_sandbox(self, admission: _WaitingSandbox, why: str) -> None:
        """Stop serving a sandbox whose traffic can't be served."""
        if admission.sandbox in self._rule_set_of:
            self._fail(admission, why)

    def _fail(self, admission: _WaitingSandbox, why: str, word: str = "failed") -> None:
        """Serve a sandbox no more, and report why: `unread` where its policy can't be read, `failed` otherwise.

        The service then closes its copies of the sandbox's sockets. A worker of one run ends.
        """
        if self._setup.only is not None:
            self._queue({word: why})
            self._stopped.set()
            return
        rules = self._rule_sets[self._rule_set_of[admission.sandbox]]
        if (sandbox_server := rules.servers.get(admission.sandbox)) is not None:
            self._remove(admission.sandbox, rules, sandbox_server)
        else:
            del self._rule_set_of[admission.sandbox]
        for sock in admission.sockets.values():
            sock.close()
        self._queue({"of": admission.sandbox, word: why})

    def _deliver(self, sandbox: str, fields: SandboxNews) -> None:
        number = self._rule_set_of.get(sandbox)
        if number is None:
            return
        rules = self._rule_sets[number]
        sandbox_server = rules.servers.get(sandbox)
        if sandbox_server is None:
            for admission in rules.waiting:
                if admission.sandbox == sandbox:
                    admission.messages.append(fields)
            return
        self._in_turn(sandbox_server.context, sandbox_server.handle_message, fields)
        if "lost" in fields:
            sandbox_server.recorder.error(Component.WORKER, str(fields["lost"]))
        if "stop" in fields:
            ending = self._end(sandbox, rules, sandbox_server, drain="lost" not in fields)
            task = asyncio.get_running_loop().create_task(ending, context=sandbox_server.context.copy())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _renew(self, sandbox: str, channel: socket.socket) -> None:
        """Give a sandbox another channel to the approvals server."""
        rules = self._rule_sets.get(self._rule_set_of.get(sandbox, -1), _RuleSet())
        if (sandbox_server := rules.servers.get(sandbox)) is not None:
            self._in_turn(sandbox_server.context, sandbox_server.renew_approvals, channel)
            return
        admission = next((one for one in rules.waiting if one.sandbox == sandbox), None)
        before = channel if admission is None else admission.sockets.get("approvals")
        if before is not None:
            before.close()
        if admission is not None:
            admission.sockets["approvals"] = channel

    async def _end(self, sandbox: str, rules: _RuleSet, sandbox_server: SandboxServer, *, drain: bool) -> None:
        """End a sandbox: its task is over."""
        try:
            if drain:
                await sandbox_server.drain()
        except Exception as error:  # noqa: BLE001 - `close` ends open connections, and records that
            sandbox_server.recorder.error(Component.WORKER, f"{type(error).__name__}: {error}")
        if self._setup.only is not None:
            self._stopped.set()
        elif rules.servers.get(sandbox) is sandbox_server:
            summary = self._remove(sandbox, rules, sandbox_server)
            self._queue(SandboxReport(of=sandbox, summary=summary.encode().decode()))

    def _remove(self, sandbox: str, rules: _RuleSet, sandbox_server: SandboxServer) -> "Summary":
        """Close a sandbox's sockets, keep its counts, and forget it."""
        from proxy.telemetry.prometheus.totals import add, total  # as below

        del rules.servers[sandbox], self._rule_set_of[sandbox]
        try:
            return sandbox_server.close()
        finally:
            sandbox_server.close_sockets()
            self._ended_metrics = self._ended_metrics or total()
            add(self._ended_metrics, sandbox_server.metrics, ended=True)

    def _in_turn(self, context: Context, work: Callable[..., object], *arguments: object) -> None:
        """Run work of one sandbox, marked as its turn in case the worker dies of it."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Loop)
        loop.in_turn(context, work, *arguments)

    # --- messages to the service ---

    def _answer_ping(self, number: int, *, with_metrics: bool) -> None:
        """Answer a ping of the service; `with_metrics`: with all counts."""
        if not with_metrics:
            self._queue(WorkerAnswer(answer=number))
            return
        from proxy.telemetry.prometheus.totals import pieces  # a run without a service never needs it

        self._reports_metrics = True
        for piece in pieces(self._total_metrics()):
            self._queue({"answer": number, **piece})  # `WorkerAnswer`

    def _total_metrics(self) -> "Metrics":
        """Return the counts of all sandboxes, also of ended ones."""
        from proxy.telemetry.prometheus.metrics import read_process
        from proxy.telemetry.prometheus.totals import add, total

        metrics_sum = total()
        for metrics in (self._ended_metrics, *(sandbox_server.metrics for sandbox_server in self._sandbox_servers())):
            if metrics is not None:
                add(metrics_sum, metrics)
        use = read_process(os.getpid())
        metrics_sum.processes = {} if use is None else {"worker": use}
        return metrics_sum

    def _queue(self, what: Mapping[str, object]) -> None:
        """Queue a message to the service."""
        self._unsent.append(what)
        if len(self._unsent) == 1:
            self._send()

    def _send(self) -> None:
        """Send queued messages as far as the service takes them; ignore a service that is gone."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            while self._unsent:
                try:
                    message.send(self._control, self._unsent[0])
                except BlockingIOError:
                    loop.add_writer(self._control, self._send)
                    return
                self._unsent.popleft()
        self._unsent.clear()
        loop.remove_writer(self._control)

    def _send_last(self, *last: Mapping[str, object]) -> None:
        """Send all queued messages, and wait until they are taken."""
        if self._reports_metrics:
            self._answer_ping(0, with_metrics=True)
        self._control.setblocking(True)
        with contextlib.suppress(OSError):
            for what in (*self._unsent, *last):
                message.send(self._control, what)

    def _sandbox_servers(self) -> list[SandboxServer]:
        return [sandbox_server for rules in self._rule_sets.values() for sandbox_server in rules.servers.values()]

    def _report_unexpected(self, _loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        """Report an unexpected exception in every journal, as its sandbox is unknown."""
        for sandbox_server in self._sandbox_servers()[:1]:
            sandbox_server.recorder.error(Component.WORKER, _describe_error(context))


def _describe_error(context: dict[str, object]) -> str:
    """Format the context of a loop's exception handler."""
    error = context.get("exception")
    return str(context.get("message", "")) if error is None else f"{type(error).__name__}: {error}"


def _parse_endpoints(endpoints: tuple[tuple[str, int], ...]) -> "frozenset[tuple[Address, int]]":
    return frozenset((normalize(host), port) for host, port in endpoints)
