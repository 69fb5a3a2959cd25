"""What `exeat run` does where a service listens."""

import os
import resource
import select
import shutil
import signal
import subprocess
import sys

import pytest

from enforcer import cli
from enforcer.service import client as of_python
from enforcer.service import control_client
from enforcer.system import control_socket
from enforcer.system.errors import HostError
from tests.enforcer.service import clients
from tests.support import harness

NULL = os.makedev(1, 3)


@pytest.fixture
def service():
    there = clients.Listening()
    yield there
    there.close()


def test_request_has_every_setting_of_the_caller(service):
    def before():
        os.umask(0o027)
        os.nice(3)
        resource.setrlimit(resource.RLIMIT_NOFILE, (77, 777))
        for number in (signal.SIGHUP, signal.SIGCHLD, signal.SIGRTMAX, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_IGN)

    variables = [b"A=first", b"A=second", b"no variable", b"=no name", b"BYTES=\xff\xfe", b"LONG=" + b"x" * 100_000]
    words = ["--rules", "a b", "", "--", "ls", "-h", os.fsdecode(b"\xff")]
    client = service.start("run", *words, env=variables, before=before, cwd=service.directory)
    asked = service.asked()
    assert asked.run.words == tuple(words)
    assert asked.run.environment == {
        "LC_ALL": "C.UTF-8",
        "PATH": "/usr/bin:/bin",
        "A": "first",
        "BYTES": "\udcff\udcfe",
        "LONG": "x" * 100_000,
        "EXEAT_CONTROL": str(service.path),
    }
    assert (asked.run.umask, asked.run.nice - os.nice(0)) == (0o027, 3)
    assert asked.run.limits[resource.RLIMIT_NOFILE] == (77, 777)
    assert asked.run.limits == tuple(
        (77, 777) if number == resource.RLIMIT_NOFILE else resource.getrlimit(number) for number in range(16)
    )
    # Of SIGPIPE and SIGXFSZ an interpreter can't tell, so tasks are alike without them.
    ignored = {number for number in range(1, 65) if asked.run.ignored >> (number - 1) & 1}
    assert ignored - _ignored_here() == {signal.SIGHUP, signal.SIGCHLD, signal.SIGRTMAX} - _ignored_here()
    assert os.fstat(asked.descriptors[0]).st_rdev == NULL
    os.write(asked.descriptors[1], b"out")
    os.write(asked.descriptors[2], b"err")
    assert os.path.samestat(os.fstat(asked.descriptors[3]), os.stat(service.directory))
    asked.connection.send(b"status 0")
    assert service.ended(client) == (0, "out", "err")


def _ignored_here():
    return {number for number in signal.valid_signals() if signal.getsignal(number) == signal.SIG_IGN}


ENDS = {
    "peacefully": (b"status 0", 0),
    "with a status": (b"status 768", 3),
    "with the largest": (b"status 65280", 255),
    "killed": (b"status 9", -signal.SIGKILL),
    "terminated": (b"status 15", -signal.SIGTERM),
    "with a core": (b"status 139", -signal.SIGSEGV),
    "by a signal that is for real-time": (b"status 40", -40),
}


@pytest.mark.parametrize("how", ENDS)
def test_client_exits_as_the_task(service, how):
    said, status = ENDS[how]
    # Whatever its caller thought of that signal.
    client = service.start("run", before=lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN))
    service.asked().connection.send(said)
    assert service.ended(client) == (status, "", "")


# Words that are none, each in its own way.
ODD = (
    b"refused you are in another user namespace", b"stats 0", b"status", b"status ", b"status x", b"status -1", b"status  1",
    b"status 1 ", b"status 65536", b"status 127", b"status 0\0", b"terminal", b"\xff", b"x" * 60_000,
)  # fmt: skip


@pytest.mark.parametrize("said", [None, *ODD], ids=["gone", *(str(each[:12]) for each in ODD)])
def test_unknown_message_ends_the_task(service, said):
    client = service.start("run")
    connection = service.asked().connection
    if said:
        connection.send(said)
    connection.close()
    assert service.ended(client) == (
        125,
        "",
        "exeat: the service's process for this task ended, and the task with it; see the service's log\n",
    )


def test_signals_are_relayed_and_the_last_message_is_read(service):
    client = service.start("run", before=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    connection = service.asked().connection
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGWINCH):
        client.send_signal(number)  # none comes before the client is ready for it: it is, or would end, once it asks
        assert connection.recv(99) == b"signal %d 0" % number
    client.send_signal(signal.SIGUSR1)
    assert select.select([connection], [], [], clients.PATIENCE)[0]
    connection.send(b"status 1792")
    connection.close()
    assert service.ended(client)[0] == 7


def test_signals_of_the_terminal_are_marked(service):
    primary, secondary = os.openpty()
    name = os.ttyname(secondary)

    def before():
        os.setsid()
        os.close(os.open(name, os.O_RDWR))  # the first that a session leader opens is its own: tty(4)

    client = service.start("run", before=before)
    connection = service.asked().connection
    client.send_signal(signal.SIGHUP)
    assert connection.recv(99) == b"signal 1 0"
    os.write(primary, b"\x03")
    assert connection.recv(99) == b"signal 2 1"
    os.close(secondary)
    os.close(primary)
    assert [connection.recv(99) for _ in range(2)] == [b"signal 1 1", b"signal 18 1"]  # SIGCONT goes along
    client.send_signal(signal.SIGHUP)  # as a shell does whose terminal is gone
    assert connection.recv(99) == b"signal 1 1"
    connection.send(b"status 0")
    assert service.ended(client)[0] == 0


def test_closed_streams_and_missing_directory_are_accepted(service):
    def before():
        os.mkdir("gone")
        os.chdir("gone")
        os.rmdir("../gone")
        os.closerange(0, 3)

    client = service.start("run", before=before, cwd=service.directory)
    asked = service.asked()
    assert [os.fstat(number).st_rdev for number in asked.descriptors[:3]] == [NULL] * 3
    assert os.fstat(asked.descriptors[3]).st_nlink == 0
    asked.connection.send(b"status 256")
    assert service.ended(client)[0] == 1


def test_declined_request_runs_without_the_service(service):
    client = service.start("run", "--rules", "none.yaml", "--", "true", cwd=service.directory)
    service.asked().connection.send(b"declined you have other groups than the service")
    status, _, err = service.ended(client)
    first, _, rest = err.partition("\n")
    assert first == "exeat: you have other groups than the service; this task runs without the service"
    assert (status, "none.yaml" in rest) == (2, True)
    assert service.nobody_asks()


@pytest.mark.parametrize("words", [["-h"], ["--rules", "x", "--help"], ["--rules", "x", "--no-service", "--", "true"]])
def test_local_commands_contact_no_service(service, words):
    service.ended(service.start("run", *words, cwd=service.directory))
    assert service.nobody_asks()


NOWHERE = {
    "a relative path": "control",
    "a path that is too long": "/" + "x" * 107,
    "nobody there": "/dev/null/none",
    "no place": "",
}


@pytest.mark.parametrize("where", NOWHERE)
def test_task_runs_without_a_service(service, where):
    words = ("run", "--rules", "none.yaml", "--", "true")
    status, _, err = service.ended(service.start(*words, control=NOWHERE[where], env=[b"XDG_RUNTIME_DIR=x"]))
    assert (status, "none.yaml" in err) == (2, True)
    assert service.nobody_asks()


def _another_user():
    os.setresuid(harness.UID, harness.UID, harness.UID)


def _in_a_user_namespace():
    uid = os.getuid()
    os.unshare(os.CLONE_NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def _in_a_pid_namespace():
    os.unshare(os.CLONE_NEWPID)  # of what it forks


# The moment whose credentials count is when somebody began to listen: unix(7).
STRANGERS = {
    "another user": _another_user,
    "in a user namespace": _in_a_user_namespace,  # as a task of ours is, with our uid
    "in a pid namespace": _in_a_pid_namespace,
    "gone": None,
}


@pytest.mark.parametrize("who", STRANGERS)
def test_foreign_listener_gets_no_request(service, who, monkeypatch):
    harness.needs_root()
    monkeypatch.setattr(control_socket, "control_path", lambda: str(service.path))
    become = STRANGERS[who]
    with clients.elsewhere(become or (lambda: None), service.socket.listen, stays=become is not None):
        assert service.ended(service.start("run", "--rules", "none.yaml", "--", "true"))[0] == 2  # by itself
        connection, _ = service.socket.accept()
        with connection:
            assert connection.recv(99) == b""
        with pytest.raises(HostError, match="is another user's, or in a sandbox"):
            control_client.send_request({"what": "ps"})


def test_oversized_request_runs_without_the_service(service):
    def before():
        resource.setrlimit(resource.RLIMIT_FSIZE, (16, 16))  # a memory file is a file

    status, _, err = service.ended(service.start("run", "--rules", "none.yaml", "--", "true", before=before))
    assert (status, "none.yaml" in err) == (2, True)


def test_copied_environment_refuses_to_run(tmp_path):
    """The interpreter in the script's first line is the original's."""
    script = tmp_path / ".venv" / "bin" / "exeat"
    script.parent.mkdir(parents=True)
    (tmp_path / ".venv" / "pyvenv.cfg").touch()
    shutil.copy(harness.PROJECT / "enforcer" / "exeat", script)
    environment = {**os.environ, "PYTHONPATH": str(harness.PROJECT)}
    done = subprocess.run([sys.executable, script, "--version"], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{tmp_path}/.venv is a copy of {sys.prefix} and would run the code there" in done.stderr


def test_arguments_of_the_task_do_not_choose_the_service(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setenv("EXEAT_CONTROL", str(tmp_path))  # something is there
    monkeypatch.setattr(of_python, "run", lambda words: asked.append(words) or 0)
    for word in ("-h", "--help", "--no-service"):
        assert cli.main(["run", "--rules", "x", "--", "ls", word]) == 0
    assert [words[-1] for words in asked] == ["-h", "--help", "--no-service"]
