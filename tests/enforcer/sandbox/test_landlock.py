"""Landlock by itself, without any mount: it holds what a hole in the view would let through."""

import json
import os
import signal
import socket

import pytest

from enforcer.sandbox import landlock, mount_plan
from enforcer.sandbox.landlock import Grant
from tests.enforcer.sandbox.test_mount_plan import _identity
from tests.support import harness

EVERYTHING, READS, LISTS = landlock.ALL_RIGHTS, landlock.READ_RIGHTS, landlock.LIST_RIGHTS


def behind(granted, attempts, descriptors=()):
    """Try things in a child that is behind the wall: what each gave, or the name of its error."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        said = {}
        try:
            landlock.restrict(granted, descriptors)
            for name, attempt in attempts.items():
                try:
                    said[name] = attempt() or "done"
                except OSError as error:
                    said[name] = os.strerror(error.errno)
            os.write(writer, json.dumps(said).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        said = answer.read()
    os.waitpid(pid, 0)
    return json.loads(said)


@pytest.fixture
def tree(tmp_path):
    if landlock.version() < landlock.MIN_VERSION:
        harness.missing("landlock")
    for path in ("written/sub/x", "read/x", "neither/x"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(path)
    return tmp_path


def test_landlock_allows_only_granted_paths(tree):
    whole = os.open(tree, os.O_RDONLY)  # of a directory above, as a leak would be
    within = os.open(tree / "neither", os.O_RDONLY)
    granted = [
        Grant("/", LISTS),
        Grant(f"{tree}/written", EVERYTHING),
        Grant(f"{tree}/read", READS),
        Grant("/no/such", READS),
    ]
    said = behind(granted, {
        "write": lambda: (tree / "written/new").write_text("") and None,
        "make": (tree / "written/made").mkdir,
        "move": lambda: os.rename(tree / "written/sub/x", tree / "written/made/x"),
        "link": lambda: os.link(tree / "written/made/x", tree / "written/y"),
        "cut": lambda: os.truncate(tree / "written/y", 1),
        "socket": lambda: socket.socket(socket.AF_UNIX).bind(str(tree / "written/s")),
        "device": lambda: os.mknod(tree / "written/null", 0o020666, os.makedev(1, 3)),
        "read": (tree / "read/x").read_text,
        "list": lambda: ",".join(sorted(os.listdir(tree))),
        "write what is read": lambda: (tree / "read/x").write_text(""),
        "remove what is read": lambda: os.unlink(tree / "read/x"),
        "read neither": (tree / "neither/x").read_text,
        "read by a descriptor of what is above": lambda: os.open("neither/x", os.O_RDONLY, dir_fd=whole),
        "read by a descriptor of it": lambda: os.open("x", os.O_RDONLY, dir_fd=within),
        "write by a descriptor": lambda: os.open("y", os.O_WRONLY | os.O_CREAT, dir_fd=within),
        "take from neither": lambda: os.link(tree / "neither/x", tree / "written/taken"),
        "move out": lambda: os.rename(tree / "written/y", tree / "neither/y"),
        "run": lambda: os.execv(tree / "neither/x", ["x"]),
    })  # fmt: skip
    os.close(whole)
    os.close(within)
    worked = {"read": "read/x", "list": "neither,read,written", "take from neither": "Invalid cross-device link"}
    done = ("write", "make", "move", "link", "cut", "socket")
    assert {name: result for name, result in said.items() if result != "Permission denied"} == {
        **dict.fromkeys(done, "done"),
        **worked,
    }


def test_open_device_can_be_reopened(tree):
    null = os.open("/dev/null", os.O_RDWR)
    attempts = {"again": lambda: os.close(os.open(f"/proc/self/fd/{null}", os.O_WRONLY)), "other": lambda: os.open("/dev/zero", os.O_RDONLY)}  # fmt: skip
    granted = [Grant("/", LISTS)]
    assert behind(granted, attempts, [null]) == {"again": "done", "other": "Permission denied"}
    assert behind(granted, attempts, [])["again"] == "Permission denied"
    os.close(null)


def test_signals_and_abstract_sockets_are_scoped(tree):
    if landlock.version() < 6:
        harness.missing("landlock of version 6")
    name = f"\0exeat-landlock-{os.getpid()}"
    server = socket.socket(socket.AF_UNIX)
    server.bind(name)
    server.listen()
    attempts = {
        "signal": lambda: os.kill(os.getppid(), 0),
        "itself": lambda: os.kill(os.getpid(), 0),
        "connect": lambda: socket.socket(socket.AF_UNIX).connect(name),
    }
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    said = behind([Grant("/", LISTS)], attempts)
    server.close()
    assert said == {"signal": "Operation not permitted", "itself": "done", "connect": "Operation not permitted"}


def test_task_runs_without_landlock(tree, monkeypatch):
    for found in (0, 1):
        monkeypatch.setattr(landlock, "version", lambda found=found: found)
        assert behind([], {"read": (tree / "neither/x").read_text}) == {"read": "neither/x"}


def test_landlock_rules_follow_the_mount_plan(tmp_path):
    for name in ("work", "more", "shown"):
        (tmp_path / name).mkdir()
    work, more, shown = (str(tmp_path / name) for name in ("work", "more", "shown"))
    wanted = mount_plan.MountRequest(
        _identity(), work, {}, read=(shown,), write=(more,), caches=(mount_plan.CacheMount("/state", "/var/cache/x"),)
    )
    granted = {grant.path: grant.rights for grant in landlock.grants(mount_plan.plan(wanted), wanted.writable)}
    written = ("/dev/shm", "/home/someone", "/run", "/tmp", "/var", "/var/cache/x", more, work)
    assert {path: rights for path, rights in granted.items() if rights == EVERYTHING} == dict.fromkeys(written, EVERYTHING)  # fmt: skip
    assert granted[shown] == granted["/usr"] == granted["/etc"] == READS
    assert granted["/"] == LISTS
    assert granted["/dev"] == granted["/proc"] == granted["/dev/pts"]
    assert not granted["/dev"] & (EVERYTHING & ~READS & ~landlock.DEVICE_RIGHTS)
