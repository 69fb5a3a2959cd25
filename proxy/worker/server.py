"""Worker process: unprivileged, with a `SandboxServer` for each sandbox.

A worker of the service serves many sandboxes. Its channel brings rule sets (a compiled policy each, shared by all
sandboxes with the same files), sandboxes with their sockets, facts to record, and queries. The worker has no state of
its own: when it dies, the service gives another one the same, which goes on accepting.

A worker of one run has `OnlySandbox` from its start, with one rule set; its channel is about that sandbox. Each worker
ends with the process that started it, which would record its end.
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
from rules.addresses import normalize

if TYPE_CHECKING:
    from proxy.dialing.proxy_auth import Login
    from proxy.telemetry.prometheus.metrics import Metrics
    from proxy.telemetry.prometheus.scrape_server import ScrapeServer
    from proxy.telemetry.summary import Summary
    from rules.addresses import Address
    from rules.matching.policy import Policy

_MOST_DESCRIPTORS: Final = 16  # in one message
_SOCKETS: Final = frozenset({"tcp", "dns_udp", "udp", "answers"})  # without which there is no sandbox_server
_ONLY_SET: Final = 0  # the rules of the only sandbox


@dataclass(slots=True)
class _Rules:
    """One set of rule files: the policy in force, the policies to read, and the sandboxes that wait for the first."""

    policy: "Policy | None" = None
    login: "Login | None" = None
    newest: int = -1
    unread: str = ""  # why the last policy could not be read
    waiting: "list[_WaitingSandbox]" = field(default_factory=list)
    members: "dict[str, SandboxServer]" = field(default_factory=dict)


@dataclass(slots=True)
class _WaitingSandbox:
    """A sandbox that waits for its policy, with the messages received for it meanwhile."""

    sandbox: str
    state_under: "Callable[[Policy], SandboxState]"
    sockets: dict[str, socket.socket]
    before: int | None  # workers that have died while they served it; None: it ends with its first
    context: Context  # in which all of its work is done
    wait: float = 0.0  # seconds until the addresses of its names are free
    said: list[SandboxNews] = field(default_factory=list)


def serve(setup: Setup) -> None:
    """Serve until told to stop, or until who started the worker is gone. Raises OSError when it can't begin.

    The process is to end when this returns: a thread that still imports what inspection needs is not waited for.
    """
    sockets = {} if setup.only is None else _received(setup.only.gate)
    if setup.only is not None and not sockets:
        return
    loop = Loop(None if setup.page is None else turn.Marker(setup.page))
    asyncio.set_event_loop(loop)
    loop.run_until_complete(SandboxServers(setup).run(sockets))


def _received(gate: socket.socket) -> dict[str, socket.socket]:
    """Wait for the only sandbox's sockets, by their names in enforcer.network.gate_sockets; none: there are none."""
    said, descriptors = message.receive(gate, _MOST_DESCRIPTORS)
    names = said.get("sockets")
    return _named(map(str, names), descriptors) if isinstance(names, list) else {}


def _named(names: Iterable[str], descriptors: Iterable[int]) -> dict[str, socket.socket]:
    return {name: socket.socket(fileno=each) for name, each in zip(names, descriptors, strict=True)}


class SandboxServers:
    """All sandboxes of a worker. For one thread."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._control = setup.control
        self._journal = Journal(setup.journal)
        os.close(setup.journal)
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._common = WorkerResources(
            self._journal,
            setup.keyholder,
            setup.roots,
            authority_expires=setup.authority_expires,
            descriptors=DescriptorQuotas(limit, MOST if setup.only is None else 1),
            forbidden=_endpoints(setup.forbidden),
            in_turn=setup.only is None,
        )
        self._sets: dict[int, _Rules] = {}
        self._under: dict[str, int] = {}  # which set a sandbox is under
        self._ended: Metrics | None = None  # what was counted of those that are gone
        self._counts_wanted = False  # somebody has asked what is counted
        self._tasks: set[asyncio.Task[None]] = set()
        self._taking: asyncio.Task[None] | None = None
        self._stopped = asyncio.Event()
        self._unsent: deque[Mapping[str, object]] = deque()
        self._scrapes: ScrapeServer | None = None

    async def run(self, sockets: dict[str, socket.socket]) -> None:
        """Serve until told to stop. `sockets` belong to the only sandbox, if there is one."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._unexpected)
        self._control.setblocking(False)
        loop.add_reader(self._control, self._hear)
        if self._setup.only is not None:
            await self._serve_only(self._setup.only, sockets)
        await self._stopped.wait()
        loop.remove_reader(self._control)
        summaries = [sandbox_server.close() for sandbox_server in self._sandbox_servers()]
        self._common.close()
        if self._scrapes is not None:
            await self._scrapes.close()
        self._journal.close()  # who hears the next may sign what is in it
        if self._setup.only is not None:
            self._say_last(*(SandboxReport(summary=summary.encode().decode()) for summary in summaries))

    async def _serve_only(self, only: OnlySandbox, sockets: dict[str, socket.socket]) -> None:
        """Start the sandbox of a worker that has no other."""
        state = only.state
        rules = self._sets[_ONLY_SET] = _Rules(state.policy, only.login)
        self._under[state.id] = _ONLY_SET
        self._begin(rules, _WaitingSandbox(state.id, lambda _: state, sockets, None, copy_context()))
        if only.metrics is not None and (served := rules.members.get(state.id)) is not None:
            from proxy.telemetry.prometheus.scrape_server import ScrapeServer  # few runs have `--metrics`

            self._scrapes = ScrapeServer(only.metrics, served.metrics)
            await self._scrapes.start()

    def _hear(self) -> None:
        """Handle the service's messages; stop if the service is gone."""
        try:
            said, descriptors = message.receive(self._control, _MOST_DESCRIPTORS)
        except BlockingIOError:
            return
        except (OSError, ValueError):
            said, descriptors = {}, []
        try:
            self._obey(said, descriptors)
        except Exception as error:  # noqa: BLE001 - what one message has wrong is no other's trouble
            self._disobey(said, f"{type(error).__name__}: {error}")
        finally:
            for descriptor in descriptors:  # those that nobody took
                os.close(descriptor)

    def _disobey(self, said: Mapping[str, Any], why: str) -> None:
        """Report a message that could not be obeyed. An only sandbox is served still, so its journal has it."""
        if self._setup.only is None:
            self._say({"of": str(said.get("admit", said.get("to", ""))), "failed": why})
            return
        for sandbox_server in self._sandbox_servers():
            sandbox_server.recorder.error(Component.WORKER, why)
        if "stop" in said:
            self._stopped.set()

    def _obey(self, said: Mapping[str, Any], descriptors: list[int]) -> None:
        only = self._setup.only
        if not said or (only is None and said.keys() == {"stop"}):
            self._stopped.set()
        elif "set" in said or (only is not None and "rules" in said):
            self._take(int(said.get("set", _ONLY_SET)), cast("RuleSetNews", said), descriptors)
        elif "forget" in said:
            self._forget(int(said["forget"]))
        elif "admit" in said:
            self._admit(cast("Admission", said), descriptors)
        elif said.get("keyholder") is True and descriptors:
            self._common.signer.renew(socket.socket(fileno=descriptors.pop(0)))
        elif said.get("roots") is True and descriptors:
            pem = os.pread(descriptors[0], os.fstat(descriptors[0]).st_size, 0)
            self._common.renew_roots(pem)
        elif "ask" in said:
            self._answer(int(said["ask"]), whole="metrics" in said)
        elif "to" in said or only is not None:
            sandbox = str(said["to"]) if only is None else only.state.id
            if said.get("approvals") is True and descriptors:
                self._renew(sandbox, socket.socket(fileno=descriptors.pop(0)))
            self._tell(sandbox, cast("SandboxNews", said))

    # --- rules ---

    def _take(self, number: int, said: RuleSetNews, descriptors: list[int]) -> None:
        rules = self._sets.setdefault(number, _Rules())
        if isinstance(problems := said.get("rejected"), list):
            for sandbox_server in rules.members.values():
                sandbox_server.recorder.rules_rejected(list(map(str, problems)))
        if descriptors:
            if rules.newest >= 0:
                os.close(rules.newest)
            rules.newest, rules.unread = descriptors.pop(0), ""
            if self._taking is None:
                self._taking = asyncio.get_running_loop().create_task(self._take_all())

    async def _take_all(self) -> None:
        """Read the policies that wait, one after the other."""
        try:
            while waiting := [rules for rules in self._sets.values() if rules.newest >= 0]:
                rules = waiting[0]
                descriptor, rules.newest = rules.newest, -1
                try:
                    policy, login = await read_policy(descriptor)
                except Exception as error:  # noqa: BLE001 - whatever it is, what is in force stays
                    self._reject(rules, f"{type(error).__name__}: {error}")
                    continue
                try:
                    await self._put_in_force(rules, policy, login)
                except Exception as error:  # noqa: BLE001 - a newer policy may wait already
                    for sandbox_server in rules.members.values():
                        sandbox_server.recorder.error(Component.WORKER, f"{type(error).__name__}: {error}")
        finally:
            self._taking = None

    async def _put_in_force(self, rules: _Rules, policy: "Policy", login: "Login | None") -> None:
        dropped = [] if rules.policy is None else [rules.policy]
        rules.policy, rules.login = policy, login
        for sandbox_server in tuple(rules.members.values()):
            try:
                self._in_turn(sandbox_server.context, sandbox_server.swap, policy, login)
            except Exception as error:  # noqa: BLE001 - the others are to get theirs
                sandbox_server.recorder.error(Component.WORKER, f"{type(error).__name__}: {error}")
            await asyncio.sleep(0)
        while rules.waiting:
            self._begin(rules, rules.waiting[0])
            rules.waiting.pop(0)
            await asyncio.sleep(0)
        if dropped:
            await release_policies(dropped)

    def _reject(self, rules: _Rules, why: str) -> None:
        """Record that a policy can't be read. The one in force stays; without one, no sandbox is served."""
        if rules.newest < 0:
            rules.unread = why
        problem = f"new rules could not be taken over: {why}"
        for sandbox_server in rules.members.values():
            sandbox_server.recorder.error(Component.WORKER, problem)
            sandbox_server.recorder.rules_rejected([problem])
        waiting, rules.waiting = rules.waiting, []
        for admission in waiting:
            self._fail(admission, why, "unread")

    def _forget(self, number: int) -> None:
        rules = self._sets.get(number)
        if rules is None or rules.members or rules.waiting:
            return
        del self._sets[number]
        if rules.newest >= 0:
            os.close(rules.newest)

    # --- sandboxes ---

    def _admit(self, said: Admission, descriptors: list[int]) -> None:
        sandbox, number, names = str(said["admit"]), int(said["under"]), list(map(str, said["sockets"]))
        if sandbox in self._under or len(names) != len(descriptors) or number not in self._sets:
            raise ValueError("this can't be admitted")
        if not _SOCKETS.issubset(names):
            raise ValueError("these are not a sandbox's sockets")
        if self._common.descriptors.is_full:
            raise ValueError("this worker has no descriptors left for another sandbox")
        task = Task(str(said["id"]), str(said["name"]), {str(k): str(v) for k, v in dict(said["labels"]).items()})
        foreign, setup = said["foreign"] is True, self._setup
        context, before, wait = turn.context_of(int(said["turn"])), int(said["before"]), float(said["wait"])
        sockets = _named(names, descriptors)
        descriptors.clear()

        def state_under(policy: "Policy") -> SandboxState:
            state = SandboxState(sandbox, task, policy, setup.own_addresses, setup.gate_port)
            state.is_foreign = foreign
            return state

        admission = _WaitingSandbox(sandbox, state_under, sockets, before, context, wait)
        self._under[sandbox] = number
        rules = self._sets[number]
        if rules.policy is not None:
            self._begin(rules, admission)
        elif rules.unread:
            self._fail(admission, rules.unread, "unread")
        else:
            rules.waiting.append(admission)

    def _begin(self, rules: _Rules, admission: _WaitingSandbox) -> None:
        assert rules.policy is not None
        loop, state = asyncio.get_running_loop(), admission.state_under(rules.policy)

        def begin() -> None:
            sandbox_server = SandboxServer(
                state,
                admission.sockets,
                self._common,
                rules.login,
                before=admission.before,
                wait=admission.wait,
                gave_up=lambda why: loop.call_soon(self._give_up, admission, why),  # once what it is doing is over
            )
            rules.members[admission.sandbox] = sandbox_server
            sandbox_server.start()

        try:
            self._in_turn(admission.context, begin)
        except Exception as error:  # noqa: BLE001 - whatever it is, this one is not served, and the others are
            self._fail(admission, f"{type(error).__name__}: {error}")
            return
        for said in admission.said:
            self._tell(admission.sandbox, said)

    def _give_up(self, admission: _WaitingSandbox, why: str) -> None:
        """Stop serving a sandbox whose traffic can't be served."""
        if admission.sandbox in self._under:
            self._fail(admission, why)

    def _fail(self, admission: _WaitingSandbox, why: str, word: str = "failed") -> None:
        """Serve a sandbox no more, and report why: `unread` where its policy can't be read, `failed` otherwise.

        Who hears it closes its copies of the sandbox's sockets. A worker that has no other sandbox ends.
        """
        if self._setup.only is not None:
            self._say({word: why})
            self._stopped.set()
            return
        rules = self._sets[self._under[admission.sandbox]]
        if (sandbox_server := rules.members.get(admission.sandbox)) is not None:
            self._leave(admission.sandbox, rules, sandbox_server)
        else:
            del self._under[admission.sandbox]
        for sock in admission.sockets.values():
            sock.close()
        self._say({"of": admission.sandbox, word: why})

    def _tell(self, sandbox: str, said: SandboxNews) -> None:
        number = self._under.get(sandbox)
        if number is None:
            return
        rules = self._sets[number]
        sandbox_server = rules.members.get(sandbox)
        if sandbox_server is None:
            for admission in rules.waiting:
                if admission.sandbox == sandbox:
                    admission.said.append(said)
            return
        self._in_turn(sandbox_server.context, sandbox_server.hear, said)
        if "lost" in said:
            sandbox_server.recorder.error(Component.WORKER, str(said["lost"]))
        if "stop" in said:
            ending = self._end(sandbox, rules, sandbox_server, drain="lost" not in said)
            task = asyncio.get_running_loop().create_task(ending, context=sandbox_server.context.copy())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _renew(self, sandbox: str, channel: socket.socket) -> None:
        """Give a sandbox another channel to the approvals server."""
        rules = self._sets.get(self._under.get(sandbox, -1), _Rules())
        if (sandbox_server := rules.members.get(sandbox)) is not None:
            self._in_turn(sandbox_server.context, sandbox_server.renew_approvals, channel)
            return
        admission = next((one for one in rules.waiting if one.sandbox == sandbox), None)
        before = channel if admission is None else admission.sockets.get("approvals")
        if before is not None:
            before.close()
        if admission is not None:
            admission.sockets["approvals"] = channel

    async def _end(self, sandbox: str, rules: _Rules, sandbox_server: SandboxServer, *, drain: bool) -> None:
        """End a sandbox: its task is over."""
        try:
            if drain:
                await sandbox_server.drain()
        except Exception as error:  # noqa: BLE001 - what is open is closed then, and its end recorded
            sandbox_server.recorder.error(Component.WORKER, f"{type(error).__name__}: {error}")
        if self._setup.only is not None:
            self._stopped.set()
        elif rules.members.get(sandbox) is sandbox_server:
            summary = self._leave(sandbox, rules, sandbox_server)
            self._say(SandboxReport(of=sandbox, summary=summary.encode().decode()))

    def _leave(self, sandbox: str, rules: _Rules, sandbox_server: SandboxServer) -> "Summary":
        """Close a sandbox's sockets, keep its counts, and forget it."""
        from proxy.telemetry.prometheus.totals import add, total  # as below

        del rules.members[sandbox], self._under[sandbox]
        try:
            return sandbox_server.close()
        finally:
            sandbox_server.let_go()
            self._ended = self._ended or total()
            add(self._ended, sandbox_server.metrics, ended=True)

    def _in_turn(self, context: Context, work: Callable[..., object], *arguments: object) -> None:
        """Run work of one sandbox, marked as its turn in case the worker dies of it."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Loop)
        loop.in_turn(context, work, *arguments)

    # --- what is said ---

    def _answer(self, number: int, *, whole: bool) -> None:
        """Answer a ping of the service; `whole`: with all counts."""
        if not whole:
            self._say(WorkerAnswer(answer=number))
            return
        from proxy.telemetry.prometheus.totals import pieces  # a run without a service counts for nobody else

        self._counts_wanted = True
        for piece in pieces(self._counted()):
            self._say({"answer": number, **piece})  # `WorkerAnswer`

    def _counted(self) -> "Metrics":
        """Return the counts of all sandboxes, also of ended ones."""
        from proxy.telemetry.prometheus.metrics import read_process
        from proxy.telemetry.prometheus.totals import add, total

        counted = total()
        for metrics in (self._ended, *(sandbox_server.metrics for sandbox_server in self._sandbox_servers())):
            if metrics is not None:
                add(counted, metrics)
        use = read_process(os.getpid())
        counted.processes = {} if use is None else {"worker": use}
        return counted

    def _say(self, what: Mapping[str, object]) -> None:
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

    def _say_last(self, *last: Mapping[str, object]) -> None:
        """Send all queued messages, and wait until they are taken."""
        if self._counts_wanted:
            self._answer(0, whole=True)
        self._control.setblocking(True)
        with contextlib.suppress(OSError):
            for what in (*self._unsent, *last):
                message.send(self._control, what)

    def _sandbox_servers(self) -> list[SandboxServer]:
        return [sandbox_server for rules in self._sets.values() for sandbox_server in rules.members.values()]

    def _unexpected(self, _loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        """Report an unexpected exception in every journal, as its sandbox is unknown."""
        for sandbox_server in self._sandbox_servers()[:1]:
            sandbox_server.recorder.error(Component.WORKER, _in_words(context))


def _in_words(context: dict[str, object]) -> str:
    """Format the context of a loop's exception handler."""
    error = context.get("exception")
    return str(context.get("message", "")) if error is None else f"{type(error).__name__}: {error}"


def _endpoints(places: tuple[tuple[str, int], ...]) -> "frozenset[tuple[Address, int]]":
    return frozenset((normalize(host), port) for host, port in places)
