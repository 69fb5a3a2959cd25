"""`exeat attach`: gives an existing network namespace the gate, in the caller's process and with its rights.

The service gets sockets, as from a sandbox of its own, and never enters a namespace itself.
"""

import fcntl
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from enforcer.network import attached_namespace
from enforcer.network.install import encoded
from enforcer.service.control_client import send_request
from enforcer.service.rule_sets import policy_in_memory
from enforcer.service.sandboxes import recorder_for
from enforcer.system import peers, state
from enforcer.system.errors import HostError, UsageError
from enforcer.system.started_by import started_by
from proxy.sandbox.sandbox_state import Task
from proxy.wire import message
from rules.verdicts import Outcome

if TYPE_CHECKING:
    from enforcer.service.messages import AttachMessage
    from rules.matching.policy import Policy

_PATIENCE: Final = 20.0  # seconds
_MOST_SOCKETS: Final = 16
_NS_GET_NSTYPE: Final = 0xB703


@dataclass(frozen=True, slots=True)
class Target:
    """The network namespace to attach: its descriptor, the pid that it was named by (0: a path), and its name.

    `process`: a pidfd (pidfd_open(2)) of that process, or nothing.
    """

    namespace: int
    pid: int
    named: str
    process: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class AttachRequest:
    """Rules, and the task identity that the journal records."""

    policy: "Policy"
    files: tuple[str, ...]
    searched_paths: tuple[str, ...]  # every path looked up for a rule file
    fingerprint: str  # of these paths
    system: Path
    name: str
    labels: Mapping[str, str] = field(default_factory=dict)


def open_target(named: str) -> Target:
    """Open the namespace named by a pid or a path. Raises UsageError, or HostError without the permission."""
    pid = int(named) if named.isascii() and named.isdigit() else 0
    path = f"/proc/{pid}/ns/net" if pid else named
    try:
        process = (os.pidfd_open(pid),) if pid else ()
        namespace = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError as error:
        problem = f"the network namespace of `{named}` can't be opened: {error.strerror}"
        raise HostError(problem, "run `exeat attach` as the user of that process, or as root") from error
    except OSError as error:
        raise UsageError(
            f"`{named}` is not the pid of a process or the path of a network namespace: {error.strerror}"
        ) from error
    if process and not peers.is_running(*process):  # then the namespace may be of another process with this pid
        os.close(namespace)
        raise UsageError(f"process {named} has ended; name a running one")
    if not _is_network(namespace):
        os.close(namespace)
        raise UsageError(f"`{path}` is not a network namespace")
    return Target(namespace, pid, named if pid else namespace_path(named), process)


def _is_network(descriptor: int) -> bool:
    """Whether it is a network namespace (ioctl_nsfs(2)); one that is bound to a file has the file's name."""
    if os.fstat(descriptor).st_dev != os.stat("/proc/self/ns/net").st_dev:
        return False  # don't send the ioctl to another driver
    return fcntl.ioctl(descriptor, _NS_GET_NSTYPE) == os.CLONE_NEWNET


def attach(target: Target, request: AttachRequest) -> dict[str, Any]:
    """Give the namespace the gate, and return the service's answer. Raises HostError, UsageError."""
    policy = request.policy
    if policy.secrets or policy.settings.upstream_auth is not None:
        raise UsageError(
            "rules with `secrets` or `upstream_auth` don't work with `exeat attach`; use `exeat run`, or other rules"
        )
    (status,) = send_request({"what": "status"})  # before anything is changed
    task = Task(f"{os.getpid():x}-{time.time_ns():x}", request.name, dict(request.labels))
    network = encoded(state.make_private(state.cache_directory()))
    recorder = recorder_for(task, Path(status["journal"]), policy)
    recorder.rules_loaded()
    event = recorder.task_started(("exeat", "attach", target.named), started_by=started_by())
    try:
        names, sockets = _install_in_child(target.namespace, lambda: attached_namespace.install(network).named())
        file = policy_in_memory(policy)
        attach_message: AttachMessage = {
            "what": "attach",
            "sandbox": f"sandbox-{task.id}",
            "id": task.id,
            "name": task.name,
            "labels": dict(task.labels),
            "files": list(request.files),
            "asked": list(request.searched_paths),
            "seen": request.fingerprint,
            "system": str(request.system),
            "sockets": list(names),
            "attached": target.named,
            "pid": target.pid,
            "event": event,
        }
        (answer,) = send_request(attach_message, [file, *sockets, *target.process])
    except BaseException:
        recorder.task_ended(event, seconds=0.0, outcome=Outcome.FAILED)
        raise
    return answer


def detach(named: str) -> dict[str, Any]:
    """Remove the gate; the namespace then has no network. Raises HostError, UsageError."""
    (answer,) = send_request({"what": "detach", "name": named})
    if "sandbox" not in answer:
        raise UsageError(f"no namespace is attached as `{named}`; `exeat ps` lists them")
    return answer


def _install_in_child(namespace: int, make: "Callable[[], dict[str, socket.socket]]") -> tuple[list[str], list[int]]:
    parent_end, child_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        parent_end.close()
        _run_in_namespace(namespace, child_end, make)
    child_end.close()
    parent_end.settimeout(_PATIENCE)
    try:
        fields, sockets = message.receive(parent_end, _MOST_SOCKETS)
    except TimeoutError:
        fields, sockets = {}, []
    finally:
        parent_end.close()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    if "sockets" not in fields:
        raise HostError(str(fields.get("failed", "the namespace could not be changed")))
    names = fields["sockets"]
    return list(map(str, names)) if isinstance(names, list) else [], sockets


def _run_in_namespace(
    namespace: int, child_end: socket.socket, make: "Callable[[], dict[str, socket.socket]]"
) -> NoReturn:
    try:
        try:
            attached_namespace.enter(namespace)
            found = make()
            message.send(child_end, {"sockets": list(found)}, [sock.fileno() for sock in found.values()])
        except BaseException as error:  # noqa: BLE001 - the parent reports it
            text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            message.send(child_end, {"failed": text})
        signal.pause()  # until the parent has the descriptors
    finally:
        os._exit(0)


def namespace_path(path: str) -> str:
    """Return the resolved path of a namespace file; what /proc/PID/ns/net links to is no path (namespaces(7))."""
    resolved = os.path.realpath(path)
    above, name = os.path.split(os.path.abspath(path))
    return resolved if os.path.exists(resolved) else os.path.join(os.path.realpath(above), name)
