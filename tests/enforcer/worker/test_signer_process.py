"""The certificate signer as a process by itself: what it answers, what it is confined to, and when another takes its place."""

import contextlib
import errno
import fcntl
import mmap
import os
import selectors
import signal
import socket
import time

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from enforcer.sandbox import identity, seccomp
from enforcer.sandbox.step_lists import NUMBERS
from enforcer.system.errors import HostError
from enforcer.worker import confinement, trust
from enforcer.worker.signer import CertificateSigner
from proxy.certificates import authority
from proxy.certificates.signer import LONGEST_ANSWER, LONGEST_REQUEST, Request, encode_request, read_answer
from proxy.wire import message
from tests.enforcer.worker.signer_harness import descriptors
from tests.soak.leftovers import started
from tests.support import harness
from tests.support.waiting import PATIENCE, wait_until


class SignerLab:
    """A CA, and a certificate signer for it; `report` is what it has told."""

    def __init__(self, directory, **more):
        for name in ("ca", "cache"):
            (directory / name).mkdir(mode=0o700)
        self.directory = directory / "ca"
        self.public = trust.public_authority(self.directory, directory / "cache")
        self.who = identity.choose()
        self.selector = selectors.DefaultSelector()
        self.said, self.pairs = [], {}
        self.keyholder = self.made(**more)

    def made(self, **more):
        made = CertificateSigner(self.directory, self.public.certificate.encode(), self.who, **more)
        made.report = self.said.append
        made.renew = lambda number, pair: self.pairs.update({number: pair.dup()})
        made.watch(self.selector)
        return made

    def turn(self):
        """Do what its supervisor does."""
        for key, _ in self.selector.select(0.01):
            key.data()
        self.keyholder.turn()

    def answer(self, pair, packet, before=lambda: None):
        """Return what it answers to a packet; nothing: it has ended the pair."""
        pair.send(packet)
        before()
        pair.setblocking(False)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            self.turn()
            with contextlib.suppress(BlockingIOError):
                try:
                    return pair.recv(LONGEST_ANSWER)
                except ConnectionResetError:
                    return b""
        raise AssertionError("it never answered")

    def close(self):
        self.keyholder.close()
        self.selector.close()
        for pair in self.pairs.values():
            pair.close()
        if self.who.slot >= 0:
            os.close(self.who.slot)


@pytest.fixture
def lab(tmp_path):
    harness.needs_root()
    made = SignerLab(tmp_path)
    yield made
    made.close()


def asked(host="good.example", number=1):
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import PublicFormat

    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    return encode_request(Request(number, key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint), host))


def test_signer_starts_on_demand_and_drops_hostile_workers(lab):
    bad, good, gone = (lab.keyholder.pair(number) for number in (1, 2, 3))
    gone.close()
    lab.turn()
    assert lab.keyholder.pid == 0
    with bad, good:
        assert read_answer(lab.answer(good, asked(number=5)))[0] == 5
        first = lab.keyholder.pid
        # A descriptor that comes with it is nobody's, and more than a request is none.
        assert lab.answer(bad, asked("*.example")) == b""
        wait_until(lambda: lab.turn() or lab.said, "what it tells")
        asked_for = "certificate signer: worker 1 sent an invalid request"
        assert lab.said == [f"{asked_for} (no name and no address): it gets no more certificates"]
        with lab.keyholder.pair(1) as bad:  # another worker in its place
            socket.send_fds(bad, [asked(number=6)], [0])
            bad.settimeout(PATIENCE)
            assert read_answer(bad.recv(LONGEST_ANSWER))[0] == 6
            assert len(descriptors(first)) == 3 + 1 + 1 + 2  # its streams, its epoll set, its channel, two pairs
            assert lab.answer(bad, asked() + bytes(LONGEST_REQUEST)) == b""
        assert read_answer(lab.answer(good, asked(number=7)))[0] == 7
        assert lab.keyholder.pid == first


TRIED = {
    "open": lambda: os.open("/dev/null", os.O_RDONLY),
    "list": lambda: os.listdir("/"),
    "look": lambda: os.stat("/"),
    "internet": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM),
    "unix": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM),
    "pair": socket.socketpair,
    "fork": os.fork,
    "execute": lambda: os.execv("/bin/true", ["true"]),
    "signal": lambda: os.kill(os.getppid(), 0),
    "look at another": lambda: os.pidfd_open(os.getppid()),
    "write": lambda: os.write(1, b"x"),
    "pipe": os.pipe,
    "namespace": lambda: os.unshare(os.CLONE_NEWNET),
    "be root": lambda: os.setuid(0),
    "new code": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC),
    "change a socket": lambda: fcntl.ioctl(0, 0x8901, b"\0\0\0\0"),  # FIOSETOWN
}


def test_signer_is_confined_to_memory_and_sockets(lab):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        found = {}
        try:
            confinement.confine_signer(lab.who, parent)
            for name, trying in TRIED.items():
                try:
                    trying()
                except OSError as error:
                    found[name] = error.errno
        finally:
            message.send(theirs, found)
            os._exit(0)
    with ours, theirs:
        ours.settimeout(PATIENCE)
        found, _ = message.receive(ours)
    os.waitpid(pid, 0)
    assert found == {name: errno.EPERM if name == "new code" else errno.ENOSYS for name in TRIED}
    assert seccomp.SIGNER.allowed <= set(NUMBERS["x86_64"])


def test_worker_that_does_not_read_is_dropped(lab):
    with lab.keyholder.pair(1) as deaf, lab.keyholder.pair(2) as good:
        lab.answer(good, asked())
        packet = asked()
        deaf.settimeout(PATIENCE)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while deaf.send(packet):
                pass
        assert read_answer(lab.answer(good, asked(number=9)))[0] == 9


def test_excessive_requests_are_reported(lab, monkeypatch):
    monkeypatch.setattr("proxy.certificates.signer.Signer.__init__.__defaults__", (2, 0.0, lambda: 0.0))
    with lab.keyholder.pair(4) as pair:
        answers = [read_answer(lab.answer(pair, asked(number=number))) for number in range(4)]
    assert [bool(certificate) for _, certificate in answers] == [True, True, False, False]
    wait_until(lambda: lab.turn() or lab.said, "what it tells")
    assert lab.said == ["certificate signer: worker 4 asks for too many certificates: after 2, further ones are denied"]


def test_allowance_grows_with_each_sandbox(lab, monkeypatch):
    monkeypatch.setattr("proxy.certificates.signer.Signer.__init__.__defaults__", (2, 0.0, lambda: 0.0))
    lab.keyholder.serves(4, 1)  # before there is one
    for _ in range(2):
        with lab.keyholder.pair(4) as pair, lab.keyholder.pair(5) as other:
            assert read_answer(lab.answer(pair, asked()))[1]
            lab.keyholder.serves(4, 2)
            answers = [bool(read_answer(lab.answer(pair, asked(number=number)))[1]) for number in range(6)]
            assert answers == [True] * 5 + [False], "two for each of two, and two for one that comes"
            assert [bool(read_answer(lab.answer(other, asked()))[1]) for _ in range(3)] == [True, True, False]
        lab.keyholder.serves(4, 1)


def test_hanging_signer_is_replaced(lab, monkeypatch):
    monkeypatch.setattr("enforcer.worker.signer.CHECK_EVERY", 1000.0)  # seconds
    with lab.keyholder.pair(1) as pair:
        assert read_answer(lab.answer(pair, asked()))[0] == 1
        first = lab.keyholder.pid
        lab.keyholder._next_check = 0.0
        lab.keyholder.turn()
        assert lab.keyholder._unanswered == 1
        wait_until(lambda: lab.turn() or not lab.keyholder._unanswered, "its answer")
        os.kill(first, signal.SIGSTOP)
        pair.send(asked())  # nobody would ever answer that
        for _ in range(5):
            assert lab.said == []
            lab.keyholder._next_check = 0.0
            lab.keyholder.turn()
        wait_until(lambda: lab.turn() or lab.pairs, "another pair")
    with lab.pairs.pop(1) as pair:
        assert read_answer(lab.answer(pair, asked(number=2)))[0] == 2
    assert lab.keyholder.pid not in (0, first)
    assert started(first) is None
    said = "the certificate signer ended (it hung); connections to names without a certificate are denied until the next one runs"
    assert lab.said == [said]


def test_signer_keeps_its_first_key(lab):
    """So does a service, all of whose sandboxes trust that: one that dies after a rotation is replaced."""
    kept = lab.made(fingerprint=lab.public.fingerprint)
    lab.keyholder, before = kept, lab.keyholder
    before.close()
    authority.rotate(lab.directory)
    with kept.pair(1) as pair:
        assert read_answer(lab.answer(pair, asked()))[1]


def test_signer_with_a_replaced_key_signs_nothing(lab):
    authority.rotate(lab.directory)
    with lab.keyholder.pair(1) as pair:
        assert lab.answer(pair, asked()) == b""
        wait_until(lambda: lab.turn() or lab.said, "what it tells")
    assert "the CA was replaced during the run; start again" in lab.said[0]
    lab.directory.chmod(0o755)
    with pytest.raises(HostError, match="is open to others"):
        lab.keyholder.start()
    with pytest.raises(HostError, match="is open to others"):
        lab.made(fingerprint=lab.public.fingerprint)


def test_worker_view_never_contains_the_key(lab, tmp_path, monkeypatch):
    tmp_path.chmod(0o755)  # as a user's own worker, whose the key is, may go there
    state = tmp_path / "state/exeat/ca"
    state.mkdir(parents=True)
    (state / "ca.pem").write_text("the key")
    (tmp_path / "module.py").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.syspath_prepend(str(tmp_path))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        try:
            confinement.enter(lab.who)
            above, within = os.listdir(tmp_path), os.listdir(tmp_path / "state/exeat")
            message.send(theirs, {"above": above, "within": within})
        finally:
            os._exit(0)
    theirs.close()
    with ours:
        ours.settimeout(PATIENCE)
        found, _ = message.receive(ours)
    os.waitpid(pid, 0)
    assert {"module.py", "state"} <= set(found["above"])
    assert found["within"] == []
