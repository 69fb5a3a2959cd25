"""Hosts that let a user namespace be made and refuse what it is for: one sentence that says what to change."""

import builtins
import errno
import io
import json
import os
import socket
import sys
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from enforcer.sandbox import identity, mount_steps, namespaces
from enforcer.sandbox.identity import Identity, IdMap, namespace_permission, namespace_remedy, namespace_used
from enforcer.system.errors import HostError
from enforcer.worker import confinement
from tests.support import harness

REFUSING = Path(__file__).with_name("refusing.py")
RULES = "version: 1\nname: nothing\nrules: []\n"
CLONE, APPARMOR = (path for path, _ in identity._NAMESPACE_SYSCTLS)
LIMIT = "run `sysctl -w user.max_user_namespaces=15000` as root, or in a container allow user namespaces"
UNCONFINED = "--security-opt seccomp=unconfined --security-opt apparmor=unconfined"
REFUSED = "a user namespace can be made here, and its ids or capabilities are refused (Operation not permitted); "
# What the host's files say, what is said to do where none can be made, and where one can and is of no use.
SETTINGS = {
    "Debian's": ({CLONE: "0\n"}, *["run `sysctl -w kernel.unprivileged_userns_clone=1` as root"] * 2),
    "Ubuntu's": ({APPARMOR: "1\n"}, *["run `sysctl -w kernel.apparmor_restrict_unprivileged_userns=0` as root"] * 2),
    "neither": ({CLONE: "1\n", APPARMOR: "0\n"}, *[UNCONFINED] * 2),
    "a host without them": ({}, *[UNCONFINED] * 2),
}
ONE = IdMap(((0, 4242, 1),))


def _identity():
    return Identity(
        privileged=False, outer_uids=ONE, outer_gids=ONE, inner_uids=ONE, inner_gids=ONE, user="someone", uid=4242, gid=4242,
        home="/home/someone", kernel_uid=4242, kernel_gid=4242, worker_uid=4242, signer_uid=4242,
    )  # fmt: skip


@pytest.fixture(params=SETTINGS)
def host(request, monkeypatch):
    """A host of these settings, which lets a user namespace be made, and neither its ids be mapped nor anything else."""
    files, making, using = SETTINGS[request.param]

    def fake(path, *arguments, **named):
        if path in {CLONE, APPARMOR}:
            if path not in files:
                raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
            return io.StringIO(files[path])
        if path.startswith("/proc/self/"):
            raise PermissionError(errno.EPERM, "Operation not permitted", path)
        return builtins.open(path, *arguments, **named)

    made = []
    monkeypatch.setattr(identity, "open", fake, raising=False)
    monkeypatch.setattr(os, "unshare", made.append)
    yield making, using
    assert set(made) <= {os.CLONE_NEWUSER}


def test_setting_that_forbids_user_namespaces_is_named(host):
    making, _ = host
    assert making in namespace_remedy(errno.EPERM)
    assert namespace_remedy(errno.ENOSPC) == LIMIT


def test_setting_that_restricts_the_worker_is_named(host):
    _, using = host
    with pytest.raises(HostError) as raised:
        confinement.enter(_identity())
    assert str(raised.value).startswith(REFUSED)
    assert using in raised.value.remedy


def test_setting_that_restricts_a_sandbox_is_named(host):
    """What stands for its first process has maps already, which the kernel never lets be written again."""
    _, using = host
    with pytest.raises(HostError) as raised:
        namespaces.map_ids(os.getpid(), _identity())
    assert str(raised.value).startswith(REFUSED)
    assert using in raised.value.remedy


def test_limits_of_other_namespaces_are_distinguished():
    with (
        pytest.raises(HostError, match=r"\(No space left on device\); raise the limits that `sysctl user` shows"),
        namespace_used(),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _of_ids(uid):
    """The write(2) that maps a worker's ids, told by how long it is."""
    return "write", 2, len(f"{uid} {uid} 1\n")


def _of_capabilities(_uid):
    """The unshare(2) with which a sandbox's first process uses its capabilities."""
    return "unshare", 0, os.CLONE_NEWNS | os.CLONE_NEWPID | os.CLONE_NEWNET | os.CLONE_NEWIPC | os.CLONE_NEWUTS


@harness.as_a_user
@pytest.mark.parametrize(
    ("call", "which"), [(_of_ids, "the gate could not be started"), (_of_capabilities, "the sandbox could not be made")],
    ids=["the worker's ids", "the sandbox's capabilities"],
)  # fmt: skip
def test_failed_run_says_what_is_refused_and_the_remedy(someone, call, which):
    rules = someone.write(someone.home / "rules.yaml", RULES)
    exeat = [Path(sys.executable).with_name("exeat"), "run", "--rules", rules, "--", "touch", "started"]
    done = someone.run([sys.executable, REFUSING, "EPERM", *call(harness.UID), *exeat])
    [line] = done.stderr.decode().splitlines()
    assert (done.returncode, line.startswith(f"exeat: {which}: {REFUSED}")) == (125, True), line
    assert line.endswith(namespace_permission(errno.EPERM))
    assert not (someone.work / "started").exists()


@harness.as_a_user
def test_masked_proc_is_reported_with_a_remedy(someone):
    """As container engines mask it: what is mounted over in the host's, a fresh one would show."""
    rules = someone.write(someone.home / "rules.yaml", RULES)
    exeat = [Path(sys.executable).with_name("exeat"), "run", "--rules", rules, "--", "touch", "started"]
    masked = ["unshare", "--mount", "sh", "-c", 'mount --bind /dev/null /proc/version; exec "$@"', "sh"]
    done = harness.run([*masked, *harness.as_user(exeat, someone.home)], home=someone.home, cwd=someone.work)
    why = f"Operation not permitted, since parts of this host's /proc are masked; {mount_steps.UNMASK}"
    said = f"exeat: the sandbox could not be made: could not mount a fresh proc on /proc: {why}\n"
    assert (done.returncode, done.stderr.decode()) == (125, said)
    assert not (someone.work / "started").exists()


WITHOUT_IPV6 = """
import json, socket
def tried(function):
    try:
        return function()
    except OSError as error:
        return type(error).__name__ if error.errno is None else error.strerror
def ask(name):
    with socket.create_connection((name, 80), timeout=30) as sock:
        sock.sendall(f"GET / HTTP/1.1\\r\\nHost: {name}\\r\\n\\r\\n".encode())
        return sock.recv(1000).split()[1].decode()
def datagram():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("192.0.2.1", 9999))
        sock.send(b"x")
        sock.settimeout(30)
        return sock.recv(1).decode()
print(json.dumps({
    "socket": tried(lambda: socket.socket(socket.AF_INET6)), "interfaces": [name for _, name in socket.if_nameindex()],
    "addresses": [place[0] for *_, place in socket.getaddrinfo("allowed.example", 80, type=socket.SOCK_STREAM)],
    "denied": tried(lambda: ask("denied.example")), "literal": tried(lambda: ask("192.0.2.1")), "udp": tried(datagram),
}))
"""


@harness.as_a_user
def test_run_without_ipv6_is_closed_and_works_over_ipv4(someone):
    allowed = RULES.replace("[]", "[{id: one, to: allowed.example, action: allow}]")
    rules = someone.write(someone.home / "rules.yaml", allowed)
    exeat = [Path(sys.executable).with_name("exeat"), "run", "--rules", rules, "--", "python3", "-c", WITHOUT_IPV6]
    done = someone.run([sys.executable, REFUSING, "EAFNOSUPPORT", "socket", 0, int(socket.AF_INET6), *exeat])
    assert done.returncode == 0, done.stderr.decode()
    said = json.loads(done.stdout)
    [address] = said.pop("addresses")
    assert ip_address(address) in ip_network("198.18.0.0/15")
    assert said == {
        "socket": "Address family not supported by protocol", "interfaces": ["lo"], "denied": "403", "literal": "403",
        "udp": "Connection refused",
    }  # fmt: skip
    told = {(event["kind"], event["reason"]) for event in someone.events() if event.get("outcome") == "blocked"}
    connections = {("connection.decided", reason) for reason in ("no_rule", "non_public_address", "udp")}
    assert told == {("dns.decided", "dns_denied"), *connections}
