"""System call filters as values, and as the BPF that the kernel runs: seccomp(2), linux/bpf_common.h.

A filter first looks at the architecture, then finds the call's number by halves, as in a search tree: some eight
comparisons for any of hundreds of calls. What depends on nothing but the number the kernel remembers by itself
(SECCOMP_CACHE, Linux 5.11), so that a call which is always let through costs nothing here.
"""

import errno
import struct
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

from enforcer.errors import HostError
from enforcer.sandbox.syscalls import AUDIT_ARCH, NUMBERS

_LD, _JEQ, _JGE, _JSET, _AND, _RET, _JA = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06, 0x05
_ALLOW, _NOTIFY, _ERRNO, _KILL = 0x7FFF0000, 0x7FC00000, 0x00050000, 0x80000000
_X32 = 0x40000000  # __X32_SYSCALL_BIT: the x32 ABI shares the architecture word of x86-64
_FARTHEST = 255  # instructions that a conditional jump can pass over
_AT_NUMBER, _AT_ARCHITECTURE, _AT_ARGUMENTS = 0, 4, 16  # struct seccomp_data
_LOW = 0xFFFFFFFF


class Test(NamedTuple):
    """One look at an argument: the low 32 bits of `argument` under `mask`, either equal to `value` or any bit set."""

    argument: int
    mask: int = _LOW
    value: int | None = None  # None: true when any bit of the mask is set

    def holds(self, arguments: Sequence[int]) -> bool:
        """Whether it holds of a call's arguments."""
        found = arguments[self.argument] & self.mask
        return bool(found) if self.value is None else found == self.value


class Refuse(NamedTuple):
    """A system call answered with `error` when every test holds (no tests: always); 0 is success, with nothing done."""

    call: str
    error: int = errno.EPERM
    tests: tuple[Test, ...] = ()
    told: bool = False  # whether whoever watches is to hear of it


class Permit(NamedTuple):
    """A system call let through when every test holds; placed before a `Refuse` of the same call."""

    call: str
    tests: tuple[Test, ...]


class Hold(NamedTuple):
    """A system call that waits until whoever watches has said whether it may go on."""

    call: str
    tests: tuple[Test, ...] = ()


class Metered(NamedTuple):
    """A system call that goes on where nobody listens; else whoever watches counts it, and may refuse it."""

    call: str
    tests: tuple[Test, ...] = ()


type Line = Refuse | Permit | Hold | Metered


class Filter(NamedTuple):
    """What becomes of each call: the first of its lines that matches, else whether it is let through.

    `allowed` None: everything that no line refuses is, also what nobody knows yet. Otherwise the rest is answered as a
    kernel does that doesn't have the call (ENOSYS), which is what programs have another way for.
    """

    lines: tuple[Line, ...]
    allowed: frozenset[str] | None = None

    def line(self, call: str, arguments: Sequence[int]) -> Line | None:
        """Return the line that answers a call."""
        for line in self.lines:
            if line.call == call and all(test.holds(arguments) for test in line.tests):
                return line
        return None


@cache
def assemble(filters: Filter, machine: str, *, watched: bool = False) -> bytes:
    """Encode a filter for one machine. Lines about calls that the machine doesn't have are left out.

    `watched`: somebody listens to it, so what is `told` is left to them to refuse. Without, it is refused all the same,
    and what is to `Hold` too. Another architecture's call (IA-32 by `int 0x80`) ends the process; x32's answer ENOSYS.
    Raises HostError for a machine whose numbers are not known: no filter, no start.
    """
    if machine not in NUMBERS:
        known = ", ".join(sorted(NUMBERS))
        raise HostError(f"no system call filter for the machine `{machine}`; exeat runs on {known}")
    unknown = _ALLOW if filters.allowed is None else _ERRNO | errno.ENOSYS
    leaves: dict[int, bytes] = {}
    by_call: dict[str, list[bytes]] = {}
    for line in filters.lines:
        by_call.setdefault(line.call, []).append(_block(line.tests, _verdict(line, watched=watched)))
    for call, number in NUMBERS[machine].items():
        rest = _ALLOW if filters.allowed is None or call in filters.allowed else unknown
        leaves[number] = b"".join((*by_call.get(call, ()), _op(_RET, rest)))
    program = _op(_LD, _AT_ARCHITECTURE) + _op(_JEQ, AUDIT_ARCH[machine], 1, 0) + _op(_RET, _KILL)
    program += _op(_LD, _AT_NUMBER)
    if machine == "x86_64":
        program += _op(_JGE, _X32, 0, 1) + _op(_RET, _ERRNO | errno.ENOSYS)
    return program + _tree(_ranges(leaves, _op(_RET, unknown)))


def _verdict(line: Line, *, watched: bool) -> int:
    match line:
        case Permit():
            return _ALLOW
        case Hold():
            return _NOTIFY if watched else _ERRNO | errno.EPERM
        case Metered():
            return _NOTIFY if watched else _ALLOW
        case Refuse():
            return _NOTIFY if watched and line.told else _ERRNO | line.error


def _ranges(leaves: Mapping[int, bytes], unknown: bytes) -> list[tuple[int, bytes]]:
    """Return where each stretch of numbers with the same answer begins, and the answer; the last has no end."""
    ranges = [(0, leaves.get(0, unknown))]
    for number in range(1, max(leaves) + 2):
        leaf = leaves.get(number, unknown)
        if leaf != ranges[-1][1]:
            ranges.append((number, leaf))
    return ranges


def _tree(ranges: Sequence[tuple[int, bytes]]) -> bytes:
    """Find the stretch that the number in the accumulator lies in."""
    if len(ranges) == 1:
        return ranges[0][1]
    middle = len(ranges) // 2
    below, above = _tree(ranges[:middle]), _tree(ranges[middle:])
    size, first = len(below) // 8, ranges[middle][0]
    if size <= _FARTHEST:
        return _op(_JGE, first, size, 0) + below + above
    return _op(_JGE, first, 0, 1) + _op(_JA, size) + below + above


def _block(tests: Iterable[Test], verdict: int) -> bytes:
    """Return `verdict` if every test holds, else fall through to what comes after."""
    pieces: list[list[bytes]] = []
    for test in tests:
        load = _op(_LD, _AT_ARGUMENTS + 8 * test.argument)
        if test.value is None:
            pieces.append([load, _op(_JSET, test.mask)])
        else:
            masked = [_op(_AND, test.mask)] if test.mask != _LOW else []
            pieces.append([load, *masked, _op(_JEQ, test.value)])
    size = sum(map(len, pieces))
    out, at = b"", 0
    for piece in pieces:
        at += len(piece)
        *before, jump = piece
        code, _, _, k = struct.unpack("=HBBI", jump)
        out += b"".join(before) + _op(code, k, 0, size - at + 1)  # false: past the return
    return out + _op(_RET, verdict)


def _op(code: int, k: int, jt: int = 0, jf: int = 0) -> bytes:
    return struct.pack("=HBBI", code, jt, jf, k)
