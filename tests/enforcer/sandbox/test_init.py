"""A process that plays: in C and by the interpreter it does what it is given, says what came of it, and nothing else."""

import contextlib
import errno
import os
import resource
import select
import signal
import stat

import pytest

from enforcer.sandbox import init, seccomp, step_lists, task_start
from enforcer.sandbox.init import ProcessGoneError, RemoteExecutor
from enforcer.sandbox.path_scan import restore_mask
from enforcer.sandbox.seccomp import Filter, Refuse
from enforcer.sandbox.step_lists import ANY, CALL, DATA, FORKED_PID, HEAD, REGISTER, CallFailedError, Label, Packet
from enforcer.system import linux
from enforcer.system.errors import HostError
from tests.support import harness

AT = -100  # AT_FDCWD
LISTED = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@pytest.fixture(params=["compiled", "interpreted"])
def way(request, monkeypatch):
    if request.param == "interpreted":
        monkeypatch.setattr(init, "COMPILED", "")
    elif not init.COMPILED:
        harness.missing("the program that `python -m enforcer.sandbox.compiled.build` makes")
    return request.param


@pytest.fixture
def process(way):
    pid, remote = init.start()
    yield remote
    remote.close()
    os.waitpid(pid, 0)


@pytest.fixture
def forked(process):
    """One that `process` has begun, which looks after its own; and a leaf of that one's."""
    found = [process]
    for leaf in (False, True):
        ours, theirs = init.channel_pair()
        with theirs:
            above = found[-1]
            channel = above.calls.take(theirs.fileno())
            above.calls.fork(channel, FORKED_PID, leaf=leaf)
            above.calls.close(channel)
            above.run()
        found.append(RemoteExecutor(ours))
    yield found[1:]
    for each in found[1:]:
        each.close()


def test_results_of_calls_serve_later_steps_and_the_reply(process, tmp_path):
    made = process.calls
    directory = made.get("openat", AT, str(tmp_path), LISTED)
    made.call("mkdirat", directory, "below", 0o700)
    there = made.get("openat", directory, "below", LISTED)
    [below] = process.run(there)
    assert stat.S_IMODE(os.fstat(below).st_mode) == 0o700
    assert os.readlink(f"/proc/self/fd/{below}") == str(tmp_path / "below")
    os.close(below)
    process.calls.call("close", there, ignored=(ANY,), into=there)
    process.run()
    assert process.value(there) == -errno.EBADF, "what is given is let go of"


def test_ignored_errors_continue_and_others_end_the_list(process, tmp_path):
    made, gone = process.calls, Label()
    missing = made.get("openat", AT, f"{tmp_path}/missing", LISTED, ignored=(errno.EACCES, errno.ENOENT), to=gone)
    made.call("mkdirat", AT, f"{tmp_path}/passed over", 0o755)
    made.place_label(gone)
    assert process.run(missing) == [-1]
    assert process.value(missing) == -errno.ENOENT
    process.calls.step("the step")
    process.calls.call("mkdirat", AT, f"{tmp_path}/none/below", 0o755, ignored=(errno.EEXIST,), purpose="make it")
    process.submit()
    process.calls.call("mkdirat", AT, f"{tmp_path}/after", 0o755)
    with pytest.raises(CallFailedError) as raised:
        process.run()
    assert (raised.value.errno, raised.value.strerror) == (errno.ENOENT, "make it: No such file or directory")
    assert raised.value.step == "the step"
    with pytest.raises(ProcessGoneError):
        process.run()
    assert list(tmp_path.iterdir()) == []


def test_unknown_calls_are_refused(process):
    made = process.calls
    there, file, past = made.data(bytes(8)), Label(), Label()
    number = made.get("openat", AT, "/dev/null", os.O_RDONLY)
    made.is_kind(number, stat.S_IFREG, to=file)
    made.call("exit_group", 3)
    made.place_label(file)
    made.is_kind(number, stat.S_IFCHR)
    made.store(there, number)
    made.check(there, 0xFFFFFFFF, 7, errno.EXDEV, to=past)
    made.call("exit_group", 4)
    made.place_label(past)
    made.check(there, 0, 0)
    word = made.data((16).to_bytes(8, "little") + bytes(8) + b"/dev\0")
    made.point(word, 1)
    made.check(word, 0xFFFFFFFF, 16, errno.EXDEV, purpose="an address")
    with pytest.raises(CallFailedError, match="an address: Invalid cross-device link"):
        process.run()


def _fds(remote):
    listed = remote.calls.get("openat", AT, "/proc/self/fd", LISTED)
    [directory] = remote.run(listed)
    remote.calls.call("getpid")
    remote.run()  # what it gave away it has closed by now
    names = sorted(map(int, os.listdir(directory)))
    os.close(directory)
    return names


def test_child_has_its_own_channel_and_inherits_nothing(forked, process):
    process.calls.get("openat", AT, "/proc", LISTED)
    process.run()
    init, leaf = forked
    assert _fds(init) == [0, 1, 2, 3, 4]
    assert _fds(leaf) == [0, 1, 2, 3]
    for remote in (init, leaf):
        [null] = remote.run(remote.calls.get("dup", 0))
        assert os.readlink(f"/proc/self/fd/{null}") == "/dev/null"
        os.close(null)


def test_end_of_a_child_is_reported_and_no_other(forked):
    init, leaf = forked
    leaf.calls.call("clone", signal.SIGCHLD, 0, 0, 0, 0)  # both go on: each of the two exits
    leaf.calls.call("exit_group", 7)
    leaf.submit_silently()
    assert init.turn() == (init.value(FORKED_PID), 7 << 8)
    init.calls.call("getpid")
    init.run()
    init.close()


def test_list_without_a_reply_sends_none(process):
    process.calls.call("umask", 0o027)
    process.submit_silently()
    mask = process.calls.get("umask", 0o022)
    process.run()
    assert process.value(mask) == 0o027


def test_unreadable_cover_ends_no_process(process, tmp_path):
    if os.geteuid():
        harness.missing("root: somebody who may load a filter")
    made, refused = process.calls, Filter((Refuse("statx", errno.EIO),))
    made.call("unshare", os.CLONE_NEWNS)
    made.call("mount", "none", "/", 0, linux.MS_REC | linux.MS_PRIVATE)
    program = task_start._filter_program(made, seccomp.assemble(refused, linux.platform_machine()))
    made.call("prctl", linux.PR_SET_SECCOMP, linux.SECCOMP_MODE_FILTER, program)
    (tmp_path / "file").touch()
    restore_mask(made, f"{tmp_path}/file")
    process.run()


def test_init_ends_with_its_parent(way):
    pid, remote = init.start()
    process = os.pidfd_open(pid)
    remote.close()
    poll = select.poll()
    poll.register(process, select.POLLIN)
    assert poll.poll(20_000)
    os.waitpid(pid, 0)
    os.close(process)


def test_init_ignores_terminal_signals(process):
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM, signal.SIGTSTP):
        process.calls.call("kill", _pid(process), number)
    process.run()


def _pid(remote):
    found = remote.calls.get("getpid")
    remote.run()
    return remote.value(found)


def _program(*made, data=b"", count=None, taken=0):
    packed = b"".join(CALL.pack(*call) for call in made)
    head = HEAD.pack(len(made) if count is None else count, taken, 0, False, b"")
    return Packet(head + packed + data + bytes(48), (), (), ("it",) * 8, ())


GETPID = step_lists._numbers["getpid"]


@pytest.mark.parametrize(
    ("program", "gone"),
    [
        (_program((GETPID, 0, 8, 0, 0, 1, *[0] * 6), count=200), True),
        (_program((GETPID, 0, 8, 0, 0, 1, *[0] * 6), taken=1), True),
        (Packet(b"x", (), (), (), ()), True),
        (_program((GETPID, DATA, 8, 0, 0, 1, 1 << 40, *[0] * 5)), False),
        (
            _program((step_lists._numbers["dup"], REGISTER, 8, ANY, 0, 0, 9, *[0] * 5)),
            False,
        ),  # for ever, if it went back
    ],
    ids=["more calls than there are", "descriptors that didn't come", "no program", "beyond its data", "back"],
)
def test_malformed_step_list_ends_init(program, gone):
    if not init.COMPILED:
        harness.missing("the program that `python -m enforcer.sandbox.compiled.build` makes")
    pid, remote = init.start()
    remote.send([program])
    with pytest.raises(ProcessGoneError if gone else CallFailedError):
        remote.receive()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 125
    remote.close()


def test_step_lists_are_split_between_steps(process, tmp_path):
    made = process.calls
    for number in range(3000):
        made.step(number)
        made.call("mkdirat", AT, f"{tmp_path}/{number}", 0o755)
    packets = made.packets()
    assert len(packets) > 3
    assert max(len(packet.data) for packet in packets) < step_lists.PACKET // 2
    process.send(packets)
    process.receive()
    assert len(list(tmp_path.iterdir())) == 3000
    made.call("mkdirat", AT, "x" * step_lists.PACKET, 0o755)
    with pytest.raises(ValueError, match="fit into one call list"):
        made.packets()


def test_more_step_lists_than_queued_replies_are_executed(process, tmp_path):
    packets = []
    for number in range(600):
        process.calls.call("mkdirat", AT, f"{tmp_path}/{number}", 0o755)
        packets += process.calls.packets()
    process.send(packets)
    process.receive()
    assert len(list(tmp_path.iterdir())) == 600


def test_jump_outside_the_list_is_refused(process):
    process.calls.call("getpid", ignored=(ANY,), to=Label())
    with pytest.raises(ValueError, match="label that was never placed"):
        process.calls.packets()


def test_streams_of_the_interpreter_lead_nowhere(monkeypatch):
    monkeypatch.setattr(init, "COMPILED", "")
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(writer, 20)
        os.closerange(3, 20)
        pairs = [init.channel_pair() for _ in range(2)]
        for each in pairs[0]:
            each.close()  # what is free now is the channel's number
        monkeypatch.setattr(init, "channel_pair", lambda: pairs[1])
        _, remote = init.start()
        [null] = remote.run(remote.calls.get("dup", 0))
        os.write(20, os.readlink(f"/proc/self/fd/{null}").encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(writer)
    with os.fdopen(reader) as said:
        assert said.read() == "/dev/null"


@contextlib.contextmanager
def room_for_one_more():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_dropped_descriptors_are_noticed(process):
    made = process.calls
    packets = made.packets(made.get("dup", 0), made.get("dup", 0))
    before = os.listdir("/proc/self/fd")
    process.send(packets)
    with room_for_one_more(), pytest.raises(HostError, match="too many open files"):
        process.receive()
    assert os.listdir("/proc/self/fd") == before
