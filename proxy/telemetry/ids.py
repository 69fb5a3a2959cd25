"""Event ids: UUIDv7 (RFC 9562 section 5.7), so that ids sort in the order in which one process made them."""

import os
import time

_NS_A_MILLISECOND = 1_000_000
_LEADING = 1 << 60  # above the bits of an instant: there are always as many digits
_VARIANT = bytes(0b10 << 6 | byte & 0x3F for byte in range(256))  # what puts the bits `10` in front of rand_b
_AT_ONCE = 64  # ids that noise is asked for: a system call for each would cost as much as the id


class IdMaker:
    """Makes ids that only ever grow, also when the clock is set back.

    rand_a holds the fraction of the millisecond (section 6.2, method 3); where that has not grown since the last id,
    the last one plus one is taken. rand_b is the kernel's noise, each bit used once, so that two processes never
    collide. Not for two threads at once; after a fork see `forked`.
    """

    __slots__ = ("_last", "_noise", "_variants")

    def __init__(self) -> None:
        self._last = 0  # milliseconds and their fraction, 60 bits
        self._variants: list[str] = []  # the first four digits of rand_b, variant included, that no id has yet
        self._noise: list[str] = []  # and its other twelve

    def forked(self) -> None:
        """Forget the noise that the other process has too."""
        self._variants, self._noise = [], []

    def make(self, now: int | None = None) -> str:
        """Return a new id for the time `now` (ns since 1970)."""
        nanoseconds = time.time_ns() if now is None else now
        instant = (nanoseconds << 12) // _NS_A_MILLISECOND
        if instant <= self._last:
            instant = self._last + 1
        self._last = instant
        if not self._noise:
            self._get_noise()
        clock = hex(_LEADING | instant)[3:]
        return f"{clock[:8]}-{clock[8:12]}-7{clock[12:]}-{self._variants.pop()}-{self._noise.pop()}"

    def _get_noise(self) -> None:
        variants = bytearray(os.urandom(2 * _AT_ONCE))
        variants[::2] = variants[::2].translate(_VARIANT)
        self._variants = variants.hex("-", 2).split("-")
        self._noise = os.urandom(6 * _AT_ONCE).hex("-", 6).split("-")
