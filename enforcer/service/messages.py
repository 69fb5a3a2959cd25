"""Messages between the service, its runs, its fork server and control clients, as types with their fields.

Each is a JSON object on a SOCK_SEQPACKET channel (`proxy.wire.message`), some with descriptors. Control requests and
answers follow `protocol`. What passes between a worker and the service is in
`proxy.worker.messages`.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NotRequired, TypedDict


class PlaceRequest(TypedDict):
    """Run to service: asks for a worker. Its descriptor is the memory file of the policy, unless `known` is there."""

    lodge: str  # id of the sandbox
    id: str  # of the task
    name: str
    labels: Mapping[str, str]
    workspace: str
    known: NotRequired[int]  # number of a rule set that the service has; instead of all that follows
    files: NotRequired[Sequence[str]]  # rule files, as absolute paths
    asked: NotRequired[Sequence[str]]  # every file that was read for the rules
    seen: NotRequired[str]  # fingerprint of these files
    system: NotRequired[str]  # directory of root's rules
    shared: NotRequired[bool]  # the service watches the files, and other runs may have the same set


class OwnWorkerRun(TypedDict):
    """Run to service: registers a run that has a worker of its own, for `exeat ps` and `exeat stop`."""

    alone: str  # why no worker of the service serves it
    sandbox: str
    id: str  # of the task
    name: str
    labels: Mapping[str, str]
    workspace: str
    rules: Sequence[str]  # the first rule file, or nothing


class PlaceAnswer(TypedDict, total=False):
    """Service to run: the answer to a `PlaceRequest`, and later messages about its worker and rules."""

    confined: bool  # a worker is there
    unknown: bool  # the set `known` is gone: send the rules
    failed: str  # why the worker doesn't serve the task, or serves it no more
    declined: bool  # with `failed`: the task hasn't started, and may run without the service
    asks: bool  # the rules in force need approvals from now on
    kill: bool  # kill the task
    summary: str  # `Summary` of the task, as the worker's last message


class AttachMessage(TypedDict):
    """Control client to service: attaches a namespace.

    Descriptors: the policy's memory file, the sockets, and the pidfd if it was named by a pid.
    """

    what: Literal["attach"]
    sandbox: str
    id: str  # of the task
    name: str
    labels: Mapping[str, str]
    files: Sequence[str]  # rule files, as absolute paths
    asked: Sequence[str]  # every file that was read for the rules
    seen: str  # fingerprint of these files
    system: str  # directory of root's rules
    sockets: Sequence[str]  # their names
    attached: str  # how the namespace was named
    pid: int  # 0: by a path
    event: str  # id of the event that recorded the attachment


class WorkerStatus(TypedDict):
    """A worker in `ServiceStatus`."""

    number: int
    pid: int
    uid: int
    sandboxes: int
    apart: bool  # serves one sandbox alone, after a worker died serving it


class ServiceStatus(TypedDict):
    """Service to control client: the answer to `status`. A pid of 0: that process doesn't run just now."""

    pid: int
    began: float  # seconds since 1970
    uid: int
    control: str  # path of the control socket
    journal: str
    sandboxes: int
    alone: Sequence[Mapping[str, object]]  # runs with a worker of their own: task, name, why
    restarts: int  # of workers
    keyholder: int  # pid of the certificate signer
    zygote: int  # pid of the fork server
    keeper: int  # pid of the journal's keeper
    scraped: int  # pid of the metrics server
    workers: Sequence[WorkerStatus]


class StopAnswer(TypedDict):
    """Service to control client: the answer to `stop`."""

    stopped: Sequence[str]  # ids of the sandboxes that end
    found: Sequence[str]  # ids that match the name, if not exactly one does
    attached: NotRequired[bool]  # an attached namespace has this name


class RunMessage(TypedDict, total=False):
    """Service to the process of a run: the request of a client, or an order."""

    run: bool  # the descriptors are the client's connection and what came with its request
    kill: bool  # kill the task
    asks: bool  # the rules in force need approvals from now on


class ForkRequest(TypedDict):
    """Service to fork server: a process for a run. Its descriptor is the run's channel to the service."""

    ahead: bool  # the process waits for a client in the warm pool


class ForkReply(TypedDict, total=False):
    """Fork server to service."""

    forked: int  # pid
    failed: int  # errno
