"""What a sandbox's processes are told once it is known what for: values with descriptors in them, over a socket pair.

They come from who made those processes, over a pair that nobody else has an end of, before anything of a task runs.
"""

import os
import pickle
import socket
from collections.abc import Callable, Collection
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from proxy import message

_AT_ONCE: Final = 200  # descriptors in a message; the kernel takes 253 (unix(7), SCM_MAX_FD)


class Shipped(NamedTuple):
    """What came, and where the descriptors are here, by their numbers there."""

    what: Any
    descriptors: dict[int, int]


def ship(channel: socket.socket, what: object, descriptors: Collection[int] = ()) -> None:
    """Send it, with copies of the descriptors. Raises OSError when the other side is gone."""
    numbers = sorted(set(descriptors))
    file = os.memfd_create("shipped", os.MFD_CLOEXEC)
    try:
        with open(os.dup(file), "wb") as writing:
            pickling = pickle.Pickler(writing, pickle.HIGHEST_PROTOCOL)
            pickling.dispatch_table = {MappingProxyType: _reduced}
            pickling.dump((what, numbers))
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
        what, numbers = pickle.load(reading)  # noqa: S301  written by `ship`
    return Shipped(what, dict(zip(numbers, here, strict=True)))


def _received(channel: socket.socket, most: int) -> tuple[dict[str, object], list[int]]:
    said, descriptors = message.receive(channel, most)
    if not said or not descriptors:
        os._exit(0)
    return said, descriptors


def _reduced(mapping: "MappingProxyType[Any, Any]") -> tuple[Callable[..., object], tuple[object, ...]]:
    return _frozen, (dict(mapping),)


def _frozen(mapping: dict[Any, Any]) -> "MappingProxyType[Any, Any]":
    return MappingProxyType(mapping)
