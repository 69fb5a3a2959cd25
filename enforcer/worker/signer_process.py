"""Process of the certificate signer: has the CA's key, sockets to workers, and nothing else.

It reads the key and imports everything for signing; then it drops all other rights (`confinement.confine_signer`), and
only then reads a worker's requests. It ends with its parent. An invalid request closes the pair, and is
reported.
"""

import contextlib
import gc
import os
import select
import signal
import socket
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, TypedDict

from enforcer.system import linux, processes
from enforcer.system.errors import HostError
from enforcer.system.processes import detach
from proxy.certificates import authority_file
from proxy.wire import message

if TYPE_CHECKING:
    from enforcer.sandbox.identity import Identity
    from proxy.certificates.authority import Authority
    from proxy.certificates.signer import Signer

_REPORT_EVERY: Final = 60.0  # seconds between two reports about a worker's excess requests


class SignerOrder(TypedDict, total=False):
    """Parent to signer. `pair` comes with one descriptor: the signer's end of the socket pair to the worker."""

    pair: int  # number of the worker that the descriptor leads to
    serves: int  # number of the worker whose allowance changes
    sandboxes: int  # with `serves`: how many sandboxes it has now
    well: bool  # asks for a sign of life


class SignerReply(TypedDict, total=False):
    """Signer to parent."""

    well: bool  # the sign of life
    told: str  # a sentence for the log about a worker's requests


def fork(
    key: int, certificate: bytes, ids: "Identity", ends: Mapping[int, socket.socket], sandbox_counts: Mapping[int, int]
) -> tuple[int, socket.socket]:
    """Fork the signer; returns its pid and the channel to it. `key`: the CA's open file, which stays the caller's.

    `certificate` (PEM) must belong to the key; `ends`: the signer's ends of pairs, by worker number;
    `sandbox_counts`: the number of sandboxes of each worker.
    """
    copies = dict(ends), dict(sandbox_counts)
    return processes.fork(lambda parent, control: _run_signer(parent, control, (key, certificate), ids, *copies))


def _run_signer(  # noqa: PLR0917
    parent: int,
    control: socket.socket,
    key_and_certificate: tuple[int, bytes],
    ids: "Identity",
    ends: dict[int, socket.socket],
    sandbox_counts: dict[int, int],
) -> None:
    signal.set_wakeup_fd(-1)
    linux.disable_core_dumps()  # before the key is in memory
    linux.prctl(linux.PR_SET_DUMPABLE, 0)
    detach({key_and_certificate[0], control.fileno(), *(end.fileno() for end in ends.values())}, None)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    linux.die_with_parent(signal.SIGKILL, parent)
    authority = _read(*key_and_certificate)
    from enforcer.worker import confinement

    poll = select.epoll()
    confinement.confine_signer(ids, parent)
    gc.freeze()
    _SignerLoop(authority, control, poll, ends, sandbox_counts).serve()


def _read(key: int, certificate: bytes) -> "Authority":
    """Return the CA, after signing something: then all code for signing is in memory. Raises HostError."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    from proxy.certificates.authority import Authority
    from proxy.certificates.signer import Request, Signer, encode_request

    pem = os.pread(key, authority_file.LONGEST, 0)
    os.close(key)
    if certificate not in pem:  # no sandbox would trust its signatures
        raise HostError("the CA was replaced during the run", "start again")
    authority = Authority.from_pem(pem)
    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    point = public.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    for host in ("a.invalid", "xn--bcher-kva.invalid", "192.0.2.1", "2001:db8::1"):
        Signer(authority).answer(encode_request(Request(0, point, host)))
    return authority


class _SignerLoop:
    """The loop of the signer: answers one request of each worker in turn."""

    def __init__(
        self,
        authority: "Authority",
        control: socket.socket,
        poll: select.epoll,
        ends: dict[int, socket.socket],
        sandbox_counts: dict[int, int],
    ) -> None:
        from proxy.certificates.signer import LONGEST_REQUEST, MalformedPacketError, Signer

        self._most, self._malformed, self._signer = LONGEST_REQUEST + 1, MalformedPacketError, Signer
        self._authority = authority
        self._control = control
        self._poll = poll
        self._pairs: dict[int, tuple[int, socket.socket, Signer]] = {}  # by descriptor
        self._reported: dict[int, float] = {}
        self._sandbox_counts = sandbox_counts  # how many sandboxes each worker has
        control.setblocking(False)
        poll.register(control, select.EPOLLIN)
        for number, end in ends.items():
            self._add_pair(number, end)

    def serve(self) -> None:
        """Answer requests until the parent process is gone."""
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor == self._control.fileno():
                    if not self._handle_control():
                        return
                elif (pair := self._pairs.get(descriptor)) is not None:
                    self._answer(*pair)

    def _handle_control(self) -> bool:
        """Handle a message of the parent; False: the parent is gone."""
        try:
            fields, descriptors = message.receive(self._control, 1)
        except BlockingIOError:
            return True
        for descriptor in descriptors:
            self._add_pair(
                int(str(fields["pair"])), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, descriptor)
            )
        if "serves" in fields:
            self._serve(int(str(fields["serves"])), int(str(fields["sandboxes"])))
        if "well" in fields:
            with contextlib.suppress(OSError):  # the parent is ending
                message.send(self._control, SignerReply(well=True))
        return bool(fields)

    def _serve(self, number: int, sandboxes: int) -> None:
        """Set a worker's allowance by its number of sandboxes."""
        self._sandbox_counts[number] = sandboxes
        for other, _, signer in self._pairs.values():
            if other == number:
                signer.serves(sandboxes)

    def _add_pair(self, number: int, end: socket.socket) -> None:
        end.setblocking(False)
        signer = self._signer(self._authority)
        signer.serves(self._sandbox_counts.get(number, 0))
        self._pairs[end.fileno()] = number, end, signer
        self._poll.register(end, select.EPOLLIN)

    def _answer(self, number: int, end: socket.socket, signer: "Signer") -> None:
        """Answer one request. An invalid request, or a worker that takes no answer, closes the pair."""
        try:
            packet = end.recv(self._most)
            if not packet:
                self._drop(end)
                return
            refused = signer.refused
            end.send(signer.answer(packet))
            if signer.refused != refused and time.monotonic() >= self._reported.get(number, 0.0):
                self._reported[number] = time.monotonic() + _REPORT_EVERY
                self._report(
                    f"worker {number} asks for too many certificates: after {signer.signed}, further ones are denied"
                )
        except self._malformed as error:
            self._drop(end)
            self._report(f"worker {number} sent an invalid request ({error}): it gets no more certificates")
        except OSError:  # the worker is gone, or reads nothing
            self._drop(end)
        except Exception as error:  # noqa: BLE001 - other workers must go on
            self._drop(end)
            self._report(f"worker {number} gets no more certificates: {type(error).__name__}: {error}")

    def _drop(self, end: socket.socket) -> None:
        del self._pairs[end.fileno()]
        self._poll.unregister(end)
        end.close()

    def _report(self, sentence: str) -> None:
        with contextlib.suppress(OSError):  # the parent reads too slowly
            message.send(self._control, SignerReply(told=sentence))
