"""Start of a task: its process drops its rights in an irreversible order, and executes the program.

The sandbox's init forks it. It executes call lists from a channel of its own, which closes when the program is
executed; that shows the start has succeeded. If no program can be executed, it stays and reports the errors.

The program is found as os.execvpe does: a name without a slash is looked up in each directory of the task's PATH, and
the first that can be executed is used.
"""

import errno
import fcntl
import mmap
import os
import resource
import socket
import stat
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Final, NamedTuple

from enforcer.limits import resource_limits
from enforcer.limits.resource_limits import Bound, Rlimit, lower_rlimit
from enforcer.sandbox import devices, init, landlock
from enforcer.sandbox.identity import Identity, namespace_remedy
from enforcer.sandbox.init import Executor, ProcessGoneError, RemoteExecutor, channel_pair
from enforcer.sandbox.seccomp import WatchedFilter
from enforcer.sandbox.step_lists import (
    ANY,
    ARGV,
    ENVIRONMENT,
    FIRST,
    LISTENER,
    RULES,
    Argument,
    CallFailedError,
    CallList,
    Data,
    Label,
    Register,
)
from enforcer.sandbox.system_paths import SYSTEM
from enforcer.system import linux

CANNOT_EXECUTE, NOT_FOUND = 126, 127
_LONGEST: Final = 4096  # bytes of the message about a program that can't be executed
_IN_WORDS: Final = 1 << 14  # bytes of arguments and environment that fit into a call list
_AT_ONCE: Final = 16  # paths to try before reading the errors
_PATH_MAX: Final = 4096  # bytes of a path; execve(2) fails for a longer one anyway
_RLIMIT: Final = struct.Struct("=2Q")  # struct rlimit64, getrlimit(2)
_UNLIMITED: Final = (1 << 64) - 1


class _Strings(NamedTuple):
    """An array of pointers, as offsets from its start, followed by the strings; and their number."""

    content: bytes
    number: int


def execute_program(
    task: RemoteExecutor, argv: Sequence[str], environment: Mapping[str, str], bounds: Iterable[Bound]
) -> None:
    """Set the rlimits, and execute the first program that can be executed, as os.execvpe does."""
    calls = task.calls
    words = tuple(_strings(each) for each in (map(os.fsencode, argv), _variables(environment)))
    short = sum(len(each.content) for each in words) <= _IN_WORDS
    if not short:
        _map(task, words)
    for which, soft, hard in bounds:
        have = resource.getrlimit(which)
        bound = _RLIMIT.pack(*(lower_rlimit(*both) & _UNLIMITED for both in zip(have, (soft, hard), strict=True)))
        calls.call("prlimit64", 0, which, bound, 0, says="setrlimit")
    if errors := _tried(task, _programs(argv[0], environment), words if short else ()):
        told = next((error for error in errors if error not in (errno.ENOENT, errno.ENOTDIR)), errors[-1])
        status, text = _why_not(argv[0], OSError(told, os.strerror(told)), there=_is_there(task, argv[0]))
        calls.call("write", 2, text, len(text), but=(ANY,))
        calls.call("exit_group", status)
        task.tell()


def _tried(task: RemoteExecutor, programs: Sequence[bytes], words: Sequence[_Strings]) -> list[int]:
    """Try to execute each program; returns the errors, or none if one was executed.

    `words`: the argument and environment arrays to send along; empty: they are mapped in the process already. Raises
    ProcessGoneError if the process had ended before.
    """
    errors, calls = [], task.calls
    for at in range(0, len(programs), _AT_ONCE):
        some = programs[at : at + _AT_ONCE]
        argv, environment = (_along(calls, each) for each in words) if words else (ARGV, ENVIRONMENT)
        tried = [calls.get("execve", path[:_PATH_MAX] + b"\0", argv, environment, but=(ANY,)) for path in some]
        try:
            task.do()
        except ProcessGoneError:
            if task.waits > 1:
                raise
            return []
        errors += [-task.value(each) for each in tried]
    return errors


def _strings(strings: Iterable[bytes]) -> _Strings:
    each = [string + b"\0" for string in strings]
    at = accumulate(map(len, each), initial=8 * (len(each) + 1))
    pointers = [place.to_bytes(8, sys.byteorder) for place, _ in zip(at, each, strict=False)]
    return _Strings(b"".join((*pointers, bytes(8), *each)), len(each))


def _along(calls: CallList, strings: _Strings) -> Data:
    """Put the strings into the call list, with pointers to them."""
    there = calls.data(strings.content)
    calls.point(there, strings.number)
    return there


def _map(task: RemoteExecutor, words: Sequence[_Strings]) -> None:
    """Map the strings into memory of the process: they may be larger than a call list."""
    calls, files = task.calls, []
    try:
        for each, into in zip(words, (ARGV, ENVIRONMENT), strict=True):
            files.append(os.memfd_create("words", os.MFD_CLOEXEC))
            with open(os.dup(files[-1]), "wb") as out:
                out.write(each.content)
            there, size = calls.take(files[-1]), len(each.content)
            calls.call("mmap", 0, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE, there, 0, into=into)
            calls.point(into, each.number)
            calls.close(there)
        task.begin()
    finally:
        for file in files:
            os.close(file)


def _variables(environment: Mapping[str, str]) -> Iterator[bytes]:
    return (os.fsencode(name) + b"=" + os.fsencode(value) for name, value in environment.items())


def _programs(word: str, environment: Mapping[str, str]) -> list[bytes]:
    """Return the paths to try, in the order of os.execvpe."""
    name = os.fsencode(word)
    if os.path.dirname(name):
        return [name]
    return [os.path.join(os.fsencode(place), name) for place in os.get_exec_path(dict(environment))]


def _is_there(task: RemoteExecutor, path: str) -> bool:
    """Whether a path exists, as the task sees it."""
    path = os.fsdecode(os.fsencode(path)[:_PATH_MAX])
    found = task.calls.get("faccessat", linux.AT_FDCWD, path, os.F_OK, but=(ANY,))
    link = task.calls.get("readlinkat", linux.AT_FDCWD, path, Data(0), 1, but=(ANY,))  # also a dangling link
    task.do()
    return task.value(found) >= 0 or task.value(link) >= 0


def _why_not(name: str, error: OSError, *, there: bool) -> tuple[int, bytes]:
    """Return the exit status for a program that can't be executed, 126 or 127 as in env(1), and the message."""
    status = CANNOT_EXECUTE
    if isinstance(error, FileNotFoundError) and "/" in name and there:
        text = f"exeat: `{name}`: its interpreter is not in the sandbox ({error.strerror})"
    elif isinstance(error, FileNotFoundError | NotADirectoryError):
        status, text = NOT_FOUND, f"exeat: `{name}`: not found in the sandbox"
    else:
        text = f"exeat: `{name}` cannot be executed: {error.strerror}"
    return status, text.encode("utf-8", "replace")[:_LONGEST] + b"\n"


# The OOM killer takes the task before init, whose end would end the sandbox (proc_pid_oom_score_adj(5)).
_KILLED_FIRST = b"1000"
# No core dumps: with a pipe in core_pattern the kernel runs a host program on the dump, as root, unless the limit is 1
# byte, into which no file fits either (core(5)). A hard limit of 0 stays.
_NO_CORE = (resource.RLIMIT_CORE, 1, 1)
_FIRST_FREE: Final = 4  # descriptor: 0, 1 and 2 are the streams, 3 the channel
_SIGNALS: Final = 64
_SIGKILL, _SIGSTOP = 9, 19
_SIG_IGN, _SIG_SETMASK, _SIGSET = 1, 2, 8  # the last is the size of a set, in bytes
_MOST_CAPABILITIES: Final = 64
_ACTION: Final = struct.Struct("=4Q")  # struct sigaction as the kernel has it: rt_sigaction(2)
_CAPABILITY_VERSION_3: Final = 0x20080522
_TIOCSCTTY: Final = 0x540E
_FPROG: Final = struct.Struct("=H6xQ")  # struct sock_fprog, seccomp(2)
_FILTER: Final = 8  # where the pointer is in it
_GRANTED: Final = "open a path for Landlock"
_WATCHED: Final = "get a listener of its filter"
_NO_TERMINAL: Final = -1
# Grants for these are mostly the same for all tasks.
_USUAL: Final = frozenset({*SYSTEM, "/", "/dev", "/dev/pts", "/dev/shm", "/proc", "/run", "/tmp", "/var"})


class Program(NamedTuple):
    """The program of a task. `ignored`: signals that its caller had set to be ignored."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    directory: str
    ignored: frozenset[int]
    seccomp: bytes
    watching: WatchedFilter | None = None
    terminal: int = _NO_TERMINAL  # the descriptor that is to be its controlling terminal
    rlimits: tuple[Rlimit, ...] = ()
    wall: tuple[landlock.Grant, ...] = ()  # Landlock grants: a repetition of the mounts
    bounds: tuple[Bound, ...] = ()  # all rlimits at the start, `rlimits` included


def start_task(
    init: RemoteExecutor,
    identity: Identity,
    program: Program,
    stdio: tuple[int, int, int],
    watch: Callable[[int], None],
) -> int:
    """Start the task in the inner user namespace; returns its pid there, once it runs or has reported an error.

    `watch` gets the listener of its filter before the program is executed. Raises OSError with the step that failed:
    then nothing of the task has run. Raises ValueError for arguments that execve(2) can't take, or would read
    differently.
    """
    _check_words(program)
    try:
        program = program._replace(bounds=_bounds(identity, program))
        ours, theirs = channel_pair()
        task = RemoteExecutor(ours)
        try:
            pid = _fork(init, theirs)
            _enter_own(init, task, identity, pid)
            _have_it_give_up(task, identity, program, stdio, watch)
            execute_program(task, program.argv, program.environment, program.bounds)
        finally:
            task.close()
    except OSError as failed:
        more = f"; {namespace_remedy(failed.errno)}" if failed.errno == errno.ENOSPC else ""
        raise OSError(errno.EPERM, f"could not give up its privileges: {failed.strerror}{more}") from failed
    return pid


def _check_words(program: Program) -> None:
    names = program.environment.keys()
    words = (*program.argv, program.directory, *names, *program.environment.values())
    if any("\0" in word for word in words) or not all(name and "=" not in name for name in names):
        raise ValueError(
            "an argument or a variable of the task contains a zero byte, or a variable's name is empty or contains `=`"
        )


def _bounds(identity: Identity, program: Program) -> tuple[Bound, ...]:
    own = resource_limits.task_rlimits(shares_uid=not identity.privileged)
    return (_NO_CORE, *own, *((which, value, value) for which, value in program.rlimits))


def _fork(init: RemoteExecutor, channel: socket.socket) -> int:
    with channel:
        theirs = init.calls.take(channel.fileno())
        init.calls.fork(theirs, FIRST, leaf=True)
        init.calls.close(theirs)
        init.do()
    return init.value(FIRST)


def _enter_own(init: RemoteExecutor, task: RemoteExecutor, identity: Identity, pid: int) -> None:
    """Have the process enter the inner user namespace, and init map its ids."""
    calls = task.calls
    # Init writes its id maps through /proc, whose files of an undumpable process belong to root (proc(5)).
    _prctl(calls, linux.PR_SET_DUMPABLE, 1)
    unkept = Label()
    score = _open(calls, "/proc/self/oom_score_adj", os.O_WRONLY, but=(ANY,), to=unkept)
    calls.call("write", score, _KILLED_FIRST, len(_KILLED_FIRST), but=(ANY,))
    calls.close(score)
    calls.put(unkept)
    calls.call("unshare", os.CLONE_NEWUSER)
    task.do()
    for name, text in (
        ("setgroups", b"deny"),
        ("uid_map", identity.inner_uids.text().encode()),
        ("gid_map", identity.inner_gids.text().encode()),
    ):
        file = _open(init.calls, f"/proc/{pid}/{name}", os.O_WRONLY, says="open an id map")
        init.calls.call("write", file, text, len(text), says="write an id map")
        init.calls.close(file)
    init.do()


def _have_it_give_up(
    task: RemoteExecutor,
    identity: Identity,
    program: Program,
    stdio: tuple[int, int, int],
    watch: Callable[[int], None],
) -> None:
    drop_rights(task, identity, program, stdio)
    try:
        [heard] = task.do(LISTENER)
    except CallFailedError as error:
        if error.step != _WATCHED:
            raise
        why = os.strerror(error.errno or errno.EPERM)
        said = f"the rules have `commands`, and no program start can be held on this host ({why}): run `exeat doctor`"
        raise OSError(error.errno, said) from error
    if heard >= 0:
        watch(heard)


class _Same(NamedTuple):
    """The part of dropping rights that is the same for many tasks."""

    uid: int
    gid: int
    ignored: frozenset[int]
    ruled: tuple[int, int, int]  # by Landlock
    wall: tuple[landlock.Grant, ...]


def drop_rights(task: Executor, identity: Identity, program: Program, stdio: tuple[int, int, int]) -> None:
    """Drop all rights in an irreversible order; the last calls are written and not sent yet."""
    usual = tuple(grant for grant in program.wall if grant.path in _USUAL)
    same = _Same(identity.uid, identity.gid, program.ignored, landlock.ruled(), usual)
    # A new session: signals to a process group, and a shared terminal, cross pid namespaces.
    task.calls.call("setsid")
    _own_descriptors(task.calls, program.terminal, stdio)
    init.execute_shared(task, same, partial(_give_up_rights, same=same))
    task.calls.call("chdir", program.directory)
    _wall_in(task.calls, same, program.wall, stdio)
    _filter(task.calls, program)


def _give_up_rights(task: Executor, same: _Same) -> None:
    """Drop ids, capabilities and signal settings, and begin the Landlock ruleset."""
    calls = task.calls
    calls.call("setresgid", *(same.gid,) * 3)
    calls.call("setresuid", *(same.uid,) * 3)
    _prctl(calls, linux.PR_SET_DUMPABLE, 0)  # a change of uid sets it to fs.suid_dumpable: proc_sys_fs(5)
    _prctl(calls, linux.PR_SET_SECUREBITS, linux.SECURE)
    _prctl(calls, linux.PR_CAP_AMBIENT, linux.PR_CAP_AMBIENT_CLEAR_ALL)
    past = Label()
    for capability in range(_MOST_CAPABILITIES):
        beyond = capability > linux.CAP_LEAST_LAST  # then this kernel may not have it
        _prctl(calls, linux.PR_CAPBSET_DROP, capability, but=(errno.EINVAL,) if beyond else (), to=past)
    calls.put(past)
    calls.call("capset", struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), bytes(24))
    _prctl(calls, linux.PR_SET_NO_NEW_PRIVS, 1)
    for number in range(1, _SIGNALS + 1):
        if number not in (_SIGKILL, _SIGSTOP):
            action = _ACTION.pack(_SIG_IGN if number in same.ignored else 0, 0, 0, 0)
            calls.call("rt_sigaction", number, action, 0, _SIGSET)
    calls.call("rt_sigprocmask", _SIG_SETMASK, bytes(_SIGSET), 0, _SIGSET)
    handled, scoped, size = same.ruled
    if size:  # Landlock, where the kernel has it; `landlock.restrict` does the same
        calls.call("landlock_create_ruleset", struct.pack("=QQQ", handled, 0, scoped), size, 0, into=RULES)
        _grant(calls, same.wall, handled)


def _own_descriptors(calls: CallList, terminal: int, stdio: tuple[int, int, int]) -> None:
    """Put the three streams at 0, 1 and 2, and close everything else except the channel."""
    if terminal >= 0:
        calls.call("ioctl", calls.take(terminal), _TIOCSCTTY, 0, says="ioctl TIOCSCTTY")
    for number, descriptor in enumerate(stdio):
        if name := devices.memory_device(descriptor):  # all sandboxes would share the inode of a host device
            mode = fcntl.fcntl(descriptor, fcntl.F_GETFL) & (os.O_ACCMODE | os.O_APPEND | os.O_NONBLOCK)
            node = _open(calls, f"/dev/{name}", mode | os.O_NOCTTY)
            calls.call("dup3", node, number, 0)
            calls.close(node)
        else:
            calls.call("dup3", calls.take(descriptor), number, 0)
    calls.call("close_range", _FIRST_FREE, (1 << 32) - 1, 0)


def _wall_in(calls: CallList, same: _Same, wall: Sequence[landlock.Grant], stdio: tuple[int, int, int]) -> None:
    """Add the remaining Landlock rules, and enforce the ruleset."""
    handled, _, size = same.ruled
    if not size:
        return
    _grant(calls, (grant for grant in wall if grant not in same.wall), handled)
    for number, descriptor in enumerate(stdio):
        if stat.S_ISCHR(os.fstat(descriptor).st_mode):  # terminals and other devices may be opened again
            _allow(calls, number, landlock.DEVICES & landlock.OF_FILES & handled)
    calls.call("landlock_restrict_self", RULES, 0)
    calls.call("close", RULES)


def _grant(calls: CallList, wall: Iterable[landlock.Grant], handled: int) -> None:
    for grant in wall:
        calls.step(None)  # the grants may not fit into one list
        gone, added = Label(), Label()
        place = _open(calls, grant.path, os.O_PATH, but=(errno.ENOENT,), to=gone, says=_GRANTED)
        file = Label()
        calls.is_kind(place, stat.S_IFDIR, to=file, says=_GRANTED)
        _allow(calls, place, grant.rights & handled)
        calls.skip(added)
        calls.put(file)
        _allow(calls, place, grant.rights & handled & landlock.OF_FILES)
        calls.put(added)
        calls.close(place)
        calls.put(gone)


def _allow(calls: CallList, place: Register | int, rights: int) -> None:
    rule = calls.data(struct.pack("=Qi", rights, place if isinstance(place, int) else -1))
    if not isinstance(place, int):
        calls.store(calls.within(rule, 8), place)
    calls.call("landlock_add_rule", RULES, landlock.PATH_BENEATH, rule, 0)


def _filter(calls: CallList, program: Program) -> None:
    """Load the filter with a listener, or where none can be had, the plain filter."""
    loaded, plain, older = Label(), Label(), Label()
    watching = program.watching
    if watching is not None:
        if watching.needed:
            # The supervisor reads its memory, which takes a dumpable process. So far that has only Exeat's program,
            # and no other process is in its user namespace.
            _prctl(calls, linux.PR_SET_DUMPABLE, 1)
        calls.step(_WATCHED if watching.needed else None)
        asks, flags = _instructions(calls, watching.program), linux.FILTER_NEW_LISTENER
        for more, but, to in ((linux.FILTER_WAIT_KILLABLE, (ANY,), older), (0, _unless(watching), plain)):
            calls.call("seccomp", linux.SECCOMP_SET_MODE_FILTER, flags | more, asks, but=but, to=to, into=LISTENER)
            calls.skip(loaded)
            calls.put(to)
    _prctl(calls, linux.PR_SET_SECCOMP, linux.SECCOMP_MODE_FILTER, _instructions(calls, program.seccomp))
    calls.call("dup", -1, but=(errno.EBADF,), into=LISTENER)  # there is none
    calls.put(loaded)


def _unless(watching: WatchedFilter) -> tuple[int, ...]:
    return () if watching.needed else (ANY,)


def _instructions(calls: CallList, program: bytes) -> Data:
    """Put a filter into the list as seccomp(2) takes it: `struct sock_fprog`."""
    made = calls.data(_FPROG.pack(len(program) // 8, _FPROG.size) + program)
    calls.point(made, 1, _FILTER)
    return made


def _open(
    calls: CallList, path: str, flags: int, *, but: tuple[int, ...] = (), to: Label | None = None, says: str = ""
) -> Register:
    return calls.get("openat", linux.AT_FDCWD, path, flags | os.O_CLOEXEC, but=but, to=to, says=says or f"open {path}")


def _prctl(
    calls: CallList, option: int, *arguments: Argument, but: tuple[int, ...] = (), to: Label | None = None
) -> None:
    calls.call("prctl", option, *arguments, but=but, to=to if but else None, says=f"prctl {linux.OPTIONS[option]}")
