"""Transfers a compiled policy to the worker as bytes; reading it doesn't stall the gate.

The worker can't read files, and compiling thousands of rules takes longer than a connection should wait. So it gets a
compiled policy and builds it from its bytes in a thread, a few kilobytes at a time: the interpreter lock changes hands
between two pieces. Freeing the previous policy is as slow, and done the same way. The sender is trusted, since it
started this process; the types that the bytes can name are bounded all the same.
"""

import gc
import io
import os
import pickle
import sys
import time
from collections.abc import Mapping, Sequence
from types import FunctionType, ModuleType
from typing import Any, BinaryIO, Final

from rules.feeds import Feed, unpickle_feed
from rules.matching.policy import Policy
from rules.rule import Rule

# The last protocol without frames: a frame is read whole, and 64 KB of one take longer than a connection should wait.
_PROTOCOL: Final = 3
_PIECE: Final = 4096  # bytes, about 0.2 ms
_RULES_PER_PIECE: Final = 256  # rules
_OBJECTS_PER_PAUSE: Final = 256  # freed between two pauses
_SHARDS: Final = 256
_PAUSE: Final = 0.0002  # seconds in which other threads have the interpreter lock
_SWITCH: Final = 0.0005  # seconds: sys.setswitchinterval()
_OTHER_TYPES: Final = {  # types of a policy that are not from `rules`
    "builtins": {"bytearray", "dict", "frozenset", "list", "object", "set", "tuple"},
    "collections": {"OrderedDict", "deque"},
    "copyreg": {"_reconstructor"},
    "datetime": {"date"},
    "ipaddress": {"IPv4Address", "IPv4Network", "IPv6Address", "IPv6Network"},
    "pathlib": {"PosixPath"},
    "pathlib._local": {"PosixPath"},
}
_NEVER_FREED: Final = (type, ModuleType, FunctionType)


class DescriptorReader(io.RawIOBase, BinaryIO):
    """Reads a descriptor from its beginning, with an offset of its own; `close` closes the descriptor.

    Copies of a descriptor share one offset (unix(7), open(2)), and two workers may read one policy at the same time.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._offset = 0

    def readable(self) -> bool:
        """Whether it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read the next bytes."""
        size = os.preadv(self._descriptor, [buffer], self._offset)
        self._offset += size
        return size

    def close(self) -> None:
        """Close the descriptor. Idempotent."""
        if not self.closed:
            super().close()
            os.close(self._descriptor)


class _PieceReader:
    """File for pickle that is read in pieces, with a Python call for each (pickle's C code calls `peek`)."""

    __slots__ = ("_file", "_offset", "_piece")

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._piece = b""
        self._offset = 0

    def peek(self, _size: int = 0) -> bytes:
        """Return the next piece without consuming it."""
        if self._offset == len(self._piece):
            time.sleep(_PAUSE)
            self._piece, self._offset = self._file.read(_PIECE), 0
        return self._piece[self._offset :]

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes, or as many as there are."""
        if len(self._piece) - self._offset < size:
            rest = self._piece[self._offset :]
            self._piece, self._offset = b"", 0
            return rest + self._file.read(size - len(rest))
        self._offset += size
        return self._piece[self._offset - size : self._offset]

    def readline(self) -> bytes:
        """Return the bytes up to the end of the line."""
        line = b""
        while piece := self.peek():
            end = piece.find(b"\n") + 1
            line += self.read(end or len(piece))
            if end:
                break
        return line


class _Unpickler(pickle.Unpickler):
    """Unpickler that makes only the types of policies; lists and rules are referenced by number."""

    def __init__(self, file: _PieceReader, items: Sequence[Feed | Rule] = ()) -> None:
        super().__init__(file)
        self._items = items

    def persistent_load(self, number: Any) -> Feed | Rule:
        """Return a list or a rule by its number."""
        return self._items[int(number)]

    def find_class(self, module: str, name: str) -> Any:
        """Find a class of the rules or one of the few others allowed. Raises UnpicklingError."""
        if name in _OTHER_TYPES.get(module, ()):
            return super().find_class(module, name)
        if (module, name) == ("builtins", "getattr"):
            return _find_method
        found = super().find_class(module, name) if module.startswith("rules.") and "." not in name else None
        if not (isinstance(found, type) and found.__module__.startswith("rules.")) and found is not unpickle_feed:
            raise pickle.UnpicklingError(f"`{module}.{name}` is no part of a policy")
        return found


def _find_method(owner: object, name: str) -> Any:
    """Return a public method of an object of `rules`: policies contain no other attributes."""
    if not type(owner).__module__.startswith("rules.") or name.startswith("_"):
        raise pickle.UnpicklingError(f"`{name}` of a {type(owner).__name__} is no part of a policy")
    return getattr(owner, name)


class _Pickler(pickle.Pickler):
    """Pickler that writes a number for a list or a rule already written."""

    def __init__(self, file: BinaryIO, numbers: Mapping[int, int]) -> None:
        super().__init__(file, _PROTOCOL)
        self._numbers = numbers

    def persistent_id(self, obj: Any) -> int | None:
        """Return the number of a list or a rule."""
        return self._numbers.get(id(obj)) if type(obj) is Rule or type(obj) is Feed else None


def send(policy: Policy, file: BinaryIO) -> None:
    """Write a policy to `file`: its lists, its rules in pieces, then the compiled rest."""
    rules = policy.rules
    feeds = list({id(feed): feed for rule in rules for feed in rule.feeds}.values())
    pickle.dump((len(feeds), len(rules)), file, _PROTOCOL)
    for feed in feeds:
        pickle.dump(feed, file, _PROTOCOL)
    numbers = {id(feed): number for number, feed in enumerate(feeds)}
    for at in range(0, len(rules), _RULES_PER_PIECE):
        _Pickler(file, numbers).dump(rules[at : at + _RULES_PER_PIECE])
    numbers.update((id(rule), number) for number, rule in enumerate(rules, len(feeds)))
    _Pickler(file, numbers).dump(policy)


def receive(file: BinaryIO) -> Policy:
    """Read a policy from `file`, in a thread, in small pieces. Raises ValueError if it is malformed."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH)
    try:
        policy = _unpickle(_PieceReader(file))
    except Exception as error:  # corrupt data raises nearly anything (pickle.UnpicklingError)
        raise ValueError(f"the data is not a policy: {error}") from error
    finally:
        sys.setswitchinterval(before)
    if not isinstance(policy, Policy):
        raise ValueError(f"the data is not a policy but a {type(policy).__name__}")  # noqa: TRY004
    return policy


def _unpickle(pieces: _PieceReader) -> object:
    # Several unpicklers: one would free its memo of all objects at once.
    feeds, rules = _Unpickler(pieces).load()
    items: list[Feed | Rule] = [_Unpickler(pieces).load() for _ in range(feeds)]
    while len(items) < feeds + rules:
        items += _Unpickler(pieces, items).load()
    return _Unpickler(pieces, items).load()


def free(policies: list[Policy]) -> None:
    """Free `policies` piece by piece; the caller has the last references.

    Dropping the last reference to a policy would free everything in it at once, and stall the gate.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH)
    try:
        objects: list[object] = list(policies)
        policies.clear()
        visited: list[set[int]] = [set() for _ in range(_SHARDS)]  # one large set would take long to grow
        at = 0
        while at < len(objects):  # the list grows: an object comes before the objects that it refers to
            for part in gc.get_referents(objects[at]):
                number = id(part)
                shard = visited[number // 16 % _SHARDS]
                if number not in shard and not isinstance(part, _NEVER_FREED):
                    shard.add(number)
                    objects.append(part)
            at += 1
            if at % _OBJECTS_PER_PAUSE == 0:
                time.sleep(_PAUSE)
        objects.reverse()
        while visited:
            visited.pop()
            time.sleep(_PAUSE)
        while objects:
            del objects[-_OBJECTS_PER_PAUSE:]
            time.sleep(_PAUSE)
    finally:
        sys.setswitchinterval(before)
