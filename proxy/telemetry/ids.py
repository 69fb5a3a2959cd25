"""Event ids: UUIDv7 (RFC 9562 section 5.7), so that ids sort in the order in which one process made them."""

import os
import time

_VARIANT = {digit: "89ab"[int(digit, 16) & 0b11] for digit in "0123456789abcdef"}  # the two bits `10` put in front
_HALF_MICROSECONDS = 4096  # what rand_a divides a millisecond into
_NS_A_MILLISECOND = 1_000_000


class IdMaker:
    """Makes ids that only ever grow, also when the clock is set back.

    rand_a holds the fraction of the millisecond (section 6.2, method 3); where that has not grown since the last id,
    the last one plus one is taken. rand_b is fresh from the kernel for each id, so that two processes never collide.
    Not for two threads at once.
    """

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last = 0  # milliseconds and their fraction: 60 bits

    def make(self, now: int | None = None) -> str:
        """Return a new id for the time `now` (ns since 1970)."""
        nanoseconds = time.time_ns() if now is None else now
        milliseconds, rest = divmod(nanoseconds, _NS_A_MILLISECOND)
        instant = milliseconds << 12 | rest * _HALF_MICROSECONDS // _NS_A_MILLISECOND
        if instant <= self._last:
            instant = self._last + 1
        self._last = instant
        clock = f"{instant:015x}"
        noise = os.urandom(8).hex()
        return f"{clock[:8]}-{clock[8:12]}-7{clock[12:]}-{_VARIANT[noise[0]]}{noise[1:4]}-{noise[4:]}"
