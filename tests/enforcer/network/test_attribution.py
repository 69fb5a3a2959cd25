"""Whose socket it is: asked of the kernel with real connections, looked up in a real /proc and in made-up ones."""

import errno
import os
import socket
import struct
import subprocess
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from netns_harness import ORDINARY, outcome

from enforcer import linux
from proxy import attribution
from proxy.attribution import Owner, ask_owner, encode_query, find_process, parse_owner
from proxy.netlink import HEADER, MalformedMessageError, message
from tests import harness

TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP


def end(address):
    """Return an endpoint in one form, as the gate does with what the kernel gives."""
    plain = ip_address(address[0].partition("%")[0])
    return getattr(plain, "ipv4_mapped", None) or plain, address[1]


def ask_about(network, connection, peer):
    return ask_owner(network.sockets.diag, TCP, end(peer), end(connection.getsockname()))


class Held:
    """A task that opens a connection and holds it until told otherwise."""

    def __init__(self, network, address, *, family=None, before=lambda _: None, protocol=0):
        self.here, self.there = socket.socketpair()
        self.here.settimeout(20)

        def hold():
            with socket.socket(
                family or (socket.AF_INET6 if ":" in address else socket.AF_INET), socket.SOCK_STREAM, protocol
            ) as sock:
                before(sock)
                sock.connect((address, 443))
                inode = os.fstat(sock.fileno()).st_ino
                self.there.sendall(struct.pack("QQ", inode, os.getpid()))
                self.there.recv(1)

        self.running = network.start(hold)
        self.inode, self.pid = struct.unpack("QQ", self.here.recv(16))
        self.connection, self.peer = network.sockets.tcp.accept()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.running.end()
        for sock in self.here, self.there, self.connection:
            sock.close()


@pytest.mark.parametrize(
    ("address", "family"),
    [
        ("93.184.216.34", socket.AF_INET),
        ("2606::1", socket.AF_INET6),
        ("::ffff:93.184.216.34", socket.AF_INET6),
    ],
)
def test_the_owner_of_a_connection_is_named_with_inode_and_uid(network, address, family):
    with Held(network, address, family=family) as held:
        owner = ask_about(network, held.connection, held.peer)
        assert owner == Owner(held.inode, 0 if network.rootless else ORDINARY)


def test_a_connection_to_the_gates_own_port_has_an_owner(network):
    def connect(sock):
        sock.connect(("127.0.0.1", network.plan.gate_port))
        return os.fstat(sock.fileno()).st_ino, sock.getsockname()

    def hold():
        with socket.socket() as sock:
            inode, name = connect(sock)
            connection, peer = network.sockets.tcp.accept()
            with connection:
                return ask_about(network, connection, peer).inode == inode and peer[1] == name[1]

    assert network.run(hold)


@pytest.mark.parametrize("way", ["bound to lo", "multipath", "from the loopback"])
def test_an_odd_client_is_named_or_unknown_and_never_another(network, way):
    before = {
        "bound to lo": lambda sock: sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo"),
        "from the loopback": lambda sock: sock.bind(("127.0.0.1", 0)),
    }.get(way, lambda _: None)
    with Held(network, "8.8.8.8", before=before, protocol=262 if way == "multipath" else 0) as held:
        owner = ask_about(network, held.connection, held.peer)
        if way == "multipath":
            assert owner is None or owner.inode == held.inode
        else:
            assert owner is not None
            assert owner.inode == held.inode


def test_a_listener_on_the_clients_port_is_not_taken_for_the_client(network):
    """Where no connection has the ends asked for, the kernel answers with a listener."""

    def listen_and_ask():
        with socket.socket() as server:
            server.bind(("0.0.0.0", 7777))
            server.listen()
            local, remote = (ip_address("192.0.0.2"), 7777), (ip_address("8.8.8.8"), 443)
            return ask_owner(network.sockets.diag, TCP, local, remote)

    assert network.run(listen_and_ask) is None


def test_a_connection_that_is_gone_has_no_owner(network):
    with Held(network, "8.8.8.8") as held:
        held.running.end()
        assert ask_about(network, held.connection, held.peer) is None


def test_asking_takes_no_capability_and_an_unread_answer_confuses_nobody(network):
    with Held(network, "8.8.8.8") as held, Held(network, "9.9.9.9") as other:
        ends = [(end(one.peer), end(one.connection.getsockname())) for one in (held, other)]
        network.sockets.diag.send(encode_query(TCP, *ends[1]))  # its answer is left lying
        owner = network.run(lambda: ask_owner(network.sockets.diag, TCP, *ends[0]))
        assert owner.inode == held.inode


def test_the_sender_of_a_query_is_named(network):
    def send_and_ask():
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connected,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as loose,
        ):
            connected.connect(("8.8.8.8", 53))
            connected.send(b"x")
            loose.sendto(b"x", ("8.8.8.8", 53))
            answers = []
            for sock in connected, loose:
                local = (ip_address("192.0.0.2"), sock.getsockname()[1])
                owner = ask_owner(network.sockets.diag, UDP, local, (ip_address("8.8.8.8"), 53))
                answers.append(owner is not None and owner.inode == os.fstat(sock.fileno()).st_ino)
            nobody = ask_owner(network.sockets.diag, UDP, (ip_address("192.0.0.2"), 9), (ip_address("8.8.8.8"), 53))
            return answers, nobody

    assert network.run(send_and_ask) == ([True, True], None)


def test_a_closed_socket_is_unknown_and_not_an_error():
    with socket.socket() as sock:
        pass
    assert ask_owner(sock, TCP, (ip_address("::1"), 1), (ip_address("::1"), 2)) is None


# Parsing

LOCAL, REMOTE = (ip_address("192.0.0.2"), 40000), (ip_address("8.8.8.8"), 443)


def answer(local=LOCAL, remote=REMOTE, inode=77, uid=1000, kind=20):
    body = struct.pack("=BBBB", socket.AF_INET if local[0].version == 4 else socket.AF_INET6, 1, 0, 0)
    body += struct.pack("!HH16s16s", local[1], remote[1], local[0].packed, remote[0].packed) + bytes(12)
    return message(kind, 0, body + struct.pack("=IIIII", 0, 0, 0, uid, inode))


def test_only_the_exact_answer_names_an_owner():
    assert parse_owner(answer(), TCP, LOCAL, REMOTE) == Owner(77, 1000)
    for other in (
        answer(local=(LOCAL[0], 40001)),
        answer(remote=(REMOTE[0], 444)),
        answer(remote=(ip_address("8.8.8.9"), 443)),
        answer(local=(ip_address("0.0.0.0"), 40000), remote=(ip_address("0.0.0.0"), 0)),
        answer(inode=0),
        answer(kind=2),
        b"",
    ):
        assert parse_owner(other, TCP, LOCAL, REMOTE) is None


def test_an_unconnected_udp_socket_must_be_bound_to_the_port_and_to_no_other_address():
    nowhere = (ip_address("0.0.0.0"), 0)
    assert parse_owner(answer((ip_address("0.0.0.0"), 40000), nowhere), UDP, LOCAL, REMOTE) == Owner(77, 1000)
    assert parse_owner(answer((ip_address("127.0.0.1"), 40000), nowhere), UDP, LOCAL, REMOTE) is None
    assert parse_owner(answer((ip_address("0.0.0.0"), 40001), nowhere), UDP, LOCAL, REMOTE) is None
    assert parse_owner(answer((ip_address("0.0.0.0"), 40000), (REMOTE[0], 1)), UDP, LOCAL, REMOTE) is None


def test_a_cut_answer_names_nobody():
    whole = answer()
    for length in range(len(whole)):
        assert outcome_of(whole[:length]) is None


@given(st.binary(max_size=120))
def test_no_bytes_raise_anything_else(data):
    outcome_of(data)
    outcome_of(message(20, 0, data))


def outcome_of(data):
    try:
        return parse_owner(data, TCP, LOCAL, REMOTE)
    except MalformedMessageError:
        return None


def test_each_question_has_a_number_of_its_own():
    numbers = {HEADER.unpack_from(encode_query(TCP, LOCAL, REMOTE))[3] for _ in range(50)}
    assert len(numbers) > 45


# /proc


@pytest.fixture
def proc(monkeypatch):
    """The host's, where whatever else runs has descriptors too: more of them than a sandbox is looked through for."""
    monkeypatch.setattr(attribution, "_MOST_DESCRIPTORS", 1_000_000)
    handle = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    yield handle
    os.close(handle)


def test_the_process_is_described_with_its_ancestors(network, proc):
    with Held(network, "8.8.8.8") as held:
        process = find_process(proc, ask_about(network, held.connection, held.peer))
        assert process.pid == held.pid
        assert process.exe == os.readlink(f"/proc/{held.pid}/exe")
        assert process.argv[0].split("/")[-1].startswith(("python", "pytest"))
        assert process.uid == (0 if network.rootless else ORDINARY)
        assert process.ancestors[0] == os.readlink(f"/proc/{os.getpid()}/exe")


def test_a_socket_that_two_processes_hold_is_nobodys(proc):
    with socket.socket() as sock:
        inode = os.fstat(sock.fileno()).st_ino
        assert find_process(proc, Owner(inode, 0)).pid == os.getpid()
        with subprocess.Popen(["sleep", "60"], pass_fds=[sock.fileno()]) as child:
            shared = find_process(proc, Owner(inode, 0))
            child.kill()
    assert shared is None


def test_a_socket_that_nobody_holds_is_unknown(proc):
    assert find_process(proc, Owner(2**31, 0)) is None


def test_a_proc_that_is_not_one_is_unknown(tmp_path):
    handle = os.open(tmp_path, os.O_RDONLY)
    try:
        assert find_process(handle, Owner(7, 0)) is None
    finally:
        os.close(handle)
    assert find_process(handle, Owner(7, 0)) is None


def fake_process(root, pid, *, descriptors, name=b"cat", parent=0, exe="/bin/cat", argv=b"cat\0file\0"):
    directory = root / str(pid)
    (directory / "fd").mkdir(parents=True)
    for number, link in enumerate(descriptors):
        (directory / "fd" / str(number)).symlink_to(link)
    (directory / "exe").symlink_to(exe)
    (directory / "cmdline").write_bytes(argv)
    (directory / "stat").write_bytes(b"%d (%s) S %d 1 1" % (pid, name, parent))


@pytest.fixture
def fake(tmp_path):
    handle = os.open(tmp_path, os.O_RDONLY)
    yield tmp_path, handle
    os.close(handle)


def test_a_hostile_name_and_argv_stay_text(fake):
    root, handle = fake
    fake_process(root, 5, descriptors=[], name=b"shell", parent=0, exe="/bin/sh")
    hostile = b"x) S 1 1 (y"
    fake_process(
        root, 7, descriptors=["socket:[99]"], name=hostile, parent=5, exe=b"/tmp/\xff\n\x1b[2J", argv=b"a\xff\0b\n\0"
    )
    process = find_process(handle, Owner(99, 3))
    assert (process.pid, process.uid, process.ancestors) == (7, 3, ("/bin/sh",))
    assert process.exe == "/tmp/\\xff\n\x1b[2J"
    assert process.argv == ("a\\xff", "b\n")


def test_a_parent_loop_ends(fake):
    root, handle = fake
    fake_process(root, 7, descriptors=["socket:[99]"], parent=7)
    assert len(find_process(handle, Owner(99, 3)).ancestors) == 8


def test_another_inode_that_starts_alike_is_not_it(fake):
    root, handle = fake
    fake_process(root, 7, descriptors=["socket:[990]", "socket:[9]", "/socket:[99]", "pipe:[99]"])
    assert find_process(handle, Owner(99, 3)) is None


def test_too_many_descriptors_are_not_looked_through(fake, monkeypatch):
    root, handle = fake
    monkeypatch.setattr("proxy.attribution._MOST_DESCRIPTORS", 10)
    fake_process(root, 7, descriptors=["socket:[99]"])
    assert find_process(handle, Owner(99, 3)).pid == 7
    fake_process(root, 8, descriptors=[f"socket:[{number}]" for number in range(10)])
    assert find_process(handle, Owner(99, 3)) is None


def test_a_process_that_may_not_be_looked_into_is_passed_over(network):
    """A rootless worker can't read its sandbox's non-dumpable init: what it can read still has to name the holder."""
    harness.needs_root()  # else there is no process of another's to be kept out of

    def look():
        linux.prctl(linux.PR_SET_DUMPABLE, 1)  # else our own descriptors are root's since the change of uid
        handle = os.open("/proc", os.O_RDONLY)
        with socket.socket() as sock:
            found = find_process(handle, Owner(os.fstat(sock.fileno()).st_ino, 5))
        return outcome(lambda: os.listdir("/proc/1/fd")), found.pid, os.getpid()

    refused, found, own = network.run(look)
    assert refused == errno.EACCES
    assert found == own
