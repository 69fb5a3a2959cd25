"""Secret of a rule file: where its value is read, where it may be sent, and where it stands in a request.

Never the value: that is read outside of every sandbox when a task starts, and only the gate has it. Nothing here is
confidential, and all of it is part of the policy's revision.
"""

from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from rules.values.addresses import Address
    from rules.values.names import HostName


# What follows the stem of AWS's three variables: the usual stem is `AWS`
AWS_PARTS: Final = ("_ACCESS_KEY_ID", "_SECRET_ACCESS_KEY", "_SESSION_TOKEN")


class SourceKind(StrEnum):
    """Where a value is read."""

    COMMAND = "command"
    ENV = "env"
    FILE = "file"
    KEYRING = "keyring"
    SYSTEMD = "systemd"


class Source(NamedTuple):
    """Source of a value: a name, a command's argument vector, or the attributes of a keyring item."""

    kind: SourceKind
    words: tuple[str, ...]


class SlotKind(StrEnum):
    """What of a request holds a credential."""

    HEADER = "header"
    BASIC = "basic"  # the password of basic authentication (RFC 7617), or its user where there is no password
    QUERY = "query"
    FORM = "form"  # a field of a body of the type application/x-www-form-urlencoded
    CLIENT_CERTIFICATE = "client_certificate"  # it isn't sent: handshakes are signed with it (RFC 8446 section 4.4.2)
    AWS = "aws"  # it isn't sent: requests are signed with it (AWS Signature Version 4)


class Slot(NamedTuple):
    """Where in a request a secret stands. `name` is that of a header, in lower case, of a parameter or a field."""

    kind: SlotKind
    name: str = ""


class Secret(NamedTuple):
    """A secret. `variable`: what the task finds a placeholder in. `prefix`: how values begin, if that is known.

    One that requests are signed with has up to three values, each with a variable; then `variable` is their stem.
    """

    id: str
    source: Source
    variable: str
    hosts: "tuple[tuple[HostName, int], ...]"  # with the port; always over TLS
    slots: tuple[Slot, ...]
    prefix: str = ""
    not_sent_to: "tuple[tuple[HostName, int], ...]" = ()  # where clients send it, too, and it isn't: no tampering

    @property
    def signs(self) -> bool:
        """Whether requests are signed with it, and it never leaves."""
        return any(slot.kind is SlotKind.AWS for slot in self.slots)

    @property
    def is_certificate(self) -> bool:
        """Whether it is a client certificate: the task has no placeholder of it."""
        return any(slot.kind is SlotKind.CLIENT_CERTIFICATE for slot in self.slots)

    @property
    def fills_forms(self) -> bool:
        """Whether it may stand in a form that is posted."""
        return any(slot.kind is SlotKind.FORM for slot in self.slots)

    @property
    def variables(self) -> tuple[str, ...]:
        """Every variable that the task may find a placeholder in."""
        return () if self.is_certificate else self._each(self.variable)

    @property
    def read_from(self) -> tuple[str, ...]:
        """The variables that its values are read from, where they are."""
        return self._each(self.source.words[0]) if self.source.kind is SourceKind.ENV else ()

    def _each(self, stem: str) -> tuple[str, ...]:
        return tuple(stem + part for part in AWS_PARTS) if self.signs else (stem,)

    def may_be_sent_to(self, target: "HostName | Address", port: int, *, tls: bool) -> bool:
        """Whether it may be sent there."""
        return tls and (target, port) in self.hosts

    def is_withheld(self, target: "HostName | Address", port: int, *, tls: bool) -> bool:
        """Whether clients send its placeholder there in good faith; the request is blocked, and is no tampering."""
        return tls and (target, port) in self.not_sent_to
