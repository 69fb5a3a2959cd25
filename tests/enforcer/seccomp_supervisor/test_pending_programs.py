"""Programs that people are asked about: many wait at once, and none of them starts before it may."""

import ctypes
import errno
import os
import select
import signal
import threading

import pytest

from proxy.supervisor_channel import messages

from .watched import PATIENCE, Watched, call, execute

EXECUTED = 0
LONG = 60.0  # seconds


def _several(count, meanwhile=lambda: None):
    """Start so many programs at once, each with its number; what came of each, and of what was done meanwhile."""

    def attempt():
        found = [None] * count

        def start(number):
            found[number] = execute("/bin/true", str(number))

        threads = [threading.Thread(target=start, args=(number,)) for number in range(count)]
        for thread in threads:
            thread.start()
        other = meanwhile()
        for thread in threads:
            thread.join()
        return [found, other]

    return attempt


def _asked(watched, count):
    """Hear until so many programs wait, and have each of them wait for people; their numbers, by word."""
    numbers = {}
    while len(numbers) < count:
        asked = watched.until_asked()
        numbers[asked.words[0]] = asked.number
        watched.worker.send(messages.pack(messages.StartPending(asked.number, LONG)))
    return numbers


def _until(watched, kind):
    while not isinstance(told := watched.hear(), kind):
        assert told is not None
    return told


def test_pending_programs_are_answered_in_any_order():
    reader, writer = os.pipe()

    def meanwhile():
        os.read(reader, 1)
        return call("mount", 0, 0, 0, 0, 0)

    with Watched(_several(3, meanwhile), commands=True) as watched:
        numbers = _asked(watched, 3)
        os.write(writer, b"x")
        assert (
            _until(watched, messages.SyscallDenied).call == b"mount"
        )  # the task's other calls are answered all the while
        for word, go in ((b"2", True), (b"0", False), (b"1", True)):
            watched.answer(numbers[word], go)
        assert watched.result() == [[errno.EACCES, EXECUTED, EXECUTED], errno.EPERM]
    os.close(reader)
    os.close(writer)


def test_killed_pending_program_is_reported():
    with Watched(_several(2), commands=True) as watched:
        first, second = watched.until_asked(), watched.until_asked()
        for asked in (first, second):
            watched.worker.send(messages.pack(messages.StartPending(asked.number, LONG)))
        os.kill(first.who.pid, signal.SIGKILL)
        assert _until(watched, messages.StartGone) == messages.StartGone(first.number)
        watched.answer(first.number, go=True)  # too late, and for nobody
        watched.answer(second.number, go=True)
        found, _ = watched.result()
        assert sorted(found) == [-signal.SIGKILL, EXECUTED]


@pytest.mark.parametrize("how", ["gone", "another", "never says any more"])
def test_pending_program_of_a_lost_worker_does_not_start(how):
    """Gone for good; replaced by one that knows nothing of it; or it doesn't answer for as long as it said."""
    with Watched(lambda: execute("/bin/true"), commands=True) as watched:
        asked = watched.until_asked()
        seconds = 0.2 if how == "never says any more" else LONG
        watched.worker.send(messages.pack(messages.StartPending(asked.number, seconds)))
        if how == "gone":
            watched.worker.close()
        elif how == "another":
            watched.worker.send(messages.pack(messages.NewWorker()))
            assert _until(watched, messages.StartGone) == messages.StartGone(asked.number)
            watched.answer(asked.number, go=True)
        assert watched.result() == errno.EACCES


def test_unsubmitted_programs_wait_for_the_next_worker():
    with Watched(lambda: execute("/bin/true"), commands=True) as watched:
        asked = watched.until_asked()
        watched.worker.send(messages.pack(messages.NewWorker()))
        watched.answer(asked.number, go=True)
        assert watched.result() == EXECUTED


def test_pending_programs_are_bounded():
    with Watched(_several(6), commands=True, waiting=3, at_once=2) as watched:
        for number in _asked(watched, 6).values():
            watched.answer(number, go=True)
        watched.answer_all(lambda _: (False,))
        assert sorted(watched.result()[0]) == [EXECUTED] * 3 + [errno.EACCES] * 3
        assert len(set(watched.gone)) == 3


def test_submissions_follow_the_pace_of_the_worker():
    with Watched(_several(5), commands=True, at_once=2) as watched:
        first = [watched.until_asked(), watched.until_asked()]
        watched.worker.settimeout(0.3)
        with pytest.raises(TimeoutError):
            watched.until_asked()
        watched.worker.settimeout(LONG)
        for asked in first:
            watched.answer(asked.number, go=True)
        watched.answer_all(lambda _: (True,))
        assert watched.result()[0] == [EXECUTED] * 5


@pytest.mark.parametrize("changes", [True, False], ids=["changed", "as it was"])
def test_approved_program_is_what_starts(changes):
    """Its words lie in memory that its threads share, for as long as people take."""
    go, changed = os.pipe(), os.pipe()

    def attempt():
        pid = os.fork()
        if pid == 0:
            word = ctypes.create_string_buffer(b"harmless")
            argv = (ctypes.c_void_p * 3)(
                ctypes.addressof(ctypes.create_string_buffer(b"true")), ctypes.addressof(word), None
            )

            def change():
                os.read(go[0], 1)
                if changes:
                    word.value = b"harmful!"
                os.write(changed[1], b"x")

            threading.Thread(target=change, daemon=True).start()
            os._exit(call("execve", b"/bin/true\0", argv, (ctypes.c_char_p * 1)(None)))
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    with Watched(attempt, commands=True) as watched:
        asked = watched.until_asked()
        assert asked.words == (b"harmless",)
        watched.worker.send(messages.pack(messages.StartPending(asked.number, LONG)))
        os.write(go[1], b"x")
        os.read(changed[0], 1)
        watched.answer(asked.number, go=True)
        assert watched.result() == (errno.EACCES if changes else EXECUTED)
    for descriptor in (*go, *changed):
        os.close(descriptor)


def _write_in_place(program, link):
    about = program.stat()
    program.write_text("#!/bin/sh\nexit 8\n")
    os.utime(program, ns=(about.st_atime_ns, about.st_mtime_ns))  # its size and that date are as they were


def _replace(program, link):
    other = program.with_name("other")
    other.write_text(program.read_text())
    other.chmod(0o755)
    other.rename(program)


def _point_elsewhere(program, link):
    link.unlink()
    link.symlink_to("/bin/true")


def _nothing(_program, _link):
    pass


CHANGES = [_write_in_place, _replace, _point_elsewhere, _nothing]


@pytest.mark.parametrize("change", CHANGES, ids=["written", "replaced", "elsewhere", "as it was"])
def test_approved_file_is_what_starts(tmp_path, change):
    program, link = tmp_path / "program", tmp_path / "link"
    program.write_text("#!/bin/sh\nexit 7\n")
    program.chmod(0o755)
    link.symlink_to(program)
    reader, writer = os.pipe()
    with Watched(lambda: execute(str(link)), commands=True, fd2=writer) as watched:
        asked = watched.until_asked()
        assert asked.names[:2] == (os.fsencode(link), os.fsencode(program))
        watched.worker.send(messages.pack(messages.StartPending(asked.number, LONG)))
        watched.worker.send(messages.pack(messages.CheckStart(asked.number)))
        assert _until(watched, messages.CheckResult).changed == b""
        change(program, link)
        watched.worker.send(messages.pack(messages.CheckStart(asked.number)))
        refused = change is not _nothing
        assert (b"changed while it waited" in _until(watched, messages.CheckResult).changed) is refused
        watched.answer(asked.number, go=True)
        watched.answer_all(lambda _: (True,))
        assert watched.result() == (errno.EACCES if refused else 7)
    os.close(writer)
    with open(reader, "rb") as said:
        assert (b"exeat: the program's file or arguments changed" in said.read()) is refused


def test_killed_program_is_no_longer_pending():
    with Watched(_several(2), commands=True) as watched:
        numbers, pids = _asked(watched, 2), {asked.number: asked.who.pid for asked in watched.asked}
        killed, other = numbers.values()
        pidfd = os.pidfd_open(pids[killed])
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        assert select.select([pidfd], [], [], PATIENCE)[0]
        os.close(pidfd)
        watched.worker.send(messages.pack(messages.CheckStart(killed)))
        assert _until(watched, messages.StartGone | messages.CheckResult) == messages.StartGone(killed)
        watched.answer(other, go=True)
        assert sorted(watched.result()[0]) == [-signal.SIGKILL, EXECUTED]
