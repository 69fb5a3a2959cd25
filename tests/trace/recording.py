"""Record each call of Exeat's own code in every process of a flow, by sys.setprofile.

Each process writes to its own slot of one sparse file, which it inherits as a shared mapping. A record takes no system
call, so a confined process can write it, and a killed one has written it.
"""

import inspect
import itertools
import mmap
import os
import struct
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PROJECT = Path(__file__).resolve().parents[2]
FLOORS = ("enforcer", "proxy", "rules")
_RECORD = struct.Struct("<QIHBB")  # monotonic ns, line of the code object, file (from 1), thread, is it of an import
_HEAD = struct.Struct("<QQ")  # pid; as long as a record
_SLOT = 1 << 24  # bytes: a million records, and zeros behind them
_SLOTS = 256  # more than a flow has processes


class Call(NamedTuple):
    """One call of our code. `is_import`: it runs a module's or class's body, or is called by one."""

    at: int  # monotonic ns
    thread: tuple[int, int]  # slot of the process, number in it
    file: str  # from the project's directory
    line: int  # where its code object begins
    is_import: bool

    @property
    def folder(self) -> str:
        """The folder of its file."""
        return os.path.dirname(self.file)


def files(project: Path = PROJECT) -> list[str]:
    """Return every production file, from the project's directory."""
    return sorted(str(path.relative_to(project)) for floor in FLOORS for path in (project / floor).rglob("*.py"))


class Recording:
    """Records the calls of this process and of all that it forks into the file `path`."""

    def __init__(self, path: Path, project: Path = PROJECT) -> None:
        self._numbers = {str(project / name): number for number, name in enumerate(files(project), 1)}
        with path.open("w+b") as file:
            file.truncate(_SLOT * _SLOTS)
            self._memory = mmap.mmap(file.fileno(), _SLOT * _SLOTS)
        self._importing: dict[int, int] = {threading.get_ident(): 0}  # how deep each thread is in definitions
        self._claim()

    def begin(self) -> None:
        """Record from now on."""
        os.register_at_fork(after_in_child=self._claim)
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)

    def _claim(self) -> None:
        """Take a slot for this process. Pids of other namespaces may be equal, so a slot may be taken."""
        slot = os.getpid() % _SLOTS
        while _HEAD.unpack_from(self._memory, slot * _SLOT)[0]:
            slot = (slot + 1) % _SLOTS
        _HEAD.pack_into(self._memory, slot * _SLOT, os.getpid(), 0)
        self._places = itertools.count(slot * _SLOT + _HEAD.size, _RECORD.size)
        self._end = (slot + 1) * _SLOT - _RECORD.size
        self._threads: dict[int, int] = {}
        self._importing = {threading.get_ident(): self._importing[threading.get_ident()]}  # others aren't forked

    def _profile(self, frame, event, _):
        code = frame.f_code
        if event not in {"call", "return"} or not (number := self._numbers.get(code.co_filename)):
            return
        me = threading.get_ident()
        defines = not code.co_flags & inspect.CO_OPTIMIZED
        if event == "return":
            self._importing[me] -= defines
            return
        self._importing[me] = importing = self._importing.get(me, 0) + defines
        place = next(self._places)
        if place >= self._end:
            raise OverflowError("more calls than a slot of the recording can hold")
        thread = self._threads.setdefault(me, len(self._threads))
        _RECORD.pack_into(self._memory, place, time.monotonic_ns(), code.co_firstlineno, number, thread, importing > 0)


def read(path: Path, project: Path = PROJECT) -> Iterator[Call]:
    """Return what was recorded, process by process, in order."""
    names = ["", *files(project)]
    with path.open("rb") as file:
        for slot in range(_SLOTS):
            file.seek(slot * _SLOT)
            if not _HEAD.unpack(file.read(_HEAD.size))[0]:
                continue
            while (record := _RECORD.unpack(file.read(_RECORD.size)))[2]:
                at, line, number, thread, importing = record
                yield Call(at, (slot, thread), names[number], line, bool(importing))
