"""The library that `build` makes of `begin.c`, called through ctypes: loaded if it is there and of this source."""

import ctypes
import errno
import hashlib
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from typing import Final, NamedTuple

SOURCE: Final = os.path.join(os.path.dirname(__file__), "begin.c")
LIBRARY: Final = os.path.join(os.path.dirname(__file__), "begin.so")


class State(IntEnum):
    """How far a task's process came."""

    BEGUN = 0
    EXECUTING = 1
    EXECUTED_NOT = 2


class Beginning(NamedTuple):
    """Everything that a task's process gives up, and then executes. Descriptors are init's own."""

    uid: int
    gid: int
    uid_map: str
    gid_map: str
    directory: str
    programs: Sequence[bytes]  # to be tried one after the other
    argv: Sequence[str]
    environment: Mapping[str, str]
    ignored: int  # signals, a bit each, the lowest for signal 1
    stdio: tuple[int, int, int]
    terminal: int  # -1: none
    watch: socket.socket
    wall: Sequence[tuple[str, int]]  # paths, and Landlock's rights beneath them
    ruled: tuple[int, int, int]  # what Landlock handles and scopes, and the size of its attributes; 0: there is none
    of_files: int  # which rights can be had of what is no directory
    of_devices: int  # which of it has already, and of others
    limits: Sequence[tuple[int, int, int]]  # which resource, and at most how much, soft and hard
    filter: bytes
    watched: bytes  # the filter that somebody listens to; empty: nobody does


class Begun(NamedTuple):
    """Its pid; with an errno where nothing could be executed: then it waits to be told why."""

    pid: int
    error: int


class _Grant(ctypes.Structure):
    _fields_ = [("path", ctypes.c_char_p), ("rights", ctypes.c_uint64), ("of_files", ctypes.c_uint64)]


class _Limit(ctypes.Structure):
    _fields_ = [("which", ctypes.c_int32), ("soft", ctypes.c_uint64), ("hard", ctypes.c_uint64)]


class _Task(ctypes.Structure):
    """`struct task` of begin.c."""

    _fields_ = [
        *((name, ctypes.c_char_p) for name in ("uid_map", "gid_map", "directory")),
        *((name, ctypes.POINTER(ctypes.c_char_p)) for name in ("argv", "environment", "programs")),
        ("wall", ctypes.POINTER(_Grant)),
        ("limits", ctypes.POINTER(_Limit)),
        *((name, ctypes.c_char_p) for name in ("filter", "watched")),
        *((name, ctypes.c_uint64) for name in ("ignored", "handled", "scoped", "device")),
        *((name, ctypes.c_uint32) for name in ("uid", "gid")),
        ("stdio", ctypes.c_int32 * 3),
        *((name, ctypes.c_int32) for name in ("terminal", "watch", "channel")),
        *((name, ctypes.c_uint32) for name in ("walls", "wall_size", "limited", "filter_size", "watched_size")),
        *((name, ctypes.c_int32) for name in ("state", "error")),
        ("step", ctypes.c_char_p),
        *((name, ctypes.c_int32) for name in ("pid", "other")),
    ]


def digest() -> str:
    """Return what tells one source from another. Raises OSError."""
    with open(SOURCE, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


class Compiled:
    """The library."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._begin = library.exeat_begin
        self._begin.restype, self._begin.argtypes = ctypes.c_int, [ctypes.POINTER(_Task)]

    def begin(self, what: Beginning, ours: socket.socket, theirs: socket.socket) -> Begun:
        """Begin a task in a user namespace of its own; returns when its process is a program, or can't be one.

        Of the pair, the task has `theirs`, which is taken over. Raises OSError with what could not be done: then
        nothing of it is left.
        """
        handled, scoped, size = what.ruled
        variables = (os.fsencode(name) + b"=" + os.fsencode(value) for name, value in what.environment.items())
        wall = [_Grant(os.fsencode(path), rights, what.of_files) for path, rights in what.wall]
        task = _Task(
            uid_map=what.uid_map.encode(),
            gid_map=what.gid_map.encode(),
            directory=os.fsencode(what.directory),
            argv=_strings(map(os.fsencode, what.argv)),
            environment=_strings(variables),
            programs=_strings(what.programs),
            wall=(_Grant * len(wall))(*wall),
            limits=(_Limit * len(what.limits))(*(_Limit(*each) for each in what.limits)),
            filter=what.filter,
            watched=what.watched,
            ignored=what.ignored,
            handled=handled,
            scoped=scoped,
            device=what.of_devices,
            uid=what.uid,
            gid=what.gid,
            stdio=what.stdio,
            terminal=what.terminal,
            watch=what.watch.fileno(),
            channel=theirs.detach(),
            walls=len(wall),
            wall_size=size,
            limited=len(what.limits),
            filter_size=len(what.filter),
            watched_size=len(what.watched),
            other=ours.fileno(),
        )
        if self._begin(ctypes.byref(task)):
            step = task.step.decode()
            raise OSError(task.error or errno.ECHILD, f"{step}: {os.strerror(task.error)}" if task.error else step)
        return Begun(task.pid, task.error if task.state == State.EXECUTED_NOT else 0)


def _strings(each: Iterable[bytes]) -> "ctypes.Array[ctypes.c_char_p]":
    strings = (*each, None)
    return (ctypes.c_char_p * len(strings))(*strings)


def load() -> Compiled | None:
    """Return the library; None: nobody compiled it, or of another source."""
    try:
        library = ctypes.CDLL(LIBRARY)
        made_of = ctypes.string_at(ctypes.addressof(ctypes.c_char.in_dll(library, "exeat_source")))
        return Compiled(library) if made_of == digest().encode() else None
    except (OSError, ValueError, AttributeError):
        return None
