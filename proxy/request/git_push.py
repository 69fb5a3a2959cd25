"""Parses the ref list of a git push, which comes before its pack (gitprotocol-pack(5)).

Pure: bytes in, refs out; memory and unpacked size are bounded. It rejects lists that git's server accepts against the
protocol: a list without a flush, a second list after an empty one, commands outside a certificate. This module must
never guess: no decision would cover a ref that it didn't read. It reports push options, since they make servers do more
than update the refs: submit for review (Gerrit), merge into another branch (GitLab), publish a repository (Gitea).
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
MOST_REFS: Final = 1000  # of one push: each is evaluated against every rule, and the event loop waits meanwhile
LONGEST_REF: Final = 1024  # bytes; git's own limit is the file system's
LONGEST_LINE: Final = 65520  # with its length (gitprotocol-common(5))

_LENGTH = re.compile(rb"[0-9a-fA-F]{4}")
_ID = rb"(?:[0-9a-fA-F]{40}|[0-9a-fA-F]{64})"
_COMMAND = re.compile(rb"(%b) (%b) ([^\n\0]+)" % (_ID, _ID))
_SHALLOW = re.compile(rb"shallow %b" % _ID)
_HEADER = re.compile(rb"(certificate version [0-9.]+|(?:pusher|pushee|nonce|push-option) [^\0\n]*)")
_OPTIONS: Final = "push-options"  # capability: a list of push options follows the list of refs
# GitLab's options that open a merge request, or that a commit message can express as well (docs.gitlab.com, "Push
# options"). Others merge it, delete branches, or are texts in which a line such as `/merge` is a command
# (`description`).
_HARMLESS_OPTION: Final = re.compile(
    rb"ci\.skip|merge_request\.(?:create|draft|(?:target|title|milestone|label|assign)=[^\n]*)"
)
# git check-ref-format(1)
_INVALID_REF = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|/\.|\.lock(?:/|$)|[/.]$")
_SIGNATURE: Final = b"-----BEGIN "
_GZIP: Final = 31  # zlib's `wbits` for gzip only
_MOST_UNPACKED_AT_ONCE: Final = 64 * 1024  # bytes unpacked at a time
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
        """Create a parser. `gzip`: the body is compressed, as git does with small ones."""
        self.commands: list[Command] = []
        self.objects: list[tuple[str, str]] = []  # old and new object id of each command
        self.capabilities: frozenset[str] = frozenset()  # of the client
        self.ahead: DecidedRefs | None = None  # decisions that were already made on refs
        self.asks_more = False  # a push option (`git push -o`) requests more than the ref updates
        self.complete = False  # all refs and options are parsed; the pack follows
        self._packed = zlib.decompressobj(_GZIP) if gzip else None
        self._data = bytearray()
        self._parsed = 0  # bytes of `_data`
        self._received = 0
        self._is_empty_list = False  # an empty list has ended: nothing may follow
        self._certificate: bytearray | None = None  # the push certificate that is being read
        self._has_certificate = False
        self._is_reading_options = False  # the refs are read

    def feeding(self, data: bytes) -> "Sliced[bool]":
        """Parse the next piece of the body; returns whether all refs are known. Raises UnclearError."""
        self._received += len(data)
        if self._packed is None:
            self._data += data
            yield from self._parse_lines()
        else:
            yield from self._unpack(self._packed, data)
        if not self.complete and (self._received > MOST_BYTES or len(self._data) - self._parsed > LONGEST_LINE):
            raise UnclearError("the list of refs is longer than 1 MB", Reason.LIMIT_EXCEEDED)
        return self.complete

    def end(self) -> None:
        """Handle the end of the body. Raises UnclearError if it is cut off. An empty list is a client's probe."""
        if not self.complete and not self._is_empty_list:
            raise UnclearError(
                "the push ends within its list of refs"
            )  # git's server would execute the commands so far
        if self._packed is not None and not self.complete and not self._packed.eof:
            raise UnclearError("the push ends within its packing")
        self.complete = True

    def _unpack(self, packed: "zlib._Decompress", data: bytes) -> "Sliced[None]":
        has_more_output = False
        while (data or has_more_output) and not self.complete:
            if packed.eof and data:  # servers differ on whether a second gzip member counts
                raise UnclearError("something follows the packed list of refs")
            try:
                piece = packed.decompress(data, _MOST_UNPACKED_AT_ONCE)
            except zlib.error as error:
                raise UnclearError("the body is not packed as its Content-Encoding says") from error
            self._data += piece
            data = packed.unused_data if packed.eof else packed.unconsumed_tail
            has_more_output = len(piece) == _MOST_UNPACKED_AT_ONCE  # zlib may hold more output
            yield from self._parse_lines()

    def _parse_lines(self) -> "Sliced[None]":
        """Parse the complete lines."""
        lines = 0
        while not self.complete and self._read_line():
            lines += 1
            if not lines % _LINES_AT_ONCE:
                yield
        if self._is_empty_list and len(self._data) > self._parsed:
            raise UnclearError("something follows an empty list of refs")
        if self.complete:
            self._data.clear()

    def _read_line(self) -> bool:
        """Parse the next pkt-line: a length of four hexadecimal digits, then the content. False: incomplete."""
        data = self._data
        if len(data) - self._parsed < 4:
            return False
        if self._is_empty_list:
            raise UnclearError("something follows an empty list of refs")
        length = data[self._parsed : self._parsed + 4]
        if not _LENGTH.fullmatch(length):
            raise UnclearError("a line of the push doesn't begin with its length")
        size = int(length, 16)
        if size == 0:
            self._parsed += 4
            self._end_section()
        elif not 4 < size <= LONGEST_LINE:  # git's server treats 1 to 3, other delimiters, as a flush
            raise UnclearError("a line of the push has an impossible length")
        elif len(data) - self._parsed < size:
            return False
        else:
            self._parse_line(bytes(data[self._parsed + 4 : self._parsed + size]))
            self._parsed += size
        if self._parsed > MOST_BYTES:
            raise UnclearError("the list of refs is longer than 1 MB", Reason.LIMIT_EXCEEDED)
        return True

    def _end_section(self) -> None:
        if self._certificate is not None:
            raise UnclearError("the push certificate doesn't end")
        if self.commands and not self._is_reading_options and self._announces_options():
            self._is_reading_options = True
            return
        self.complete = bool(self.commands)
        self._is_empty_list = not self.complete

    def _announces_options(self) -> bool:
        return any(capability.partition("=")[0] == _OPTIONS for capability in self.capabilities)

    def _parse_line(self, line: bytes) -> None:
        if self._is_reading_options:
            if _HARMLESS_OPTION.fullmatch(line.removesuffix(b"\n")) is None:
                self.asks_more = self.complete = True
            return
        if self._certificate is not None:
            self._parse_certificate_line(line, self._certificate)
            return
        text, nul, capabilities = line.removesuffix(b"\n").partition(b"\0")
        if nul:
            if self.capabilities or self.commands or self._has_certificate:
                raise UnclearError("capabilities stand behind another ref than the first")
            self._parse_capabilities(capabilities)
        if text == b"push-cert":
            if self.commands or self._has_certificate:
                raise UnclearError("the push has refs inside and outside of a certificate")
            self._certificate = bytearray()
        elif not nul and _SHALLOW.fullmatch(text):
            pass  # the boundary of a shallow clone
        elif self._has_certificate:
            raise UnclearError("the push has refs inside and outside of a certificate")
        else:
            self._add_command(text)

    def _parse_capabilities(self, text: bytes) -> None:
        try:
            self.capabilities = frozenset(text.decode("ascii").split()) or frozenset({""})
        except UnicodeDecodeError as error:
            raise UnclearError("a capability is not ASCII") from error

    def _add_command(self, text: bytes) -> None:
        match = _COMMAND.fullmatch(text)
        if match is None or len(match[1]) != len(match[2]):
            raise UnclearError("a line of the push is not `old new ref`")
        old, new = int(match[1], 16), int(match[2], 16)
        change = RefChange.DELETE if not new else RefChange.CREATE if not old else RefChange.UPDATE
        if len(self.commands) >= MOST_REFS:
            raise UnclearError(f"the push has more than {MOST_REFS} refs", Reason.LIMIT_EXCEEDED)
        self.commands.append(Command(ref_name(match[3]), change))
        self.objects.append((match[1].decode().lower(), match[2].decode().lower()))

    def _parse_certificate_line(self, line: bytes, certificate: bytearray) -> None:
        """Parse a line of a push certificate; its lines may span packets (receive-pack.c, read_head_info)."""
        if line != b"push-cert-end\n":
            if b"\0" in line:  # git's server would drop the rest of the packet
                raise UnclearError("the push certificate has a NUL in it")
            certificate += line
            return
        self._certificate, self._has_certificate = None, True
        if certificate.count(b"\n") > 2 * MOST_REFS:
            raise UnclearError("the push certificate has too many lines", Reason.LIMIT_EXCEEDED)
        header, blank, rest = bytes(certificate).partition(b"\n\n")
        lines = rest.split(b"\n")
        signature_lines = [at for at, text in enumerate(lines) if text.startswith(_SIGNATURE)]
        if not blank or len(signature_lines) != 1 or not all(_HEADER.fullmatch(text) for text in header.split(b"\n")):
            raise UnclearError("the push certificate is not written as one")
        options = [text.partition(b" ")[2] for text in header.split(b"\n") if text.startswith(b"push-option ")]
        self.asks_more = not all(map(_HARMLESS_OPTION.fullmatch, options))
        for text in lines[: signature_lines[0]]:
            self._add_command(text)


def ref_name(name: bytes) -> str:
    """Return the name of a ref. Raises UnclearError if git-check-ref-format(1) rejects it."""
    try:
        ref = name.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UnclearError("a ref's name is not UTF-8") from error
    if len(name) > LONGEST_REF or not ref.startswith("refs/") or _INVALID_REF.search(ref) or not ref.isprintable():
        raise UnclearError("a ref's name is not one that can be pushed to")
    return ref
