"""What lies in another process's memory: a path, and the words of a command. process_vm_readv(2).

All of it is the other process's to choose, and to change while it is read: nothing here is more than a claim.
"""

import ctypes
import os
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

PATH_MAX: Final = 4096  # limits.h: a longer path is no path, ENAMETOOLONG
MOST_BYTES: Final = 64 << 10  # of all words together that are read
MOST_WORDS: Final = 4096
_PAGE: Final = 4096
_FIRST: Final = 256  # bytes of a text that are read first: most are shorter
_ADDRESSES: Final = 1 << 64

_libc = ctypes.CDLL(None, use_errno=True)
_libc.process_vm_readv.restype = ctypes.c_ssize_t


class _Iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_uint64), ("length", ctypes.c_size_t)]


class Words(NamedTuple):
    """The words of a command, the first being what it calls itself; `whole`: there are no more."""

    words: tuple[bytes, ...]
    whole: bool


def read(thread: int, address: int, size: int) -> bytes:
    """Read up to `size` bytes, no further than the page that `address` is in. Raises OSError where nothing is."""
    size = min(size, _PAGE - address % _PAGE)
    buffer = ctypes.create_string_buffer(size)
    local = _Iovec(ctypes.addressof(buffer), size)
    remote = _Iovec(address % _ADDRESSES, size)
    got = _libc.process_vm_readv(thread, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
    if got <= 0:
        number = ctypes.get_errno()
        raise OSError(number, f"process_vm_readv: {os.strerror(number)}")
    return buffer.raw[:got]


def text(thread: int, address: int, longest: int) -> bytes | None:
    """Read a text that ends in a zero byte; None if it is longer. Raises OSError."""
    found = b""
    while len(found) < longest:
        piece = read(thread, address + len(found), _FIRST if not found else _PAGE)
        end = piece.find(0)
        if end >= 0:
            found += piece[:end]
            return found if len(found) < longest else None
        found += piece
    return None


def words(thread: int, address: int) -> Words:
    """Read a list of texts that ends in a null pointer, as far as is looked at. Raises OSError.

    No address: no words (execve(2), NOTES).
    """
    found: list[bytes] = []
    if not address:
        return Words((), whole=True)
    room = MOST_BYTES
    for pointer in _pointers(thread, address):
        if not pointer:
            return Words(tuple(found), whole=True)
        one = text(thread, pointer, room) if room > 0 else None
        if one is None or len(found) == MOST_WORDS:
            break
        found.append(one)
        room -= len(one) + 1
    return Words(tuple(found), whole=False)


def _pointers(thread: int, address: int) -> Iterator[int]:
    left = b""  # of a pointer that a page's end cuts in two
    while True:
        piece = read(thread, address, _PAGE)
        address += len(piece)
        piece = left + piece
        end = len(piece) // 8 * 8
        for (pointer,) in struct.iter_unpack("=Q", piece[:end]):
            yield pointer
        left = piece[end:]
