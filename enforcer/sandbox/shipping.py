"""What a sandbox's processes are told once it is known what for: values with descriptors in them, over a socket pair.

They come from who made those processes, over a pair that nobody else has an end of, before anything of a task runs.
What both have had since before those were forked isn't sent: of each such value they are told which it is.
"""

import os
import pickle
import socket
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, BinaryIO, Final, NamedTuple

from proxy import message

_AT_ONCE: Final = 200  # descriptors in a message; the kernel takes 253 (unix(7), SCM_MAX_FD)
_common: Final[list[object]] = []  # only ever longer, so that a number means the same on both sides


class Shipped(NamedTuple):
    """What came, and where the descriptors are here, by their numbers there."""

    what: Any
    descriptors: dict[int, int]


def keep(*values: object) -> None:
    """Have it that these, which never change, are not sent to processes that are forked from now on."""
    _common.extend(values)


def kept() -> int:
    """Return how many values a process has that is forked now."""
    return len(_common)


def ship(channel: socket.socket, what: object, descriptors: Collection[int] = (), *, has: int = 0) -> None:
    """Send it, with copies of the descriptors, to who `has` so many values. Raises OSError when that one is gone."""
    numbers = sorted(set(descriptors))
    file = os.memfd_create("shipped", os.MFD_CLOEXEC)
    try:
        with open(os.dup(file), "wb") as writing:
            _Pickler(writing, {id(value): number for number, value in enumerate(_common[:has])}).dump((what, numbers))
        message.send(channel, {"left": len(numbers)}, [file])
        for at in range(0, len(numbers), _AT_ONCE):
            message.send(channel, {"descriptors": True}, numbers[at : at + _AT_ONCE])
    finally:
        os.close(file)


def unpack(channel: socket.socket) -> Shipped:
    """Wait for what is shipped. When nobody is left who could ship anything, this process ends."""
    said, [file, *_] = _received(channel, 1)
    left, here = said["left"], list[int]()
    assert isinstance(left, int)
    while len(here) < left:
        here += _received(channel, _AT_ONCE)[1]
    with open(file, "rb") as reading:
        reading.seek(0)
        what, numbers = _Unpickler(reading).load()
    return Shipped(what, dict(zip(numbers, here, strict=True)))


class _Pickler(pickle.Pickler):
    def __init__(self, file: BinaryIO, common: Mapping[int, int]) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.dispatch_table = {MappingProxyType: lambda mapping: (_frozen, (dict(mapping),))}
        self._common = common

    def persistent_id(self, value: object) -> int | None:
        return self._common.get(id(value))


class _Unpickler(pickle.Unpickler):  # what it reads `ship` has written
    def persistent_load(self, number: int) -> object:
        return _common[number]


def _received(channel: socket.socket, most: int) -> tuple[dict[str, object], list[int]]:
    said, descriptors = message.receive(channel, most)
    if not said or not descriptors:
        os._exit(0)
    return said, descriptors


def _frozen(mapping: dict[Any, Any]) -> "MappingProxyType[Any, Any]":
    return MappingProxyType(mapping)
