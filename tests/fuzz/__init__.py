"""Fuzzing of everything that reads what others wrote: `python -m tests.fuzz`, or `make fuzz`.

Seeds are mutated, spliced and drawn from an alphabet of what is special to them; what finds nothing is forgotten. Every
input hangs on the seed number that is told, so that what was found is found again.
"""

import random
from collections.abc import Iterator

SPECIAL = [
    b"\x00", b"\xff", b"\xc2\x85", b"\xe2\x80\xa8", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"%", b"%2", b"%2f", b"%00", b"%25", b"..", b"/", b"//", b"\\",
    b".", b"*", b"**", b":", b"[", b"]", b"{", b"}", b",", b"- ", b"&", b"!", b"|", b">", b"?", b"#", b"'", b'"', b"\n", b"\r", b"\t", b" ", b"~", b"null",
    b"NaN", b"Infinity", b"-1", b"1e999", b"1e308", b"9" * 25, b"9" * 400, b"9" * 5000, b"[" * 5000, b"0x", b"0", b"255", b"256", b"4294967296", b"::", b"ffff", b"xn--", b"-", b"_", b"@", b"\xe3\x80\x82", b"\xef\xbc\x8e", b"\xc3\x9f", b"\xe2\x80\x8d", b";", b"=", b"+", b"<<",
]  # fmt: skip


def inputs(seeds: list[bytes], seed: int) -> Iterator[bytes]:
    """Give inputs for ever, those of one seed always the same."""
    chance = random.Random(seed)
    while True:
        data = bytearray(chance.choice(seeds))
        for _ in range(chance.choice((0, 1, 1, 2, 4, 16))):
            at = chance.randrange(len(data) + 1)
            until = min(len(data), at + chance.choice((0, 1, 1, 2, 8, 64)))
            match chance.randrange(6):
                case 0:
                    data[at:until] = b""
                case 1:
                    data[at:until] = chance.choice(SPECIAL)
                case 2:
                    data[at:at] = chance.choice(SPECIAL) * chance.choice((1, 1, 2, 40))
                case 3:
                    other = chance.choice(seeds)
                    data[at:] = other[chance.randrange(len(other) + 1) :]
                case 4:
                    data[at:at] = data[at:until] * chance.choice((1, 2, 8))
                case _:
                    data[at:until] = chance.randbytes(chance.choice((1, 2, 4)))
        yield bytes(data[:20000])
