"""Connections that compiled code lets out without asking (`compiled/unasked.c`): those of a kind vouched for just now.

A kind is vouched for when one of it was asked for and told as always, for a quarter of a second at most; and before
compiled code has its turn it is said anew whether that still stands: the same policy, the same day, a task that hasn't
become tainted, addresses that mean what they meant. While it has its turn nothing of Python's runs but threads that put
nothing in force, so nothing that a decision hangs on can change but the time; and into another day nobody is let out,
for its lines have no segment yet. What it told is counted here before anybody can look.
"""

import ctypes
import time
from typing import TYPE_CHECKING, Final

from proxy.compiled.digest import SHA256
from proxy.telemetry.alike import Counted

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.compiled.lane import Lane
    from proxy.gate import Gate
    from proxy.regulars import Usual

# Connections beyond those that are there, for all kinds together: by so many `most` may be exceeded where others come
# meanwhile, and a tenant's share, of which more is left free for the next one (`shares`).
_AT_ONCE: Final = 16
_NS: Final = 1_000_000_000  # a second


class Vouched(ctypes.Structure):
    """Until when connections of a kind are let out unasked, and how many were that nobody counted (struct vouched)."""

    _fields_ = (("until", ctypes.c_int64), ("decided", ctypes.c_int64))  # ns, of time.monotonic_ns()


class Unasked:
    """Those of one gate. For one thread."""

    __slots__ = ("_counted", "_gate", "_in_force", "_names_then", "_vouched")

    def __init__(self, gate: "Gate", lane: "Lane", in_force: "Callable[[], bool]") -> None:
        """`in_force` says whether everything still is as it was when the usual ones were learned."""
        self._gate = gate
        self._in_force = in_force
        self._names_then = -1
        self._vouched: set[Usual] = set()
        self._counted = Counted.of(gate.recorder.metrics)
        tail = getattr(gate.recorder.journal, "tail", None)
        if tail is not None and SHA256 is not None:
            lane.tell(tail, gate.recorder.last_id, self._counted, SHA256)

    @property
    def here(self) -> int:
        """How many there are that nobody else knows of."""
        return int(self._counted.unasked)

    @property
    def is_vouching(self) -> bool:
        """Whether there may be more of them."""
        now = time.monotonic_ns()
        return any(usual.vouched.until > now for usual in self._vouched)

    def vouch(self, usual: "Usual") -> None:
        """Have those that are like one which was just let out follow it, for a moment, as far as there is room."""
        gate, counted = self._gate, self._counted
        names = gate.names.changes
        if names != self._names_then:
            self.recall()
            self._names_then = names
        room = min(_AT_ONCE, gate.most - gate.connections)
        if room <= 0 or not gate.has_room(room):
            counted.most = 0
            return
        counted.most = counted.unasked + room
        usual.vouched.until = int(usual.good_until * _NS)
        self._vouched.add(usual)

    def recall(self) -> None:
        """Vouch for nobody."""
        self.after()
        for usual in self._vouched:
            usual.vouched.until = 0
        self._vouched.clear()

    # around each turn of compiled code's, in which nothing of Python's runs

    def before(self) -> None:
        """Say whether what was vouched for may be let out still."""
        counted = self._counted
        counted.in_force = 0
        if self._vouched and self._in_force() and self._gate.names.changes == self._names_then:
            counted.in_force = 1

    def after(self) -> None:
        """Count what was told."""
        counted = self._counted
        if not (counted.decided or counted.closed):
            return
        forms = []
        for usual in self._vouched:
            if times := usual.vouched.decided:
                forms.append((usual.form, times))
                usual.vouched.decided = 0
        self._gate.recorder.take_over(counted, forms)
