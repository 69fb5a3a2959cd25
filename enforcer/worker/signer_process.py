"""Process of the certificate signer: has the CA's key, its sockets to workers, and nothing else.

First it reads the key and imports all that signing takes; then it gives up everything but what it has in memory
(`confinement.enter_alone`), and only then it reads a worker's requests. It ends with the process that forked it. A
request that no worker of ours sends ends that worker's pair, and is reported.
"""

import contextlib
import gc
import os
import select
import signal
import socket
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from enforcer.system import linux, processes
from enforcer.system.errors import HostError
from enforcer.system.processes import detach
from proxy.certificates import authority_file
from proxy.wire import message

if TYPE_CHECKING:
    from enforcer.sandbox.identity import Identity
    from proxy.certificates.authority import Authority
    from proxy.certificates.signer import Signer

_AGAIN: Final = 60.0  # seconds between two times that it is told of a worker that asks for too much


def fork(
    key: int, certificate: bytes, who: "Identity", ends: Mapping[int, socket.socket], served: Mapping[int, int]
) -> tuple[int, socket.socket]:
    """Fork it; returns its pid and the channel to it. `key`: the open file that the CA is in, which stays the caller's.

    `certificate` (PEM) has to be the one that belongs to the key; `ends` are its ends of pairs, by workers' numbers.
    `served` says how many sandboxes those have.
    """
    its = dict(ends), dict(served)
    return processes.fork(lambda parent, control: _be_it(parent, control, (key, certificate), who, *its))


def _be_it(  # noqa: PLR0917  what it is and has
    parent: int,
    control: socket.socket,
    known: tuple[int, bytes],
    who: "Identity",
    ends: dict[int, socket.socket],
    served: dict[int, int],
) -> None:
    signal.set_wakeup_fd(-1)
    linux.disable_core_dumps()  # before there is a key in it
    linux.prctl(linux.PR_SET_DUMPABLE, 0)
    detach({known[0], control.fileno(), *(end.fileno() for end in ends.values())}, None)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    linux.die_with_parent(signal.SIGKILL, parent)
    authority = _read(*known)
    from enforcer.worker import confinement

    poll = select.epoll()
    confinement.enter_alone(who, parent)
    gc.freeze()
    _Holder(authority, control, poll, ends, served).serve()


def _read(key: int, certificate: bytes) -> "Authority":
    """Return the CA, once it has signed something: then all that signing takes is in memory. Raises HostError."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    from proxy.certificates.authority import Authority
    from proxy.certificates.packets import Request, request
    from proxy.certificates.signer import Signer

    pem = os.pread(key, authority_file.LONGEST, 0)
    os.close(key)
    if certificate not in pem:  # nobody in a sandbox would trust what it signs
        raise HostError("the CA was replaced while this ran; start again")
    authority = Authority.from_pem(pem)
    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    point = public.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    for host in ("a.invalid", "xn--bcher-kva.invalid", "192.0.2.1", "2001:db8::1"):
        Signer(authority).answer(request(Request(0, point, host)))
    return authority


class _Holder:
    """Its loop: a request of each worker that has one, in turn."""

    def __init__(
        self,
        authority: "Authority",
        control: socket.socket,
        poll: select.epoll,
        ends: dict[int, socket.socket],
        served: dict[int, int],
    ) -> None:
        from proxy.certificates.packets import LONGEST_REQUEST, Malformed
        from proxy.certificates.signer import Signer

        self._most, self._malformed, self._signer = LONGEST_REQUEST + 1, Malformed, Signer
        self._authority = authority
        self._control = control
        self._poll = poll
        self._pairs: dict[int, tuple[int, socket.socket, Signer]] = {}  # by descriptor
        self._told: dict[int, float] = {}
        self._served = served  # how many sandboxes each worker has
        control.setblocking(False)
        poll.register(control, select.EPOLLIN)
        for number, end in ends.items():
            self._take(number, end)

    def serve(self) -> None:
        """Serve until whoever forked it is gone."""
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor == self._control.fileno():
                    if not self._hear():
                        return
                elif (pair := self._pairs.get(descriptor)) is not None:
                    self._answer(*pair)

    def _hear(self) -> bool:
        """Take a pair; False: there is nobody left to take any from."""
        try:
            said, descriptors = message.receive(self._control, 1)
        except BlockingIOError:
            return True
        for descriptor in descriptors:
            self._take(int(str(said["pair"])), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, descriptor))
        if "serves" in said:
            self._serve(int(str(said["serves"])), int(str(said["sandboxes"])))
        if "well" in said:
            with contextlib.suppress(OSError):  # nobody reads it: then nobody waits for it
                message.send(self._control, {"well": True})
        return bool(said)

    def _serve(self, number: int, sandboxes: int) -> None:
        """Have a worker's allowance follow how many sandboxes it has."""
        self._served[number] = sandboxes
        for other, _, signer in self._pairs.values():
            if other == number:
                signer.serves(sandboxes)

    def _take(self, number: int, end: socket.socket) -> None:
        end.setblocking(False)
        signer = self._signer(self._authority)
        signer.serves(self._served.get(number, 0))
        self._pairs[end.fileno()] = number, end, signer
        self._poll.register(end, select.EPOLLIN)

    def _answer(self, number: int, end: socket.socket, signer: "Signer") -> None:
        """Answer one request. Whatever is wrong with it, or with who doesn't take the answer, ends the pair."""
        try:
            packet = end.recv(self._most)
            if not packet:
                self._drop(end)
                return
            refused = signer.refused
            end.send(signer.answer(packet))
            if signer.refused != refused and time.monotonic() >= self._told.get(number, 0.0):
                self._told[number] = time.monotonic() + _AGAIN
                self._tell(
                    f"worker {number} asks for too many certificates: it has had {signer.signed}, and is refused"
                )
        except self._malformed as error:
            self._drop(end)
            self._tell(
                f"worker {number} asked for something else than a certificate for one host ({error}): it gets none"
            )
        except OSError:  # it is gone, or takes nothing
            self._drop(end)
        except Exception as error:  # noqa: BLE001 - what one has asked for is no other's trouble
            self._drop(end)
            self._tell(f"worker {number} gets no more certificates: {type(error).__name__}: {error}")

    def _drop(self, end: socket.socket) -> None:
        del self._pairs[end.fileno()]
        self._poll.unregister(end)
        end.close()

    def _tell(self, sentence: str) -> None:
        with contextlib.suppress(OSError):  # one that hears nothing has heard enough
            message.send(self._control, {"told": sentence})
