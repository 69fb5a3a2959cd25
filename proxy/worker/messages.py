"""What a worker gets from the process that started it, the service or a run: its settings and messages, as types.

A message is a JSON object on a SOCK_SEQPACKET channel (`proxy.wire.message`), some with descriptors. Each process
checks the fields that it reads: a task may control its worker, so nothing that a worker sends is trusted.
"""

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from mmap import mmap
from typing import TYPE_CHECKING, TypedDict

from proxy.sandbox.sandbox_state import SandboxState

if TYPE_CHECKING:
    from proxy.dialing.proxy_auth import Login
    from proxy.telemetry.events import Kind
    from rules.values.addresses import Address


@dataclass(frozen=True, slots=True)
class OnlySandbox:
    """Sandbox of a worker that serves a single run."""

    state: SandboxState
    gate: socket.socket  # receives `SandboxSockets`
    metrics: socket.socket | None = None  # listening, for Prometheus
    login: "Login | None" = None  # for the upstream proxy


@dataclass(frozen=True, slots=True)
class Setup:
    """Settings and sockets that a worker starts with."""

    keyholder: socket.socket  # to the process that signs certificates
    authority_expires: float  # seconds since 1970
    roots: bytes  # the host's trusted certificates
    journal: int  # a descriptor of the journal's directory
    control: socket.socket  # to the service, or to the run's supervisor
    own_addresses: "frozenset[Address]" = frozenset()  # of every sandbox, on lo
    gate_port: int = 0
    forbidden: tuple[tuple[str, int], ...] = ()  # where Exeat itself listens on the host: tasks may not connect
    page: mmap | None = None  # shared with the service: whose work runs (`event_loop.turn`)
    only: OnlySandbox | None = None  # None: sandboxes come from the service


class SandboxSockets(TypedDict):
    """Run to its worker, once: the only sandbox. Its descriptors are the sandbox's sockets."""

    sockets: Sequence[str]  # names of the sockets, in the order of the descriptors


class Admission(TypedDict):
    """Service to worker: a sandbox to serve. Its descriptors are the sandbox's sockets."""

    admit: str  # id of the sandbox
    id: str  # of the task
    name: str
    labels: Mapping[str, str]
    under: int  # number of its rule set
    sockets: Sequence[str]  # names of the sockets, in the order of the descriptors
    before: int  # deaths of workers that served it before
    wait: float  # seconds until names get addresses again
    turn: int  # the mark while the worker serves it (`proxy.event_loop.turn`)
    foreign: bool  # an attached namespace


class RuleSetNews(TypedDict, total=False):
    """To a worker: a rule set, whose policy is in the descriptor, or what is wrong with its files."""

    set: int  # number of the rule set; a worker of one run has one set, without a number
    rules: str  # from a run: the revision of its new policy
    revision: str  # from the service: of the policy that replaces the one in force
    asks: bool  # the policy needs approvals
    rejected: Sequence[str]  # problems of the files: the policy in force stays


class WorkerOrder(TypedDict, total=False):
    """To a worker, about all of its sandboxes: each message has one of these."""

    forget: int  # drop the rule set with this number
    keyholder: bool  # the descriptor is a new channel to the certificate signer
    roots: bool  # the descriptor is a file with the host's trusted certificates (PEM)
    ask: int  # answer with this number
    metrics: bool  # with `ask`: the answer has the worker's metrics
    stop: bool  # end


class SandboxNews(TypedDict, total=False):
    """To a worker, about one sandbox: facts to record and count, and its end."""

    to: str  # id of the sandbox; a worker of one run has one sandbox, without this field
    approvals: bool  # the descriptor is a new channel to the approvals server
    started: float  # seconds that the start of the sandbox took
    refused: Mapping[str, int]  # packets that the kernel denied so far, by kind
    again: Mapping[str, int]  # `refused` as an earlier worker has counted it
    unusual: Mapping[str, int]  # anomalies, by kind
    flags: Sequence[float]  # flagged events that nobody has acknowledged: how many, and the time of the first
    rules_rejected: Sequence[str]  # problems of rule files: the policy in force stays
    lost: str  # why the sandbox is or was not served: the worker records it
    stop: bool  # the task has ended
    ended: str  # with `stop`: `Outcome`
    told: Mapping["Kind", int]  # with `stop`: events that the run has recorded, for the worker's metrics
    errors: Mapping[str, int]  # with `stop`: of those, errors of the gate by component


class WorkerAnswer(TypedDict, total=False):
    """Worker to service or run: the answer to `ask`, in one piece or, with metrics, in several."""

    answer: int  # the number of `ask`
    metrics: object  # a piece of the metrics (`proxy.telemetry.prometheus.totals`)
    left: int  # pieces to come


class SandboxReport(TypedDict, total=False):
    """Worker to service or run: how the service of one sandbox ended. A worker of one run sends no `of`."""

    of: str  # id of the sandbox
    failed: str  # why it is served no more
    unread: str  # why its policy can't be read
    summary: str  # `Summary` of the task


class WorkerReady(TypedDict):
    """Worker of one run to its run: it is confined."""

    confined: bool
    placeholders: Mapping[str, str]  # of the secrets, by the name of their variable


type ToWorker = Admission | RuleSetNews | WorkerOrder | SandboxNews
type FromWorker = WorkerAnswer | SandboxReport
