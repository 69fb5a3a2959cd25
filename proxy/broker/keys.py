"""AWS's keys: an id, the key that requests are signed with, and for keys of a day a session token.

The task has a placeholder of each. Where an id is named with what its secret placeholder signs, the gate signs anew;
the token is put in the place of its own; the secret key is never sent, so its placeholder belongs nowhere.
"""

import re
import secrets
import string
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from proxy import strict_json
from proxy.broker.values import Held
from rules.secrets import AWS_PARTS

if TYPE_CHECKING:
    from rules.secrets import Secret

_ID: Final = re.compile(rb"[A-Za-z0-9_]{8,128}")  # IAM API reference, AccessKey; what stands in a Credential= plainly
_IN_JSON: Final = ("AccessKeyId", "SecretAccessKey", "SessionToken")  # AWS SDKs reference guide, "Process credentials"
_ID_ALPHABET: Final = string.ascii_uppercase + "234567"
_KINDS: Final = (b"AKIA", b"ASIA")  # keys that stay, and keys of a day (IAM user guide, "IAM identifiers")
_ID_RANDOM: Final = 16  # characters, of 32: more than anybody guesses


class Keys(NamedTuple):
    """What requests of one secret are signed with."""

    ident: Held
    key: Held
    token: Held | None

    @property
    def each(self) -> tuple[Held, ...]:
        """Every value."""
        return tuple(held for held in self if held is not None)


def keys(secret: "Secret", values: "tuple[bytes, ...]") -> Keys:
    """Make placeholders for an id, a key and maybe a token. Raises ValueError with what is wrong, and nothing of it."""
    if not 2 <= len(values) <= len(AWS_PARTS):
        raise ValueError(
            "it has to be `ID:KEY`, `ID:KEY:TOKEN`, or JSON as the AWS CLI's `export-credentials` writes it"
        )
    if not _ID.fullmatch(values[0]):
        raise ValueError("its access key id has to be 8 to 128 letters, digits and `_`")
    kind = values[0][:4].decode() if values[0].startswith(_KINDS) else ""
    ident = kind + "".join(secrets.choice(_ID_ALPHABET) for _ in range(_ID_RANDOM))
    held = [
        Held(secret, value, placeholder, secret.variable + part)
        for value, placeholder, part in zip(values, (ident, None, None), AWS_PARTS, strict=False)
    ]
    return Keys(held[0], held[1], held[2] if len(held) > 2 else None)


def split(text: bytes) -> tuple[bytes, ...]:
    """Take an id, a key and maybe a token out of one text; what it isn't made of is told by `keys`."""
    if not text.lstrip().startswith(b"{"):
        return tuple(text.strip().split(b":"))
    try:
        said: Any = strict_json.loads(text)
    except (ValueError, RecursionError):
        return ()
    values = [said.get(name) or "" for name in _IN_JSON] if isinstance(said, dict) else []
    if not all(isinstance(value, str) for value in values):
        return ()
    return tuple(value.encode("utf-8", "surrogatepass") for value in (values if values[-1:] != [""] else values[:-1]))
