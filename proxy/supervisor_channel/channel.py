"""Channel to the seccomp supervisor: attributes connections to processes, and decides on programs.

`SupervisorChannel` handles the messages of `messages`. `ProcessAttribution` finds a connection's socket inode with
sock_diag(7) and asks the supervisor for the process that has it open.
"""

import asyncio
import contextlib
import os
import socket
import struct
import time
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.event_loop.poller import IN
from proxy.event_loop.rate_limiter import RateLimiter
from proxy.supervisor_channel import messages
from proxy.supervisor_channel.program_approval import ProgramApprovals, ProgramStart
from proxy.telemetry.events import Component, Process
from proxy.telemetry.journal.writer import JournalWriteError
from proxy.telemetry.visible import visible
from proxy.wire import message
from proxy.wire.netlink import HEADER, NLM_F_REQUEST
from rules.decision import Decision
from rules.matching.commands import ProgramRun, decide_run
from rules.verdicts import Reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.event_loop.poller import Poller
    from proxy.sandbox.recorder import Recorder


type Endpoint = tuple[IPv4Address | IPv6Address, int]

_SOCK_DIAG_BY_FAMILY = 20  # linux/sock_diag.h
_REQUEST = struct.Struct("=BBBxI")  # struct inet_diag_req_v2: family, protocol, extensions, states; then the id
_ID = struct.Struct("!HH16s16s")  # struct inet_diag_sockid: source port, destination port, source, destination
_ID_END = struct.Struct("=III")  # its interface, and the cookie: INET_DIAG_NOCOOKIE
_ANSWER_ID, _ANSWER_END = 4, struct.Struct("=IIIII")  # struct inet_diag_msg: expires, rqueue, wqueue, uid, inode
_ID_BYTES = _ID.size + _ID_END.size
_QUERY_BYTES = HEADER.size + _REQUEST.size + _ID_BYTES  # no padding follows: a multiple of four
_ANSWER_BYTES = HEADER.size + _ANSWER_ID + _ID_BYTES + _ANSWER_END.size
_SEQUENCE = slice(8, 12)  # of a netlink header
_NO_COOKIE, _EVERY_STATE = 0xFFFFFFFF, 0xFFFFFFFF
_LO = 1  # the only interface of a sandbox; a socket bound to it is found only under it


class Owner(NamedTuple):
    """Inode of a socket, and the uid that created it, as seen from the namespace of the query."""

    inode: int
    uid: int


def look_up_owner(diag: socket.socket, protocol: int, local: Endpoint, remote: Endpoint) -> Owner | None:
    """Look up the inode and uid of the socket with these two ends (sock_diag(7)); None: unknown. Never blocks.

    `local` is the task's end (accept's peer), `remote` where it connected to (getsockname of the accepted socket).
    `protocol` is IPPROTO_TCP or IPPROTO_UDP.
    """
    for interface in (0, _LO):
        request = encode_query(protocol, local, remote, interface=interface)
        sequence = request[_SEQUENCE]
        with contextlib.suppress(OSError):
            diag.send(request, socket.MSG_DONTWAIT)
            data = b""
            while data[_SEQUENCE] != sequence:  # skip answers to earlier, failed queries
                data = diag.recv(8192, socket.MSG_DONTWAIT)  # the kernel answers before send returns
            if owner := parse_owner(data, protocol, local, remote):
                return owner
    return None


def encode_query(protocol: int, local: Endpoint, remote: Endpoint, *, interface: int = 0) -> bytes:
    """Return the netlink request for the one socket with these ends."""
    # The kernel swaps the two for UDP, "for historical reasons" (udp_diag.c, udp_dump_one).
    first, second = (local, remote) if protocol == socket.IPPROTO_TCP else (remote, local)
    family = socket.AF_INET if first[0].version == 4 else socket.AF_INET6
    tuple_ = _ID.pack(first[1], second[1], first[0].packed, second[0].packed)
    return (
        HEADER.pack(_QUERY_BYTES, _SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, int.from_bytes(os.urandom(4)), 0)
        + _REQUEST.pack(family, protocol, 0, _EVERY_STATE)
        + tuple_
        + _ID_END.pack(interface, _NO_COOKIE, _NO_COOKIE)
    )


def parse_owner(data: bytes, protocol: int, local: Endpoint, remote: Endpoint) -> Owner | None:
    """Return the owner that one answer names, if it is the answer for exactly these ends.

    Where no connection has them the kernel falls back to a listener on the port: that is another socket.
    """
    if len(data) < _ANSWER_BYTES:
        return None
    length, kind, *_ = HEADER.unpack_from(data)
    if kind != _SOCK_DIAG_BY_FAMILY or not _ANSWER_BYTES <= length <= len(data):
        return None
    family, offset = data[HEADER.size], HEADER.size + _ANSWER_ID
    sport, dport, source, destination = _ID.unpack_from(data, offset)
    local_end, remote_end = (_address(family, source), sport), (_address(family, destination), dport)
    # An unconnected UDP socket has no remote end, and often no local address.
    unconnected = protocol == socket.IPPROTO_UDP and sport == local[1] and not dport
    if (local_end == local and remote_end == remote) or (unconnected and (local_end == local or not int(local_end[0]))):
        *_, uid, inode = _ANSWER_END.unpack_from(data, offset + _ID_BYTES)
        return Owner(inode, uid) if inode else None  # 0: the process has closed it
    return None


def _address(family: int, packed: bytes) -> IPv4Address | IPv6Address:
    if family == socket.AF_INET:
        return IPv4Address(packed[:4])
    address = IPv6Address(packed)
    return address.ipv4_mapped or address


AT_ONCE: Final = 20
A_SECOND: Final = 10.0
PATIENCE: Final = 0.05  # seconds that a denial waits for the process
_MOST_PENDING: Final = 64  # lookups without an answer


class Attribution:
    """Process of one connection, once it is known; `process` stays None if the supervisor can't find it."""

    __slots__ = ("_callback", "_timer", "process", "waiting")

    def __init__(self) -> None:
        self.process: Process | None = None
        self.waiting = True
        self._callback: Callable[[], None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def then(self, callback: "Callable[[], None]") -> None:
        """Call `callback` once: when the process is known, or after PATIENCE. It must not raise."""
        self._callback = callback
        self._timer = asyncio.get_running_loop().call_later(PATIENCE, self._call)

    def set_process(self, process: Process | None) -> None:
        """Set the process and call what waits for it."""
        self.process = process
        self.waiting = False
        if self._callback is not None:
            self._call()

    def _call(self) -> None:
        callback, self._callback = self._callback, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if callback is not None:
            callback()


class ProcessAttribution:
    """Finds the processes of one sandbox's connections.

    `diag` is a netlink socket of its network namespace; `channel` leads to its seccomp supervisor.
    """

    def __init__(
        self, diag: socket.socket, channel: socket.socket, clock: "Callable[[], float]" = time.monotonic
    ) -> None:
        self._diag = diag
        self._channel = channel
        self._rate_limiter = RateLimiter(AT_ONCE, A_SECOND, clock)
        self._number = 0
        self._pending: dict[int, Attribution] = {}
        self._process_of = lru_cache(maxsize=64)(process_of)  # a process that opens one connection opens more

    def look_up(self, local: "Endpoint", remote: "Endpoint") -> Attribution | None:
        """Start to look up the process of the connection with these ends. None: the rate limit or a lookup failed."""
        if not self._rate_limiter.take():
            return None
        owner = look_up_owner(self._diag, socket.IPPROTO_TCP, local, remote)
        if owner is None:
            return None
        self._number += 1
        try:
            self._channel.send(messages.pack(messages.ProcessLookup(self._number, owner.inode)), socket.MSG_DONTWAIT)
        except OSError:
            return None
        while len(self._pending) >= _MOST_PENDING:
            self._pending.pop(next(iter(self._pending)))
        attribution = self._pending[self._number] = Attribution()
        return attribution

    def handle_answer(self, answer: messages.ProcessFound) -> None:
        """Handle an answer of the supervisor."""
        attribution = self._pending.pop(answer.number, None)
        if attribution is not None:
            attribution.set_process(None if answer.who is None else self._process_of(answer.who, answer.ancestors))


def process_of(who: messages.ProcessInfo, ancestors: tuple[messages.Ancestor, ...] = ()) -> Process:
    """Convert a process of the supervisor's message to the fields of events."""
    uid, sandbox_uid = [each if each >= 0 else None for each in (who.uid, who.sandbox_uid)]
    argv = tuple(map(os.fsdecode, who.argv))
    above = tuple(map(os.fsdecode, [each.exe for each in ancestors]))
    pids = (*[each.pid for each in ancestors],)
    return Process(who.pid, os.fsdecode(who.exe), argv, uid, above, pids, sandbox_uid)


_MOST_PER_EVENT: Final = 16  # packets before others get their turn
_UNREADABLE: Final = "the supervisor can't read its arguments, so no command rule can match: run `exeat doctor`"
_LONGEST: Final = 400  # characters of the message for the caller
_SEARCH: Final = 1.0  # seconds in which a denied process tries the next directory of its PATH
_MOST_REFUSED: Final = 64  # processes whose last denial is remembered
_APPROVAL_REASONS: Final = frozenset({
    Reason.APPROVAL_DENIED, Reason.APPROVAL_TIMEOUT, Reason.APPROVAL_FLOOD, Reason.APPROVAL_UNAVAILABLE,
})  # fmt: skip


class _Denial(NamedTuple):
    """Last denial of a process: the program, the decision, and when."""

    program: tuple[object, ...]
    reason: Reason
    rules: tuple[str, ...]
    time: float  # of the monotonic clock


class SupervisorChannel:
    """Handles the messages of one sandbox's seccomp supervisor. For one thread."""

    def __init__(
        self,
        channel: "socket.socket",
        recorder: "Recorder",
        poller: "Poller",
        attribution: "ProcessAttribution | None" = None,
    ) -> None:
        """Take a connected `channel`; answers to process lookups go to `attribution`."""
        self.attribution = attribution
        self._channel = channel
        self._channel.setblocking(False)
        self._recorder = recorder
        self._poller = poller
        self._last_denials: dict[int, _Denial] = {}  # last denial of each process, by pid
        self._finishing = False  # no more approval requests are submitted
        self._approvals: ProgramApprovals | None = None  # made for the first approval request

    def start(self) -> None:
        """Start to read messages. Approvals pending under a previous worker end without an answer."""
        self._poller.watch(self._channel.fileno(), IN, self)
        self._send(messages.NewWorker())

    def ready(self, _events: int) -> None:
        """Handle the messages that have arrived, at most 16 before other sockets are served."""
        for _ in range(_MOST_PER_EVENT):
            try:
                packet = self._channel.recv(messages.LONGEST)
            except BlockingIOError:
                return
            except ConnectionResetError:
                continue  # reported once, before the last messages (`message.packet`)
            if not packet:
                self._poller.forget(self._channel.fileno())  # the supervisor has ended, and its task with it
                return
            self._handle_packet(packet)

    def review(self) -> None:
        """Decide again on programs with a pending approval, under the rules now in force."""
        if self._approvals is not None:
            self._approvals.review()

    def failed(self, error: Exception) -> None:
        """Stop reading after an unexpected exception: no program starts any more."""
        self._recorder.error(
            Component.SUPERVISOR, f"the channel to the seccomp supervisor failed: {type(error).__name__}: {error}"
        )
        self._stop()

    def finish(self) -> None:
        """Handle the messages sent so far, then stop. Idempotent."""
        if self._approvals is not None:
            self._approvals.close()
        self._finishing = True
        try:
            while self._channel.fileno() >= 0 and (packet := message.packet(self._channel, messages.LONGEST)[0]):
                self._handle_packet(packet)
        except (OSError, ValueError):
            pass
        self._stop()

    def _stop(self) -> None:
        if self._channel.fileno() >= 0:
            self._poller.forget(self._channel.fileno())
            self._channel.close()

    def _handle_packet(self, packet: bytes) -> None:
        received = messages.unpack(packet)
        match received:
            case messages.StartRequest():
                self._handle_start_request(received)
            case messages.StartGone(number) if self._approvals is not None:
                self._approvals.end(number)
            case messages.CheckResult(number, changed) if self._approvals is not None:
                self._approvals.start_if_unchanged(number, os.fsdecode(changed))
            case messages.SyscallDenied(call, who, more):
                self._recorder.record_denied_call(os.fsdecode(call), process_of(who), more)
            case messages.SyscallCounts(calls):
                for call, times in calls:
                    self._recorder.metrics.refused_call(os.fsdecode(call), times)
            case messages.HoldsPrograms():
                self._recorder.sandbox.holds_programs = True
            case messages.ProcessFound() if self.attribution is not None:
                self.attribution.handle_answer(received)
            case messages.SupervisorFailed(why):
                problem = f"the seccomp supervisor denies everything: {os.fsdecode(why)}"
                self._recorder.error(Component.SUPERVISOR, problem)

    def _handle_start_request(self, request: messages.StartRequest) -> None:
        self._recorder.sandbox.holds_programs = True  # an earlier worker may have received that message
        decision = self._decide(request)
        program = os.fsdecode(request.names[0]) if request.names else ""
        start = ProgramStart(request, (program, *map(os.fsdecode, request.words)), process_of(request.who))
        if decision.needs_approval and self._repeats_after_answer(request):
            self._send(messages.StartDecision(request.number, go=False))
            return
        if decision.needs_approval and not self._finishing:
            if self._approvals is None:
                self._approvals = ProgramApprovals(
                    self._recorder.sandbox, self._decide, self._send, self._record_and_send
                )
            if self._approvals.submit(start, decision):
                return
        self._record_and_send(start, decision, "" if request.readable else _UNREADABLE, "")

    def _record_and_send(self, start: ProgramStart, decision: Decision, detail: str, approval: str) -> None:
        """Record the decision and send it."""
        request, argv = start.request, start.argv
        is_allowed, denial_text = decision.passes, _denial_text(argv, decision, approval, detail)
        if not is_allowed and self._is_path_search(request, decision):
            denial_text = b""
        elif decision.reason is not Reason.NO_COMMAND:
            try:
                self._recorder.command_decided(decision, argv, start.process, detail, approval)
            except JournalWriteError:
                is_allowed, denial_text = (
                    False,
                    _denial_text(argv, decision._replace(reason=Reason.JOURNAL_FAILED, rules=(), why="")),
                )
        self._send(messages.StartDecision(request.number, is_allowed, b"" if is_allowed else denial_text))

    def _send(self, reply: "messages.FromWorker") -> None:
        """Send a message to the supervisor. If that fails, no program starts."""
        if self._channel.fileno() < 0:
            return
        try:
            self._channel.send(messages.pack(reply))
        except OSError as error:
            if isinstance(reply, messages.NewWorker) and isinstance(error, ConnectionError):
                return  # the task ended before the worker started
            self._recorder.error(Component.SUPERVISOR, f"can't send to the seccomp supervisor: {error.strerror}")

    def _is_path_search(self, request: messages.StartRequest, decision: Decision) -> bool:
        """Whether a process tries a denied program again in the next directory of its PATH, as shells do.

        That is one attempt with one event, as long as the same rules deny it.
        """
        before, now = self._last_denials.pop(request.who.pid, None), time.monotonic()
        while len(self._last_denials) >= _MOST_REFUSED:
            self._last_denials.pop(next(iter(self._last_denials)))
        denial = _Denial(_program_of(request), decision.reason, decision.rules, now)
        self._last_denials[request.who.pid] = denial
        return before is not None and before[:3] == denial[:3] and now - before.time < _SEARCH

    def _repeats_after_answer(self, request: messages.StartRequest) -> bool:
        """Whether a process tries again, in the next directory, a program that an approver has just denied."""
        before = self._last_denials.get(request.who.pid)
        if before is None or before.program != _program_of(request) or time.monotonic() - before.time >= _SEARCH:
            return False
        return before.reason in _APPROVAL_REASONS

    def _decide(self, request: messages.StartRequest, granted: frozenset[str] = frozenset()) -> Decision:
        sandbox = self._recorder.sandbox
        if not request.readable:
            return Decision(revision=sandbox.policy.revision)  # gate_error
        names, words = tuple(map(os.fsdecode, request.names)), tuple(map(os.fsdecode, request.words))
        run = ProgramRun(names, words, request.whole)
        return decide_run(sandbox.policy, run, sandbox.task.name, sandbox.task.labels, granted)


def _program_of(request: messages.StartRequest) -> tuple[object, ...]:
    """Return the program's name and arguments without its directory."""
    return request.names[0].rpartition(b"/")[2] if request.names else b"", request.words, request.whole


def _denial_text(argv: tuple[str, ...], decision: Decision, approval: str = "", detail: str = "") -> bytes:
    """Return the line that the caller reads on a denial; `detail` is the approver's answer, or what failed."""
    shown = visible(" ".join((argv[0].rpartition("/")[2], *argv[1:])))
    if len(shown) > _LONGEST // 2:
        shown = shown[: _LONGEST // 2] + "…"
    by = f" by {decision.rules[0]}" if decision.rules else ""
    approval_note = f", approval {approval}" if approval else ""
    reason = "" if decision.reason is Reason.RULE else f" ({decision.reason}{approval_note})"
    why = "".join(f": {visible(text)}" for text in dict.fromkeys((detail, decision.why)) if text)
    line = f"exeat: {shown}: not allowed{by}{reason}{why}"
    return line[:_LONGEST].encode("utf-8", "backslashreplace")
