"""ClientHellos that are known by sight: a program greets a host in the same words every time, but for random ones.

Pure but for what it remembers. A hello that equals a known one in every byte that `parse_hello` reads says the same, so
it need not be read again: an eighth of a passed-through connection's CPU time. What is not compared are the bodies of
fields that the reader skips by their length; the lengths themselves are compared.
"""

from typing import TYPE_CHECKING, Final

from proxy.hello import ClientHello, parse_hello

if TYPE_CHECKING:
    from proxy.hello import NeedMore, NotTls

MOST_KNOWN: Final = 256  # hellos of one tenant; then nothing new is remembered
MOST_ALIKE: Final = 4  # of one length: a browser that shuffles its extensions would fill everything
LONGEST_KNOWN: Final = 4096  # bytes

_RANDOM: Final = slice(11, 43)  # behind the headers of record and message, and the version
_SESSION_ID: Final = 43  # where its length is
_FRESH: Final = frozenset({35, 41, 51})  # session_ticket, pre_shared_key, key_share: new every time, and never read


class Greeting:
    """One hello, its size in bytes, and what stands where by which it is known again."""

    __slots__ = ("hello", "pieces", "size")

    def __init__(self, data: bytes, hello: ClientHello) -> None:
        """Remember `hello`, which is all of `data`, in one record."""
        self.hello = hello
        self.size = len(data)
        self.pieces = [(piece.start, data[piece]) for piece in _compared(data)]

    def is_in(self, data: bytes) -> bool:
        """Whether `data` begins with a hello that says the same."""
        if len(data) < self.size:
            return False
        for at, text in self.pieces:  # noqa: SIM110  a generator would cost more than it compares
            if not data.startswith(text, at):
                return False
        return True


class Greetings:
    """The hellos that one tenant's programs greet with."""

    __slots__ = ("_by_hello", "_known")

    def __init__(self) -> None:
        self._known: dict[bytes, list[Greeting]] = {}  # by the record's header, which has its length
        self._by_hello: dict[int, Greeting] = {}  # by where it lies

    def read(self, data: bytes) -> "ClientHello | NeedMore | NotTls":
        """Do as `parse_hello`; the same object for the same hello, where it is known."""
        alike = self._known.get(data[:5])
        if alike is not None:
            for greeting in alike:
                if greeting.is_in(data):
                    return greeting.hello
        hello = parse_hello(data)
        if isinstance(hello, ClientHello) and len(self._by_hello) < MOST_KNOWN:
            self._remember(data, hello)
        return hello

    def greeting_of(self, hello: ClientHello) -> Greeting | None:
        """Return by what the very hello that `read` gave is known again; None: it isn't."""
        return self._by_hello.get(id(hello))

    def _remember(self, data: bytes, hello: ClientHello) -> None:
        end = 5 + int.from_bytes(data[3:5])
        alike = self._known.setdefault(data[:5], [])
        if end <= LONGEST_KNOWN and end == 9 + int.from_bytes(data[6:9]) and len(alike) < MOST_ALIKE:
            greeting = Greeting(data[:end], hello)
            alike.append(greeting)
            self._by_hello[id(hello)] = greeting


def _compared(data: bytes) -> list[slice]:
    """List what is read of a well-formed hello in one record."""
    end = len(data)
    start = at = _SESSION_ID + 1 + data[_SESSION_ID]
    found = [slice(0, _RANDOM.start), slice(_RANDOM.stop, _SESSION_ID + 1)]
    at += 2 + int.from_bytes(data[at : at + 2])  # cipher suites
    at += 1 + data[at]  # compression methods
    at += 2  # the length of the extensions, if there are any
    while at < end:
        body, size = at + 4, int.from_bytes(data[at + 2 : at + 4])
        if int.from_bytes(data[at : at + 2]) in _FRESH:
            found.append(slice(start, body))
            start = body + size
        at = body + size
    found.append(slice(start, end))
    return found
