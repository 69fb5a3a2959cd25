"""Feeds: lists of up to a million names, as hosts files or a name a line. Each covers its subdomains too.

A list is an external file that can change at any time, so only rules that don't allow may use it. A line that is no
name is counted and not fatal. A file without a single name is: a failed download must not open what the list blocks.

In memory a list is some ten thousand strings, each of a dozen names: as little as the file itself, nothing for the
garbage collector to scan, and quick to free. A name's hash selects the string to search, and the names in it are
compared exactly. The hash is Python's, with a key that is secret to this process: a list can't be written so that all
of its names collide.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from hashlib import sha256
from typing import Any, Final, NamedTuple

from rules.problems import quote
from rules.values.addresses import Address, parse_address
from rules.values.names import HostName, InvalidNameError

_MOST_LINES: Final = 4_000_000
_MOST_FOREIGN: Final = 100_000  # lines with characters of other scripts: each takes a thousand times as long
_LONGEST_LINE: Final = 4096
_LONGEST_NAME: Final = 253
_BLOCK: Final = 1 << 15  # bytes looked at in one go
_TOGETHER: Final = 16  # names that stand together, at most, on average
_BOM: Final = b"\xef\xbb\xbf"
_SAMPLE: Final = "exeat"  # its hash differs between processes with different hash keys

# What nearly every line is. It takes nothing that HostName would not, and leaves to it what it doesn't take.
_SIMPLE: Final = re.compile(
    r"^(?:(?:0\.0\.0\.0|127\.0\.0\.1|::1?)[ \t]++)?"
    r"((?:(?!-)[a-z0-9_-]{1,63}+(?<!-)\.)++[a-z][a-z0-9-]{0,62}+(?<!-))"
    r"[ \t\r]*+(?:#.*+)?$",
    re.MULTILINE | re.ASCII,
)


class InvalidLine(NamedTuple):
    """A line of a list that is not a name; lines count from 1."""

    number: int
    text: str


@dataclass(slots=True, eq=False)
class Feed:
    """A list of names, as it was read."""

    text: str  # its path as the rule has it
    digest: str  # SHA-256 of the file's contents
    names: tuple[str, ...]  # filed by their hashes, as `_hash_names` does; a power of two of them
    _: KW_ONLY
    single: bool  # whether one of the names is a single label
    bad: int = 0  # lines that are no names and no comments
    first_bad: InvalidLine | None = None

    @classmethod
    def read(cls, data: bytes, text: str) -> "Feed":
        """Read a list's contents. Raises ValueError if there is no name in it, or too much of anything."""
        if data.count(b"\n") > _MOST_LINES:
            raise ValueError(f"it has more than {_MOST_LINES:,} lines")
        lines = _NameReader(data)
        places = 1 << (data.count(b"\n") // _TOGETHER).bit_length()
        names = _hash_names(lines.names(), places)
        if not any(names):
            raise ValueError("it has no names in it")
        return cls(text, sha256(data).hexdigest(), names, single=lines.single, bad=lines.bad, first_bad=lines.first_bad)

    @property
    def count(self) -> int:
        """How many names are in it, each once."""
        return sum(chunk.count("\n") - 1 for chunk in self.names if chunk)

    def covers(self, name: HostName) -> bool:
        """Whether the name, or one that it is below of, is in the list."""
        return bool(find_covering((self,), name))

    def problem(self) -> str:
        """Describe the lines that are not names, or return an empty text."""
        if self.first_bad is None:
            return ""
        lines = "1 line is no name and counts" if self.bad == 1 else f"{self.bad:,} lines are no names and count"
        first = f"line {self.first_bad.number}, {quote(self.first_bad.text)}"
        return f"`{self.text}`: {lines} for nothing; the first is {first}"

    def __reduce__(self) -> tuple[object, ...]:
        more = {"single": self.single, "bad": self.bad, "first_bad": self.first_bad}
        return unpickle_feed, (hash(_SAMPLE), self.text, self.digest, self.names, more)


def find_covering(feeds: Sequence[Feed], name: HostName) -> tuple[int, ...]:
    """Find which of the lists, counted from 0, have the name or one that it is below of; a probe a label and list."""
    found: tuple[int, ...] = ()
    for number, feed in enumerate(feeds):
        names, rest = feed.names, str(name)
        mask = len(names) - 1
        while f"\n{rest}\n" not in names[hash(rest) & mask]:
            rest = rest.partition(".")[2]
            if "." not in rest and not (rest and feed.single):
                break
        else:
            found += (number,)
    return found


def unpickle_feed(sample: int, text: str, digest: str, names: tuple[str, ...], more: Mapping[str, Any]) -> Feed:
    """Restore a pickled list; index its names again if that process had another hash key."""
    if sample != hash(_SAMPLE):
        names = _hash_names(([name for name in chunk.split("\n") if name] for chunk in names), len(names))
    return Feed(text, digest, names, **more)


def _hash_names(names: Iterable[list[str]], places: int) -> tuple[str, ...]:
    """Group names by hash into strings: each starts and ends with a line break, or is empty."""
    filed: list[list[str]] = [[] for _ in range(places)]
    for some in names:
        for name, at in zip(some, map((places - 1).__and__, map(hash, some)), strict=True):
            filed[at].append(name)
    return tuple(["\n" + "\n".join(dict.fromkeys(chunk)) + "\n" if chunk else "" for chunk in filed])


class _NameReader:
    """The lines of a file: names, and how many are none."""

    def __init__(self, data: bytes) -> None:
        self.bad = 0
        self.first_bad: InvalidLine | None = None
        self.single = False
        self._foreign = 0
        self._data = data

    def names(self) -> Iterator[list[str]]:
        """Yield the names in batches. Raises ValueError."""
        data, at, number = self._data, len(_BOM) if self._data.startswith(_BOM) else 0, 1
        while at < len(data):
            end = data.find(b"\n", at + _BLOCK)
            end = len(data) if end < 0 else end
            block = data[at:end].lower().decode("utf-8", "surrogateescape")
            lines = block.count("\n") + 1
            found: list[str] = _SIMPLE.findall(block)
            if len(found) == lines and "xn--" not in block and len(max(found, key=len)) <= _LONGEST_NAME:
                yield found
            else:
                yield [name for n, line in enumerate(block.split("\n"), number) for name in self._line(line, n)]
            at, number = end + 1, number + lines

    def _line(self, line: str, number: int) -> list[str]:
        simple = _SIMPLE.match(line)
        if simple is not None and "xn--" not in line and len(simple[1]) <= _LONGEST_NAME:
            return [simple[1]]
        words = line[:_LONGEST_LINE].partition("#")[0].split()
        if not words:
            return []
        if not line.isascii():
            self._foreign += 1
            if self._foreign > _MOST_FOREIGN:
                raise ValueError(f"it has more than {_MOST_FOREIGN:,} lines that are not in ASCII")
        names = self._parse_words(words) if len(line) <= _LONGEST_LINE else [None]
        if None in names:
            self.bad += 1
            self.first_bad = self.first_bad or InvalidLine(number, line.strip()[:_LONGEST_NAME])
        return [name for name in names if name is not None]

    def _parse_words(self, words: list[str]) -> list[str | None]:
        """Read a line that isn't simple; None stands for what is no name."""
        if len(words) == 1:
            name = _name(words[0])
            self.single = self.single or (name is not None and "." not in name)
            return [name]
        if _address(words[0]) is None:
            return [None]
        # What has no dot in a hosts file (`localhost`, `local`) is this host's own and no top-level domain.
        names = [_name(word) for word in words[1:] if word != words[0]]
        return [name for name in names if name is None or "." in name]


def _name(word: str) -> str | None:
    try:
        return HostName.parse(word)
    except InvalidNameError:
        return None


def _address(word: str) -> Address | None:
    """Read the address in front of a hosts file's names, with or without a zone: nothing comes of it."""
    return parse_address(word.partition("%")[0])
