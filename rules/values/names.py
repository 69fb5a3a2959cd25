"""Host names in one normal form: names are normalised once at the boundary, then compared as values (invariant 7).

A `HostName` is lower-case ASCII labels joined by single dots, no dot at the end, IDNA already applied (UTS-46,
nontransitional). There is no other way to make one. This module must never return something that a resolver would read
as another name or as an address, and never guess: what it can't read is invalid.

`exeat.internal` is the gate's own name: it answers requests of a task. `host.exeat.internal` is this machine's
loopback; the rest of the zone leads nowhere. Only a rule with exactly that name reaches services of the host
(`rules.values.addresses` opens no loopback). A wildcard that allows never matches it: the author of `*` means the
internet. Rules that deny or ask may match it in any way.
"""

from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from rules.values.addresses import Address


_LONGEST_LABEL = 63  # RFC 1035 section 2.3.4, in bytes
_LONGEST_NAME = 253  # 255 in wire form, which has a length byte in front of every label and a root label
_LONGEST_INPUT = 1024  # characters before IDNA, whose tables are slow; some input characters map to nothing
_LABEL = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_")
_DIGITS = frozenset("0123456789")
_HEX_DIGITS = frozenset("0123456789abcdef")


class InvalidNameError(ValueError):
    """The text is not a host name. The message is safe to print: it escapes what a sandbox sent."""


class HostName(str):
    """A host name in normal form. `HostName(text)` parses, like `parse`: an unnormalised one can't exist."""

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        """Parse `text`."""
        return cls.parse(text)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Normalise `text`, with or without the one dot of an absolute name. Raises InvalidName.

        A name whose last label is a number is refused: C libraries and browsers read such text as an address
        (inet_aton(3); WHATWG URL, "ends in a number"), and no top-level domain is one (RFC 3696 section 2).
        """
        labels = labels_of(text)
        if is_number(labels[-1]):
            raise InvalidNameError(f"{_quoted(text)} ends in a number: that is an address or nothing")
        if len(labels) > 1 and "_" in labels[-1]:
            raise InvalidNameError(f"{_quoted(text)} has an underscore in its top-level domain")
        name = ".".join(labels)
        if len(name) > _LONGEST_NAME:
            raise InvalidNameError(f"{_quoted(text)} is longer than {_LONGEST_NAME} bytes")
        return str.__new__(cls, name)

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, the host's own first."""
        return tuple(self.split("."))


def labels_of(text: str) -> list[str]:
    """Normalise `text` into its labels; at least one. Raises InvalidNameError.

    What is checked for a whole name only (its length, its last label) is not checked here: patterns need the rest too.
    """
    if len(text) > _LONGEST_INPUT:
        raise InvalidNameError(f"{_quoted(text)} is longer than {_LONGEST_NAME} bytes")
    lowered = text.lower() if text.isascii() else _map_uts46(text)
    return [_label(label, text) for label in lowered.removesuffix(".").split(".")]


def is_number(label: str) -> bool:
    """Whether a C library would take the normalised `label` for part of an IPv4 address: `1`, `010`, `0x7f`, `0x`."""
    return _DIGITS.issuperset(label) or (label.startswith("0x") and _HEX_DIGITS.issuperset(label[2:]))


def _label(label: str, text: str) -> str:
    if not label.isascii():
        label = _a_label(label, text)
    if not label:
        raise InvalidNameError(f"{_quoted(text)} has an empty label")
    if len(label) > _LONGEST_LABEL:
        raise InvalidNameError(f"{_quoted(text)} has a label of more than {_LONGEST_LABEL} bytes")
    if not _LABEL.issuperset(label):
        wrong = next(character for character in label if character not in _LABEL)
        raise InvalidNameError(f"{_quoted(text)} has {wrong!a} in it, which no host name has")
    if label[0] == "-" or label[-1] == "-":
        raise InvalidNameError(f"{_quoted(text)} has a label that begins or ends with a hyphen")
    if label.startswith("xn--"):
        _check_a_label(label, text)
    return label


def _check_a_label(label: str, text: str) -> None:
    """Refuse an A-label that isn't the one spelling of what it decodes to (RFC 3492), else it would be an alias.

    IDNA's code point rules are not applied here: DNS has names that break them (emoji), and on the wire the label
    is only this ASCII text.
    """
    encoded = label[4:].encode("ascii")
    try:
        decoded = encoded.decode("punycode")
        canonical = not decoded.isascii() and decoded.encode("punycode") == encoded
    except (UnicodeError, OverflowError):
        canonical = False
    if not canonical:
        raise InvalidNameError(f"{_quoted(text)} has a label that looks like an A-label and is none")


def _map_uts46(text: str) -> str:
    """UTS-46 mapping: case, width, look-alike dots, characters that map to nothing. May still hold U-labels."""
    import idna  # 12 ms, and hardly any name needs it

    try:
        return idna.uts46_remap(text, std3_rules=False, transitional=False)
    except (idna.IDNAError, UnicodeError) as error:
        raise InvalidNameError(f"{_quoted(text)} is no name under IDNA") from error


def _a_label(label: str, text: str) -> str:
    import idna

    try:
        return idna.alabel(label).decode("ascii")
    except (idna.IDNAError, UnicodeError) as error:
        raise InvalidNameError(f"{_quoted(text)} is no name under IDNA") from error


def _quoted(text: str) -> str:
    shown = text if len(text) <= _LONGEST_LABEL else text[:_LONGEST_LABEL] + "…"
    return f"`{ascii(shown)[1:-1] if not shown.isprintable() else shown}`"


ZONE: Final = "exeat.internal"
HOST: Final = HostName.parse(f"host.{ZONE}")
INFO_API: Final = HostName.parse(ZONE)  # where a task asks about itself; no rule is about it, and it leads nowhere else
_LOCAL: Final = "localhost"  # and all names below it, regardless of resolvers (RFC 6761 section 6.3)
LOOPBACK: "Final[tuple[Address, ...]]" = (IPv4Address("127.0.0.1"), IPv6Address("::1"))  # in the order of dialling


def is_exeat_name(name: str) -> bool:
    """Whether a normal name is in the zone `exeat.internal`, which is never looked up anywhere."""
    return name.endswith(ZONE) and (len(name) == len(ZONE) or name[-len(ZONE) - 1] == ".")


def is_localhost(name: str) -> bool:
    """Whether a normal name is `localhost` or below it: the caller's own loopback."""
    return name == _LOCAL or name.endswith(f".{_LOCAL}")
