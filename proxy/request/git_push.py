"""Parses the ref list of a git push, which comes before its pack (gitprotocol-pack(5)).

Pure: bytes in, refs out. What it keeps and unpacks is bounded. It rejects what git's own server reads in another way
than it is written, or accepts against the protocol: a list without a flush, a second list after an empty one, commands
outside a certificate. This module must never guess: no decision would cover a ref that it didn't read. It reports push
options, since with them servers do more than the refs say: submit to the branch of a review (Gerrit), merge into
another branch (GitLab), publish a repository (Gitea).
"""

import re
import zlib
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.request.request_head import UnclearError
from rules.attempt import Attempt, RefChange
from rules.verdicts import Reason

if TYPE_CHECKING:
    from proxy.event_loop.turn import Sliced
    from rules.decision import Decision
    from rules.matching.policy import Policy

MOST_BYTES: Final = 1 << 20  # of a ref list, as sent and unpacked: some 8000 refs
MOST_REFS: Final = 1000  # of one push: each is decided, by every rule, and everything else waits for that
LONGEST_REF: Final = 1024  # bytes; git's own limit is the file system's
LONGEST_LINE: Final = 65520  # with its length (gitprotocol-common(5))

_LENGTH = re.compile(rb"[0-9a-fA-F]{4}")
_ID = rb"(?:[0-9a-fA-F]{40}|[0-9a-fA-F]{64})"
_COMMAND = re.compile(rb"(%b) (%b) ([^\n\0]+)" % (_ID, _ID))
_SHALLOW = re.compile(rb"shallow %b" % _ID)
_HEADER = re.compile(rb"(certificate version [0-9.]+|(?:pusher|pushee|nonce|push-option) [^\0\n]*)")
_OPTIONS: Final = "push-options"  # as a capability: a list of them follows that of the refs
# Options that have people asked, or for what the message of a commit can say as well: GitLab's, by which a merge
# request is opened (docs.gitlab.com, "Push options"). Others of those merge it or take branches away, or are texts in
# which a line such as `/merge` is a command (`description`).
_HARMLESS: Final = re.compile(
    rb"ci\.skip|merge_request\.(?:create|draft|(?:target|title|milestone|label|assign)=[^\n]*)"
)
# git check-ref-format(1), and no more spellings than that
_NO_REF = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|/\.|\.lock(?:/|$)|[/.]$")
_SIGNATURE: Final = b"-----BEGIN "
_GZIP: Final = 31  # zlib's number for a gzip header and trailer, and nothing else
_PIECE: Final = 64 * 1024  # bytes unpacked at a time
_LINES_AT_ONCE: Final = 500  # read in one slice


class Command(NamedTuple):
    """Update of one ref in a push: create, delete or change."""

    ref: str
    change: RefChange


class DecidedRefs(NamedTuple):
    """Decisions on the refs of a push made in slices, with everything that they depend on."""

    policy: "Policy"
    attempt: Attempt
    decisions: "dict[Command, tuple[Attempt, Decision]]"

    def of(self, policy: "Policy", attempt: Attempt) -> "dict[Command, tuple[Attempt, Decision]]":
        """Return the decisions that are valid for an attempt."""
        return self.decisions if self.policy is policy and _without_git(self.attempt) == _without_git(attempt) else {}


def _without_git(attempt: Attempt) -> Attempt:
    request = attempt.request
    return attempt if request is None else attempt._replace(request=request._replace(git=None))


class Push:
    """Parser of one push's ref list."""

    def __init__(self, *, gzip: bool = False) -> None:
        """Read a body as it is, or packed with gzip, as git does with small ones."""
        self.commands: list[Command] = []
        self.objects: list[tuple[str, str]] = []  # of each command: what the ref was, and is to be
        self.capabilities: frozenset[str] = frozenset()  # of the client
        self.ahead: DecidedRefs | None = None  # what was decided on refs already
        self.asks_more = False  # than the refs say, by options (`git push -o`)
        self.complete = False  # all refs are known, and whether there are options; what follows is the pack
        self._packed = zlib.decompressobj(_GZIP) if gzip else None
        self._data = bytearray()
        self._at = 0  # what was read of it
        self._fed = 0
        self._flushed = False  # an empty list has ended: nothing may follow
        self._certificate: bytearray | None = None  # being read
        self._certified = False
        self._among_options = False  # the refs are read

    def feeding(self, data: bytes) -> "Sliced[bool]":
        """Parse the next piece of the body; returns whether all refs are known. Raises UnclearError."""
        self._fed += len(data)
        if self._packed is None:
            self._data += data
            yield from self._read()
        else:
            yield from self._unpack(self._packed, data)
        if not self.complete and (self._fed > MOST_BYTES or len(self._data) - self._at > LONGEST_LINE):
            raise UnclearError("the list of refs is longer than 1 MB", Reason.LIMIT_EXCEEDED)
        return self.complete

    def end(self) -> None:
        """Handle the end of the body. Raises UnclearError if it is cut off; a client's probe has no refs at all."""
        if not self.complete and not self._flushed:
            raise UnclearError("the push ends within its list of refs")  # git's server would act on what came
        if self._packed is not None and not self.complete and not self._packed.eof:
            raise UnclearError("the push ends within its packing")
        self.complete = True

    def _unpack(self, packed: "zlib._Decompress", data: bytes) -> "Sliced[None]":
        waits = False
        while (data or waits) and not self.complete:
            if packed.eof and data:  # some go on with a second file here, some don't
                raise UnclearError("something follows the packed list of refs")
            try:
                piece = packed.decompress(data, _PIECE)
            except zlib.error as error:
                raise UnclearError("the body is not packed as its Content-Encoding says") from error
            self._data += piece
            data = packed.unused_data if packed.eof else packed.unconsumed_tail
            waits = len(piece) == _PIECE  # what zlib has read may unpack to more
            yield from self._read()

    def _read(self) -> "Sliced[None]":
        """Parse the complete lines."""
        lines = 0
        while not self.complete and self._read_one():
            lines += 1
            if not lines % _LINES_AT_ONCE:
                yield
        if self._flushed and len(self._data) > self._at:
            raise UnclearError("something follows an empty list of refs")
        if self.complete:
            self._data.clear()

    def _read_one(self) -> bool:
        """Parse the next pkt-line: a length of four hexadecimal digits, then the rest. False: incomplete."""
        data = self._data
        if len(data) - self._at < 4:
            return False
        if self._flushed:
            raise UnclearError("something follows an empty list of refs")
        length = data[self._at : self._at + 4]
        if not _LENGTH.fullmatch(length):
            raise UnclearError("a line of the push doesn't begin with its length")
        size = int(length, 16)
        if size == 0:
            self._at += 4
            self._flush()
        elif not 4 < size <= LONGEST_LINE:  # 1 to 3 are other ends, which git's server takes for this one
            raise UnclearError("a line of the push has an impossible length")
        elif len(data) - self._at < size:
            return False
        else:
            self._line(bytes(data[self._at + 4 : self._at + size]))
            self._at += size
        if self._at > MOST_BYTES:
            raise UnclearError("the list of refs is longer than 1 MB", Reason.LIMIT_EXCEEDED)
        return True

    def _flush(self) -> None:
        if self._certificate is not None:
            raise UnclearError("the push certificate doesn't end")
        if self.commands and not self._among_options and self._announces_options():
            self._among_options = True
            return
        self.complete = bool(self.commands)
        self._flushed = not self.complete

    def _announces_options(self) -> bool:
        return any(capability.partition("=")[0] == _OPTIONS for capability in self.capabilities)

    def _line(self, line: bytes) -> None:
        if self._among_options:
            if _HARMLESS.fullmatch(line.removesuffix(b"\n")) is None:
                self.asks_more = self.complete = True
            return
        if self._certificate is not None:
            self._certificate_line(line, self._certificate)
            return
        text, nul, capabilities = line.removesuffix(b"\n").partition(b"\0")
        if nul:
            if self.capabilities or self.commands or self._certified:
                raise UnclearError("capabilities stand behind another ref than the first")
            self._take_capabilities(capabilities)
        if text == b"push-cert":
            if self.commands or self._certified:
                raise UnclearError("the push has refs inside and outside of a certificate")
            self._certificate = bytearray()
        elif not nul and _SHALLOW.fullmatch(text):
            pass  # where the client's history ends
        elif self._certified:
            raise UnclearError("the push has refs inside and outside of a certificate")
        else:
            self._command(text)

    def _take_capabilities(self, text: bytes) -> None:
        try:
            self.capabilities = frozenset(text.decode("ascii").split()) or frozenset({""})
        except UnicodeDecodeError as error:
            raise UnclearError("a capability is not ASCII") from error

    def _command(self, text: bytes) -> None:
        match = _COMMAND.fullmatch(text)
        if match is None or len(match[1]) != len(match[2]):
            raise UnclearError("a line of the push is not `old new ref`")
        old, new = int(match[1], 16), int(match[2], 16)
        change = RefChange.DELETE if not new else RefChange.CREATE if not old else RefChange.UPDATE
        if len(self.commands) >= MOST_REFS:
            raise UnclearError(f"the push has more than {MOST_REFS} refs", Reason.LIMIT_EXCEEDED)
        self.commands.append(Command(ref_name(match[3]), change))
        self.objects.append((match[1].decode().lower(), match[2].decode().lower()))

    def _certificate_line(self, line: bytes, certificate: bytearray) -> None:
        """Parse a line of a push certificate; its lines may span packets (receive-pack.c, read_head_info)."""
        if line != b"push-cert-end\n":
            if b"\0" in line:  # git's server would drop the rest of the packet
                raise UnclearError("the push certificate has a NUL in it")
            certificate += line
            return
        self._certificate, self._certified = None, True
        if certificate.count(b"\n") > 2 * MOST_REFS:
            raise UnclearError("the push certificate has too many lines", Reason.LIMIT_EXCEEDED)
        header, blank, rest = bytes(certificate).partition(b"\n\n")
        lines = rest.split(b"\n")
        signed = [at for at, text in enumerate(lines) if text.startswith(_SIGNATURE)]
        if not blank or len(signed) != 1 or not all(_HEADER.fullmatch(text) for text in header.split(b"\n")):
            raise UnclearError("the push certificate is not written as one")
        options = [text.partition(b" ")[2] for text in header.split(b"\n") if text.startswith(b"push-option ")]
        self.asks_more = not all(map(_HARMLESS.fullmatch, options))
        for text in lines[: signed[0]]:
            self._command(text)


def ref_name(name: bytes) -> str:
    """Return the name of a ref. Raises UnclearError if git-check-ref-format(1) rejects it."""
    try:
        ref = name.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UnclearError("a ref's name is not UTF-8") from error
    if len(name) > LONGEST_REF or not ref.startswith("refs/") or _NO_REF.search(ref) or not ref.isprintable():
        raise UnclearError("a ref's name is not one that can be pushed to")
    return ref
