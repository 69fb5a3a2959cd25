"""The watcher against tasks that flood, interrupt, confuse and outlive it: nothing is ever let through for want of it."""

import contextlib
import errno
import os
import signal
import threading
import time

import pytest

from enforcer.system import linux

from .watched import Watched, call, execute, filter_that_answers

EXECUTED = 0


def _mount():
    return call("mount", 0, 0, 0, 0, 0)


def _runs_true():
    return execute("/bin/true", "a", "b")


def test_denied_call_is_recorded_with_its_process():
    with Watched(lambda: [_mount(), call("socket", 40, 1, 0), call("setns", 0, 0)]) as watched:
        assert watched.result() == [errno.EPERM, errno.EAFNOSUPPORT, errno.EPERM]
        watched.answer_all(lambda _: (False,))
        assert [told.call for told in watched.refused] == [b"mount", b"socket", b"setns"]
        assert {told.who.pid for told in watched.refused} == {watched.task}
        assert {os.path.basename(told.who.exe)[:6] for told in watched.refused} == {b"python"}
        assert watched.refused[0].who.uid == os.getuid()
        assert watched.refused[0].who.argv
        assert watched.counted == {b"mount": 1, b"socket": 1, b"setns": 1}


def test_program_starts_only_when_allowed():
    def attempt():
        return [execute("/bin/true", "x"), execute("/bin/false", "y"), execute("/bin/true")]

    with Watched(attempt, commands=True) as watched:
        watched.answer_all(lambda asked: (asked.names[0] != b"/bin/false",))
        assert watched.result() == [EXECUTED, errno.EACCES, EXECUTED]
        assert [asked.words for asked in watched.asked] == [(b"x",), (b"y",), ()]
        assert all(asked.readable and asked.whole for asked in watched.asked)
        assert {asked.names[1] for asked in watched.asked} <= {b"/bin/true", b"/bin/false", b"/usr/bin/true", b"/usr/bin/false"}  # fmt: skip


@pytest.mark.parametrize("held", [True, False], ids=["while a program is held", "before anything is asked"])
def test_dead_supervisor_denies_everything(held):
    """Its descriptor was the last: the kernel says that there is no such call."""
    ready, go = os.pipe()

    def attempt():
        first = _runs_true() if held else os.read(ready, 1) and None
        return [first, _mount(), _runs_true()]

    with Watched(attempt, commands=True) as watched:
        if held:
            watched.until_asked()
        else:
            watched.hear()  # that it is there: else the task has nobody to give its listener to
        os.kill(watched.watcher, signal.SIGKILL)
        os.waitid(os.P_PID, watched.watcher, os.WEXITED | os.WNOWAIT)
        os.write(go, b"x")
        assert watched.result() == [errno.ENOSYS if held else None, errno.ENOSYS, errno.ENOSYS]
    os.close(ready)
    os.close(go)


@pytest.mark.parametrize("how", ["gone", "gone while it is asked", "silent", "answers something else"])
def test_silent_worker_starts_no_program(how):
    with Watched(_runs_true, commands=True, patience=0.5) as watched:
        if how == "gone":
            watched.worker.close()
        else:
            asked = watched.until_asked()
            if how == "gone while it is asked":
                watched.worker.close()
            elif how == "answers something else":
                watched.answer(asked.number + 1, go=True)
                watched.answer(asked.number - 1, go=True)
        assert watched.result() == errno.EACCES


def test_malformed_answer_starts_no_program():
    with Watched(_runs_true, commands=True) as watched:
        watched.until_asked()
        watched.worker.send(b"answer\0x\0y")
        assert watched.result() == errno.EACCES


def test_flood_of_denied_calls_is_counted_and_sampled():
    times = 1500

    def attempt():
        answers = []

        def flood():
            answers.append({_mount() for _ in range(times)})

        threads = [threading.Thread(target=flood) for _ in range(4)]
        for thread in threads:
            thread.start()
        ran = _runs_true()  # in the middle of it
        for thread in threads:
            thread.join()
        return [sorted(set().union(*answers)), ran]

    with Watched(attempt, commands=True) as watched:
        watched.answer_all(lambda _: (True,))
        assert watched.result() == [[errno.EPERM], EXECUTED]
        assert watched.counted == {b"mount": 4 * times}
        assert len(watched.refused) == 1


@pytest.mark.parametrize("killable", [True, False], ids=["this kernel", "a kernel before 5.19"])
def test_interrupted_exec_is_submitted_once(killable):
    """The signal has the call made again; what was decided on it holds for the same words.

    A signal that is ignored unless it is handled: the program that is started doesn't mind one that still waits.
    """

    def attempt():
        signal.signal(signal.SIGWINCH, lambda *_: None)
        signal.siginterrupt(signal.SIGWINCH, False)
        return _runs_true()

    with Watched(attempt, commands=True, killable=killable) as watched:
        asked = watched.until_asked()
        os.kill(asked.who.pid, signal.SIGWINCH)
        time.sleep(0.2)  # time for the kernel to take the call back, where it does
        watched.answer(asked.number, go=True)
        watched.answer_all(lambda _: (False,))
        assert watched.result() == EXECUTED
        assert len(watched.asked) == 1


def test_task_cannot_install_its_own_listener():
    def attempt():
        def own(action):
            pid = os.fork()
            if pid == 0:
                program = filter_that_answers(action)
                code = 0
                try:
                    linux.load_seccomp_with_listener(program)
                except OSError as error:
                    code = error.errno
                os._exit(code)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

        return own(0x7FC00000)

    with Watched(attempt, commands=True) as watched:
        assert watched.result() == errno.EBUSY


@pytest.mark.parametrize("action", [0x7FF00000, 0x7FFC0000, 0x7FFF0000], ids=["trace", "log", "allow"])
def test_filter_of_the_task_allows_nothing(action):

    def attempt():
        linux.load_seccomp(filter_that_answers(action) if action == 0x7FFF0000 else _only_for("mount", action))
        return _mount()

    with Watched(attempt) as watched:
        assert watched.result() == errno.EPERM


def _only_for(name, action):
    import struct

    from enforcer.sandbox.step_lists import NUMBERS

    from .watched import MACHINE

    operations = [(0x20, 0, 0, 0), (0x15, 0, 1, NUMBERS[MACHINE][name]), (0x06, 0, 0, action), (0x06, 0, 0, 0x7FFF0000)]
    return b"".join(struct.pack("=HBBI", *operation) for operation in operations)


def test_invalid_pointers_return_efault():
    def attempt():
        path = b"/bin/true\0"
        return [call("execve", 8, 0, 0), call("execve", path, 8, 0), call("execveat", -100, 8, 0, 0, 0)]

    with Watched(attempt, commands=True) as watched:
        assert watched.result() == [errno.EFAULT] * 3
        assert watched.asked == []


def test_missing_program_fails_without_approval(tmp_path):
    (tmp_path / "text").write_text("x")
    (tmp_path / "loop").symlink_to("loop")
    paths = [
        f"{tmp_path}/none",
        f"{tmp_path}/text",
        f"{tmp_path}/text/x",
        f"{tmp_path}/loop",
        str(tmp_path),
        "/" + "x" * 5000,
    ]

    with Watched(lambda: [execute(path) for path in paths], commands=True) as watched:
        expected = [errno.ENOENT, errno.EACCES, errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.ENAMETOOLONG]
        assert watched.result() == expected
        assert watched.asked == []


def test_program_is_matched_by_name_and_target(tmp_path):
    (tmp_path / "link").symlink_to("/bin/true")
    (tmp_path / "way").symlink_to(tmp_path)

    def attempt():
        os.chdir(tmp_path)
        opened = os.open("/bin/true", os.O_RDONLY | os.O_CLOEXEC)
        directory = os.open(tmp_path, os.O_RDONLY)
        in_memory = os.memfd_create("hidden")
        with open("/bin/true", "rb") as file:
            os.write(in_memory, file.read())
        return [
            execute("./link"),
            execute("way/way/link"),
            execute(f"/proc/self/fd/{opened}"),
            execute("/proc/self/cwd/link"),
            _at(opened, b"\0", 0x1000),
            _at(directory, b"link\0", 0),
            _at(in_memory, b"\0", 0x1000),
            _at(in_memory, b"\0", 0),
        ]

    with Watched(attempt, commands=True) as watched:
        watched.answer_all(lambda _: (True,))
        assert watched.result() == [EXECUTED] * 7 + [errno.ENOENT]
        real = os.fsencode(os.path.realpath("/bin/true"))
        leads_to = [asked.names[1] for asked in watched.asked]
        assert leads_to[:6] == [real] * 6
        assert leads_to[6].startswith(b"/memfd:hidden")
        assert os.path.basename(watched.asked[1].names[0]) == b"link"


def _at(directory, path, flags):
    import ctypes

    pid = os.fork()
    if pid == 0:
        argv = (ctypes.c_char_p * 2)(b"called", None)
        os._exit(call("execveat", directory, path, argv, (ctypes.c_char_p * 1)(None), flags))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("kind", ["pipe", "full pipe", "appended file", "read only", "closed", "event", "socket"])
def test_reason_is_written_only_to_writable_stderr(kind, tmp_path):
    file = tmp_path / "file"
    file.write_text("kept\n")
    reader = writer = -1
    if kind in {"pipe", "full pipe"}:
        reader, writer = os.pipe()
        if kind == "full pipe":
            os.set_blocking(writer, False)
            with contextlib.suppress(BlockingIOError):
                while os.write(writer, b"x" * 4096):
                    pass
            os.set_blocking(writer, True)
    elif kind == "socket":
        import socket

        ours, theirs = socket.socketpair()
        reader, writer = ours.detach(), theirs.detach()
    elif kind == "event":
        writer = os.eventfd(0)
    else:
        writer = os.open(file, os.O_RDONLY if kind == "read only" else os.O_WRONLY | os.O_APPEND)

    def attempt():
        if kind == "closed":
            os.close(2)
        return _runs_true()

    with Watched(attempt, commands=True, fd2=writer) as watched:
        watched.answer(watched.until_asked().number, False, b"exeat: because")
        assert watched.result() == errno.EACCES
    if kind in {"pipe", "socket"}:
        assert os.read(reader, 100) == b"exeat: because\n"
    assert file.read_text() == ("kept\nexeat: because\n" if kind == "appended file" else "kept\n")
    for descriptor in {reader, writer} - {-1}:
        os.close(descriptor)
