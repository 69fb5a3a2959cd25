"""YAML that is read by a process of its own, while this one imports what makes rules of it: as long as that takes.

It is forked before it is known what there is to read, and is handed the bytes of one file after another: what they mean
is decided here, by the tree that it answers with. Whatever becomes of it costs time and nothing else: what it doesn't
answer is read here. No task descends from it, and it is gone before there is one.
"""

import contextlib
import os
import pickle
import signal
import socket
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

if TYPE_CHECKING:
    from rules.grammar.document import Node
    from rules.problems import Problem

_LARGEST: Final = 1 << 16  # bytes of a file; to hand the tree of a larger one over takes longer than to make it
_PATIENCE: Final = 10.0  # seconds
_LOST: Final = (OSError, EOFError, pickle.UnpicklingError)


class _Reader(NamedTuple):
    pid: int
    channel: socket.socket


_reader: list[_Reader] = []  # one or none


def begin() -> None:
    """Have `parse` ask a process of its own until the `end`, where there is another processor for it."""
    if len(os.sched_getaffinity(0)) > 1:
        with contextlib.suppress(OSError):  # a process more than there may be
            _reader.append(_forked())


def end() -> None:
    """Have it gone. Idempotent."""
    while _reader:
        _let_go(_reader.pop())


def parse(data: bytes, file: str, problems: "list[Problem]") -> "Node | None":
    """Do as `rules.grammar.document.parse`."""
    if _reader and len(data) <= _LARGEST:
        try:
            root, found = _ask(_reader[0].channel, (data, file))
        except _LOST:
            end()
        else:
            problems += found
            return root
    from rules.grammar import document

    return document.parse(data, file, problems)


def _ask(channel: socket.socket, what: tuple[bytes, str]) -> "tuple[Node | None, list[Problem]]":
    with channel.makefile("rwb") as file:
        pickle.dump(what, file)
        file.flush()
        root, found = pickle.load(file)  # noqa: S301 - who says it was forked from us, and has read a rule file
    return root, found


def _forked() -> _Reader:
    ours, theirs = socket.socketpair()
    try:
        pid = os.fork()
        if pid == 0:
            ours.close()
            _serve(theirs)
    finally:
        theirs.close()
    ours.settimeout(_PATIENCE)
    return _Reader(pid, ours)


def _let_go(reader: _Reader) -> None:
    reader.channel.close()
    with contextlib.suppress(ProcessLookupError):
        os.kill(reader.pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(reader.pid, 0)


def _serve(channel: socket.socket) -> NoReturn:
    """Answer until nobody asks any more. Whatever goes wrong, nothing gets from here to where who forked us goes on."""
    try:
        from rules.grammar import composing, document  # noqa: F401 - before it is asked for anything

        with channel.makefile("rwb") as file:
            while True:
                problems: list[Problem] = []
                data, name = pickle.load(file)  # noqa: S301 - by who forked us
                root = document.parse(data, name, problems)
                pickle.dump((root, problems), file)
                file.flush()
    finally:
        os._exit(0)
