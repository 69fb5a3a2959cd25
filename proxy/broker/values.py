"""A secret's value beside its placeholder, and how placeholders are made.

A placeholder looks like the real thing, because clients check what they are given (`sk-...`, `ghp_...`); it tells
nothing of the value but how that begins, where anybody may know that, and then how long it is.
"""

import re
import secrets
import string
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rules.secrets import Secret

SHORTEST, LONGEST = 8, 4096  # bytes of a value: a shorter one would be found everywhere
_RANDOM: Final = 32  # characters, of 62: more than anybody guesses
_LONG: Final = 256
_ALPHABET: Final = string.ascii_letters + string.digits  # what no encoding of URLs, headers and JSON changes
_FINE: Final = re.compile(rb"[!-~]+")
# How keys begin that services give out, as their documentation has it; no secret, so that scanners can find them.
_PREFIXES: Final = (
    "sk-ant-api03-", "sk-ant-oat01-", "sk-proj-", "sk-svcacct-", "sk-or-v1-", "sk_live_", "sk_test_", "rk_live_",
    "rk_test_", "sk-", "github_pat_", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "glpat-", "gldt-", "xoxb-", "xoxp-",
    "xapp-", "hf_", "npm_", "pypi-", "AIza", "dop_v1_", "shpat_", "SG.", "key-", "lin_api_", "gsk_", "pplx-", "r8_",
)  # fmt: skip


class Held:
    """A value and its placeholder."""

    __slots__ = ("placeholder", "secret", "value", "variable")

    def __init__(
        self, secret: "Secret", value: bytes, placeholder: str | None = None, variable: str | None = None
    ) -> None:
        """Take a value that is fine. Raises ValueError with what is wrong with it, and nothing of it."""
        if not _FINE.fullmatch(value):
            raise ValueError("it has to be one line of visible ASCII characters, without spaces")
        if not SHORTEST <= len(value) <= LONGEST:
            raise ValueError(f"it has to be {SHORTEST} to {LONGEST} characters long")
        if secret.prefix and not value.startswith(secret.prefix.encode()):
            raise ValueError("it doesn't begin with its `prefix`")
        self.secret = secret
        self.value = value
        self.variable = variable or secret.variable
        self.placeholder = (placeholder or make_placeholder(value.decode(), secret.prefix)).encode()

    def __repr__(self) -> str:
        """Show nothing."""
        return f"Held({self.secret.id}, ...)"

    @property
    def public(self) -> int:
        """How many characters of its beginning are no secret: those that its placeholder has too."""
        pairs = zip(self.value, self.placeholder, strict=False)
        return next((at for at, (mine, other) in enumerate(pairs) if mine != other), 0)

    def __reduce__(self) -> str:
        """Refuse to be pickled: no secret gets anywhere by accident."""
        raise TypeError("a secret is not to be pickled")


def make_placeholder(value: str, prefix: str = "") -> str:
    """Make what a task is given for a value: random, and of the same shape where that is known."""
    known = prefix or next((each for each in _PREFIXES if value.startswith(each)), "")
    size = min(max(len(value) - len(known), _RANDOM), _LONG) if known else _RANDOM + 8
    return known + "".join(secrets.choice(_ALPHABET) for _ in range(size))
