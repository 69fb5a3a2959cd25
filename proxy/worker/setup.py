"""What a worker process starts with: its sockets, its limits and, for one run, the only sandbox."""

import socket
from dataclasses import dataclass
from mmap import mmap
from typing import TYPE_CHECKING

from proxy.sandbox.sandbox_state import SandboxState

if TYPE_CHECKING:
    from proxy.dialing.proxy_auth import Login
    from rules.addresses import Address


@dataclass(frozen=True, slots=True)
class OnlySandbox:
    """Sandbox of a worker that serves a single run."""

    state: SandboxState
    gate: socket.socket  # its sockets come over this: `{"sockets": NAMES}`, and their descriptors
    metrics: socket.socket | None = None  # listening: where the worker is scraped
    login: "Login | None" = None  # for the upstream proxy


@dataclass(frozen=True, slots=True)
class Setup:
    """Settings and sockets that a worker starts with."""

    keyholder: socket.socket  # to the process that signs certificates
    authority_expires: float  # seconds since 1970
    roots: bytes  # the host's trusted certificates
    journal: int  # a descriptor of the journal's directory
    control: socket.socket  # to the service, or to the run's supervisor
    own_addresses: "frozenset[Address]" = frozenset()  # a sandbox's, on lo
    gate_port: int = 0
    forbidden: tuple[tuple[str, int], ...] = ()  # where Exeat itself listens outside: dialled for no task
    page: mmap | None = None  # shared with the service: whose turn it is
    only: OnlySandbox | None = None  # None: sandboxes come from the service
