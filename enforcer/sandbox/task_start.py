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
    FORKED_PID,
    LANDLOCK_RULESET,
    LISTENER,
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
_MAX_MESSAGE: Final = 4096  # bytes of the message about a program that can't be executed
_INLINE_BYTES: Final = 1 << 14  # bytes of arguments and environment that fit into a call list
_PATHS_PER_LIST: Final = 16  # paths to try before reading the errors
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
    strings = tuple(_strings(array) for array in (map(os.fsencode, argv), _variables(environment)))
    is_inline = sum(len(array.content) for array in strings) <= _INLINE_BYTES
    if not is_inline:
        _map_strings(task, strings)
    for which, soft, hard in bounds:
        current = resource.getrlimit(which)
        bound = _RLIMIT.pack(*(lower_rlimit(*both) & _UNLIMITED for both in zip(current, (soft, hard), strict=True)))
        calls.call("prlimit64", 0, which, bound, 0, purpose="setrlimit")
    if errors := _try_programs(task, _programs(argv[0], environment), strings if is_inline else ()):
        reported = next((error for error in errors if error not in (errno.ENOENT, errno.ENOTDIR)), errors[-1])
        status, text = _explain_failure(
            argv[0], OSError(reported, os.strerror(reported)), exists=_path_exists(task, argv[0])
        )
        calls.call("write", 2, text, len(text), ignored=(ANY,))
        calls.call("exit_group", status)
        task.submit_silently()


def _try_programs(task: RemoteExecutor, programs: Sequence[bytes], strings: Sequence[_Strings]) -> list[int]:
    """Try to execute each program; returns the errors, or none if one was executed.

    `strings`: the argument and environment arrays to send along; empty: they are mapped in the process already. Raises
    ProcessGoneError if the process had ended before.
    """
    errors, calls = [], task.calls
    for start in range(0, len(programs), _PATHS_PER_LIST):
        group = programs[start : start + _PATHS_PER_LIST]
        argv, environment = (_inline_strings(calls, array) for array in strings) if strings else (ARGV, ENVIRONMENT)
        results = [calls.get("execve", path[:_PATH_MAX] + b"\0", argv, environment, ignored=(ANY,)) for path in group]
        try:
            task.run()
        except ProcessGoneError:
            if task.unanswered > 1:
                raise
            return []
        errors += [-task.value(array) for array in results]
    return errors


def _strings(strings: Iterable[bytes]) -> _Strings:
    terminated = [string + b"\0" for string in strings]
    offsets = accumulate(map(len, terminated), initial=8 * (len(terminated) + 1))
    pointers = [offset.to_bytes(8, sys.byteorder) for offset, _ in zip(offsets, terminated, strict=False)]
    return _Strings(b"".join((*pointers, bytes(8), *terminated)), len(terminated))


def _inline_strings(calls: CallList, strings: _Strings) -> Data:
    """Put the strings into the call list, with pointers to them."""
    data = calls.data(strings.content)
    calls.point(data, strings.number)
    return data


def _map_strings(task: RemoteExecutor, strings: Sequence[_Strings]) -> None:
    """Map the strings into memory of the process: they may be larger than a call list."""
    calls, files = task.calls, []
    try:
        for array, into in zip(strings, (ARGV, ENVIRONMENT), strict=True):
            files.append(os.memfd_create("words", os.MFD_CLOEXEC))
            with open(os.dup(files[-1]), "wb") as file_object:
                file_object.write(array.content)
            descriptor, size = calls.take(files[-1]), len(array.content)
            calls.call("mmap", 0, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE, descriptor, 0, into=into)
            calls.point(into, array.number)
            calls.close(descriptor)
        task.submit()
    finally:
        for file in files:
            os.close(file)


def _variables(environment: Mapping[str, str]) -> Iterator[bytes]:
    return (os.fsencode(name) + b"=" + os.fsencode(value) for name, value in environment.items())


def _programs(name_or_path: str, environment: Mapping[str, str]) -> list[bytes]:
    """Return the paths to try, in the order of os.execvpe."""
    name = os.fsencode(name_or_path)
    if os.path.dirname(name):
        return [name]
    return [os.path.join(os.fsencode(directory), name) for directory in os.get_exec_path(dict(environment))]


def _path_exists(task: RemoteExecutor, path: str) -> bool:
    """Whether a path exists, as the task sees it."""
    path = os.fsdecode(os.fsencode(path)[:_PATH_MAX])
    access = task.calls.get("faccessat", linux.AT_FDCWD, path, os.F_OK, ignored=(ANY,))
    link = task.calls.get("readlinkat", linux.AT_FDCWD, path, Data(0), 1, ignored=(ANY,))  # also a dangling link
    task.run()
    return task.value(access) >= 0 or task.value(link) >= 0


def _explain_failure(name: str, error: OSError, *, exists: bool) -> tuple[int, bytes]:
    """Return the exit status for a program that can't be executed, 126 or 127 as in env(1), and the message."""
    status = CANNOT_EXECUTE
    if isinstance(error, FileNotFoundError) and "/" in name and exists:
        text = f"exeat: `{name}`: its interpreter is not in the sandbox ({error.strerror})"
    elif isinstance(error, FileNotFoundError | NotADirectoryError):
        status, text = NOT_FOUND, f"exeat: `{name}`: not found in the sandbox"
    else:
        text = f"exeat: `{name}` cannot be executed: {error.strerror}"
    return status, text.encode("utf-8", "replace")[:_MAX_MESSAGE] + b"\n"


# The OOM killer takes the task before init, whose end would end the sandbox (proc_pid_oom_score_adj(5)).
_OOM_SCORE = b"1000"
# No core dumps: with a pipe in core_pattern the kernel runs a host program on the dump, as root, unless the limit is 1
# byte, into which no file fits either (core(5)). A hard limit of 0 stays.
_NO_CORE = (resource.RLIMIT_CORE, 1, 1)
_FIRST_UNUSED: Final = 4  # descriptor: 0, 1 and 2 are the streams, 3 the channel
_SIGNALS: Final = 64
_SIGKILL, _SIGSTOP = 9, 19
_SIG_IGN, _SIG_SETMASK, _SIGSET = 1, 2, 8  # the last is the size of a set, in bytes
_CAPABILITY_COUNT: Final = 64
_ACTION: Final = struct.Struct("=4Q")  # struct sigaction as the kernel has it: rt_sigaction(2)
_CAPABILITY_VERSION_3: Final = 0x20080522
_TIOCSCTTY: Final = 0x540E
_FPROG: Final = struct.Struct("=H6xQ")  # struct sock_fprog, seccomp(2)
_FILTER_POINTER: Final = 8  # where the pointer is in it
_OPEN_GRANT: Final = "open a path for Landlock"
_GET_LISTENER: Final = "get a listener of its filter"
_NO_TERMINAL: Final = -1
# Grants for these are mostly the same for all tasks.
_COMMON_GRANTS: Final = frozenset({*SYSTEM, "/", "/dev", "/dev/pts", "/dev/shm", "/proc", "/run", "/tmp", "/var"})


class Program(NamedTuple):
    """The program of a task. `ignored`: signals that its caller had set to be ignored."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    directory: str
    ignored: frozenset[int]
    seccomp: bytes
    supervised: WatchedFilter | None = None
    terminal: int = _NO_TERMINAL  # the descriptor that is to be its controlling terminal
    rlimits: tuple[Rlimit, ...] = ()
    grants: tuple[landlock.Grant, ...] = ()  # Landlock grants: a repetition of the mounts
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
    _check_strings(program)
    try:
        program = program._replace(bounds=_bounds(identity, program))
        channel, child_channel = channel_pair()
        task = RemoteExecutor(channel)
        try:
            pid = _fork_task(init, child_channel)
            _enter_user_namespace(init, task, identity, pid)
            _drop_rights_and_watch(task, identity, program, stdio, watch)
            execute_program(task, program.argv, program.environment, program.bounds)
        finally:
            task.close()
    except OSError as failed:
        remedy = f"; {namespace_remedy(failed.errno)}" if failed.errno == errno.ENOSPC else ""
        raise OSError(errno.EPERM, f"could not give up its privileges: {failed.strerror}{remedy}") from failed
    return pid


def _check_strings(program: Program) -> None:
    names = program.environment.keys()
    strings = (*program.argv, program.directory, *names, *program.environment.values())
    if any("\0" in string for string in strings) or not all(name and "=" not in name for name in names):
        raise ValueError(
            "an argument or a variable of the task contains a zero byte, or a variable's name is empty or contains `=`"
        )


def _bounds(identity: Identity, program: Program) -> tuple[Bound, ...]:
    derived = resource_limits.task_rlimits(shares_uid=not identity.privileged)
    return (_NO_CORE, *derived, *((which, value, value) for which, value in program.rlimits))


def _fork_task(init: RemoteExecutor, channel: socket.socket) -> int:
    with channel:
        channel_register = init.calls.take(channel.fileno())
        init.calls.fork(channel_register, FORKED_PID, leaf=True)
        init.calls.close(channel_register)
        init.run()
    return init.value(FORKED_PID)


def _enter_user_namespace(init: RemoteExecutor, task: RemoteExecutor, identity: Identity, pid: int) -> None:
    """Have the process enter the inner user namespace, and init map its ids."""
    calls = task.calls
    # Init writes its id maps through /proc, whose files of an undumpable process belong to root (proc(5)).
    _prctl(calls, linux.PR_SET_DUMPABLE, 1)
    not_written = Label()
    score = _open(calls, "/proc/self/oom_score_adj", os.O_WRONLY, ignored=(ANY,), to=not_written)
    calls.call("write", score, _OOM_SCORE, len(_OOM_SCORE), ignored=(ANY,))
    calls.close(score)
    calls.place_label(not_written)
    calls.call("unshare", os.CLONE_NEWUSER)
    task.run()
    for name, text in (
        ("setgroups", b"deny"),
        ("uid_map", identity.inner_uids.text().encode()),
        ("gid_map", identity.inner_gids.text().encode()),
    ):
        file = _open(init.calls, f"/proc/{pid}/{name}", os.O_WRONLY, purpose="open an id map")
        init.calls.call("write", file, text, len(text), purpose="write an id map")
        init.calls.close(file)
    init.run()


def _drop_rights_and_watch(
    task: RemoteExecutor,
    identity: Identity,
    program: Program,
    stdio: tuple[int, int, int],
    watch: Callable[[int], None],
) -> None:
    drop_rights(task, identity, program, stdio)
    try:
        [listener] = task.run(LISTENER)
    except CallFailedError as error:
        if error.step != _GET_LISTENER:
            raise
        reason = os.strerror(error.errno or errno.EPERM)
        message = (
            f"the rules have `commands`, and no program start can be held on this host ({reason}): run `exeat doctor`"
        )
        raise OSError(error.errno, message) from error
    if listener >= 0:
        watch(listener)


class _SharedRights(NamedTuple):
    """The part of dropping rights that is the same for many tasks."""

    uid: int
    gid: int
    ignored: frozenset[int]
    landlock_attributes: tuple[int, int, int]  # by Landlock
    grants: tuple[landlock.Grant, ...]


def drop_rights(task: Executor, identity: Identity, program: Program, stdio: tuple[int, int, int]) -> None:
    """Drop all rights in an irreversible order; the last calls are written and not sent yet."""
    common = tuple(grant for grant in program.grants if grant.path in _COMMON_GRANTS)
    shared = _SharedRights(identity.uid, identity.gid, program.ignored, landlock.ruleset_attributes(), common)
    # A new session: signals to a process group, and a shared terminal, cross pid namespaces.
    task.calls.call("setsid")
    _set_descriptors(task.calls, program.terminal, stdio)
    init.execute_shared(task, shared, partial(_drop_shared_rights, shared=shared))
    task.calls.call("chdir", program.directory)
    _restrict_files(task.calls, shared, program.grants, stdio)
    _load_filter(task.calls, program)


def _drop_shared_rights(task: Executor, shared: _SharedRights) -> None:
    """Drop ids, capabilities and signal settings, and begin the Landlock ruleset."""
    calls = task.calls
    calls.call("setresgid", *(shared.gid,) * 3)
    calls.call("setresuid", *(shared.uid,) * 3)
    _prctl(calls, linux.PR_SET_DUMPABLE, 0)  # a change of uid sets it to fs.suid_dumpable: proc_sys_fs(5)
    _prctl(calls, linux.PR_SET_SECUREBITS, linux.SECURE)
    _prctl(calls, linux.PR_CAP_AMBIENT, linux.PR_CAP_AMBIENT_CLEAR_ALL)
    dropped = Label()
    for capability in range(_CAPABILITY_COUNT):
        is_optional = capability > linux.CAP_LEAST_LAST  # then this kernel may not have it
        _prctl(calls, linux.PR_CAPBSET_DROP, capability, ignored=(errno.EINVAL,) if is_optional else (), to=dropped)
    calls.place_label(dropped)
    calls.call("capset", struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), bytes(24))
    _prctl(calls, linux.PR_SET_NO_NEW_PRIVS, 1)
    for number in range(1, _SIGNALS + 1):
        if number not in (_SIGKILL, _SIGSTOP):
            action = _ACTION.pack(_SIG_IGN if number in shared.ignored else 0, 0, 0, 0)
            calls.call("rt_sigaction", number, action, 0, _SIGSET)
    calls.call("rt_sigprocmask", _SIG_SETMASK, bytes(_SIGSET), 0, _SIGSET)
    handled, scoped, size = shared.landlock_attributes
    if size:  # Landlock, where the kernel has it; `landlock.restrict` does the same
        calls.call("landlock_create_ruleset", struct.pack("=QQQ", handled, 0, scoped), size, 0, into=LANDLOCK_RULESET)
        _add_grants(calls, shared.grants, handled)


def _set_descriptors(calls: CallList, terminal: int, stdio: tuple[int, int, int]) -> None:
    """Put the three streams at 0, 1 and 2, and close everything else except the channel."""
    if terminal >= 0:
        calls.call("ioctl", calls.take(terminal), _TIOCSCTTY, 0, purpose="ioctl TIOCSCTTY")
    for number, descriptor in enumerate(stdio):
        if name := devices.memory_device(descriptor):  # all sandboxes would share the inode of a host device
            mode = fcntl.fcntl(descriptor, fcntl.F_GETFL) & (os.O_ACCMODE | os.O_APPEND | os.O_NONBLOCK)
            node = _open(calls, f"/dev/{name}", mode | os.O_NOCTTY)
            calls.call("dup3", node, number, 0)
            calls.close(node)
        else:
            calls.call("dup3", calls.take(descriptor), number, 0)
    calls.call("close_range", _FIRST_UNUSED, (1 << 32) - 1, 0)


def _restrict_files(
    calls: CallList, shared: _SharedRights, grants: Sequence[landlock.Grant], stdio: tuple[int, int, int]
) -> None:
    """Add the remaining Landlock rules, and enforce the ruleset."""
    handled, _, size = shared.landlock_attributes
    if not size:
        return
    _add_grants(calls, (grant for grant in grants if grant not in shared.grants), handled)
    for number, descriptor in enumerate(stdio):
        if stat.S_ISCHR(os.fstat(descriptor).st_mode):  # terminals and other devices may be opened again
            _add_rule(calls, number, landlock.DEVICE_RIGHTS & landlock.FILE_RIGHTS & handled)
    calls.call("landlock_restrict_self", LANDLOCK_RULESET, 0)
    calls.call("close", LANDLOCK_RULESET)


def _add_grants(calls: CallList, grants: Iterable[landlock.Grant], handled: int) -> None:
    for grant in grants:
        calls.step(None)  # the grants may not fit into one list
        missing, added = Label(), Label()
        descriptor = _open(calls, grant.path, os.O_PATH, ignored=(errno.ENOENT,), to=missing, purpose=_OPEN_GRANT)
        file = Label()
        calls.is_kind(descriptor, stat.S_IFDIR, to=file, purpose=_OPEN_GRANT)
        _add_rule(calls, descriptor, grant.rights & handled)
        calls.jump(added)
        calls.place_label(file)
        _add_rule(calls, descriptor, grant.rights & handled & landlock.FILE_RIGHTS)
        calls.place_label(added)
        calls.close(descriptor)
        calls.place_label(missing)


def _add_rule(calls: CallList, place: Register | int, rights: int) -> None:
    rule = calls.data(struct.pack("=Qi", rights, place if isinstance(place, int) else -1))
    if not isinstance(place, int):
        calls.store(calls.offset_by(rule, 8), place)
    calls.call("landlock_add_rule", LANDLOCK_RULESET, landlock.PATH_BENEATH, rule, 0)


def _load_filter(calls: CallList, program: Program) -> None:
    """Load the filter with a listener, or where none can be had, the plain filter."""
    loaded, plain, fallback = Label(), Label(), Label()
    supervised = program.supervised
    if supervised is not None:
        if supervised.is_required:
            # The supervisor reads its memory, which takes a dumpable process. So far that has only Exeat's program,
            # and no other process is in its user namespace.
            _prctl(calls, linux.PR_SET_DUMPABLE, 1)
        calls.step(_GET_LISTENER if supervised.is_required else None)
        instructions, flags = _filter_program(calls, supervised.program), linux.FILTER_NEW_LISTENER
        for flag, ignored, to in (
            (linux.FILTER_WAIT_KILLABLE, (ANY,), fallback),
            (0, _ignored_errors(supervised), plain),
        ):
            calls.call(
                "seccomp",
                linux.SECCOMP_SET_MODE_FILTER,
                flags | flag,
                instructions,
                ignored=ignored,
                to=to,
                into=LISTENER,
            )
            calls.jump(loaded)
            calls.place_label(to)
    _prctl(calls, linux.PR_SET_SECCOMP, linux.SECCOMP_MODE_FILTER, _filter_program(calls, program.seccomp))
    calls.call("dup", -1, ignored=(errno.EBADF,), into=LISTENER)  # there is none
    calls.place_label(loaded)


def _ignored_errors(supervised: WatchedFilter) -> tuple[int, ...]:
    return () if supervised.is_required else (ANY,)


def _filter_program(calls: CallList, program: bytes) -> Data:
    """Put a filter into the list as seccomp(2) takes it: `struct sock_fprog`."""
    data = calls.data(_FPROG.pack(len(program) // 8, _FPROG.size) + program)
    calls.point(data, 1, _FILTER_POINTER)
    return data


def _open(
    calls: CallList, path: str, flags: int, *, ignored: tuple[int, ...] = (), to: Label | None = None, purpose: str = ""
) -> Register:
    return calls.get(
        "openat", linux.AT_FDCWD, path, flags | os.O_CLOEXEC, ignored=ignored, to=to, purpose=purpose or f"open {path}"
    )


def _prctl(
    calls: CallList, option: int, *arguments: Argument, ignored: tuple[int, ...] = (), to: Label | None = None
) -> None:
    calls.call(
        "prctl",
        option,
        *arguments,
        ignored=ignored,
        to=to if ignored else None,
        purpose=f"prctl {linux.OPTIONS[option]}",
    )
