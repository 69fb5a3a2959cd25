"""Values of a task's secrets beside their placeholders: single values, AWS keys and client certificates.

A placeholder has the form of the real value, because clients check it (`sk-...`, `ghp_...`). It reveals only the
value's public prefix, and with a prefix its length. Of AWS keys, the task has a placeholder for each part. Of a client
certificate, it has nothing: the gate uses it in its own handshake, for every request that the rules allow to the
secret's hosts.
"""

import re
import secrets
import string
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from proxy.wire import strict_json
from rules.secrets import AWS_PARTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from cryptography.x509 import Certificate
    from OpenSSL.SSL import Context

    from rules.secrets import Secret

SHORTEST, LONGEST = 8, 4096  # bytes of a value: a shorter one would be found everywhere
_RANDOM_CHARACTERS: Final = 32  # characters out of 62: can't be guessed
_LONGEST_PLACEHOLDER: Final = 256
_ALPHABET: Final = string.ascii_letters + string.digits  # what no encoding of URLs, headers and JSON changes
_VALID_VALUE: Final = re.compile(rb"[!-~]+")
# Public prefixes of services' keys, as documented.
_PREFIXES: Final = (
    "sk-ant-api03-", "sk-ant-oat01-", "sk-proj-", "sk-svcacct-", "sk-or-v1-", "sk_live_", "sk_test_", "rk_live_",
    "rk_test_", "sk-", "github_pat_", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "glpat-", "gldt-", "xoxb-", "xoxp-",
    "xapp-", "hf_", "npm_", "pypi-", "AIza", "dop_v1_", "shpat_", "SG.", "key-", "lin_api_", "gsk_", "pplx-", "r8_",
)  # fmt: skip


class SecretValue:
    """Secret value and its placeholder."""

    __slots__ = ("placeholder", "secret", "value", "variable")

    def __init__(
        self, secret: "Secret", value: bytes, placeholder: str | None = None, variable: str | None = None
    ) -> None:
        """Check the value. Raises ValueError, whose text has no part of the value."""
        if not _VALID_VALUE.fullmatch(value):
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
        return f"SecretValue({self.secret.id}, ...)"

    @property
    def public(self) -> int:
        """Number of leading characters that aren't secret: those that the placeholder shares."""
        pairs = zip(self.value, self.placeholder, strict=False)
        return next((at for at, (mine, other) in enumerate(pairs) if mine != other), 0)

    def __reduce__(self) -> str:
        """Prevent pickling, so that no secret leaves the process by accident."""
        raise TypeError("a secret is not to be pickled")


def make_placeholder(value: str, prefix: str = "") -> str:
    """Make a random placeholder for a value, in the same form if its prefix is known."""
    known = prefix or next((each for each in _PREFIXES if value.startswith(each)), "")
    size = (
        min(max(len(value) - len(known), _RANDOM_CHARACTERS), _LONGEST_PLACEHOLDER) if known else _RANDOM_CHARACTERS + 8
    )
    return known + "".join(secrets.choice(_ALPHABET) for _ in range(size))


_AWS_KEY_ID: Final = re.compile(
    rb"[A-Za-z0-9_]{8,128}"
)  # IAM API reference, AccessKey; needs no encoding in Credential=
_IN_JSON: Final = ("AccessKeyId", "SecretAccessKey", "SessionToken")  # AWS SDKs reference guide, "Process credentials"
_ID_ALPHABET: Final = string.ascii_uppercase + "234567"
_AWS_KEY_PREFIXES: Final = (b"AKIA", b"ASIA")  # long-term and temporary keys (IAM user guide, "IAM identifiers")
_AWS_RANDOM_CHARACTERS: Final = 16  # characters out of 32: can't be guessed


class AwsKeys(NamedTuple):
    """AWS keys of one secret, and their placeholders."""

    ident: SecretValue
    key: SecretValue
    token: SecretValue | None

    @property
    def each(self) -> tuple[SecretValue, ...]:
        """Every value."""
        return tuple(held for held in self if held is not None)


def make_aws_keys(secret: "Secret", values: "tuple[bytes, ...]") -> AwsKeys:
    """Make placeholders for an id, a key and perhaps a token. Raises ValueError, whose text has no part of them."""
    if not 2 <= len(values) <= len(AWS_PARTS):
        raise ValueError(
            "it has to be `ID:KEY`, `ID:KEY:TOKEN`, or JSON as the AWS CLI's `export-credentials` writes it"
        )
    if not _AWS_KEY_ID.fullmatch(values[0]):
        raise ValueError("its access key id has to be 8 to 128 letters, digits and `_`")
    kind = values[0][:4].decode() if values[0].startswith(_AWS_KEY_PREFIXES) else ""
    ident = kind + "".join(secrets.choice(_ID_ALPHABET) for _ in range(_AWS_RANDOM_CHARACTERS))
    held = [
        SecretValue(secret, value, placeholder, secret.variable + part)
        for value, placeholder, part in zip(values, (ident, None, None), AWS_PARTS, strict=False)
    ]
    return AwsKeys(held[0], held[1], held[2] if len(held) > 2 else None)


def split_aws_keys(text: bytes) -> tuple[bytes, ...]:
    """Split a text into id, key and perhaps token. Malformed text gives parts that `make_aws_keys` rejects."""
    if not text.lstrip().startswith(b"{"):
        return tuple(text.strip().split(b":"))
    try:
        document: Any = strict_json.loads(text)
    except (ValueError, RecursionError):
        return ()
    values = [document.get(name) or "" for name in _IN_JSON] if isinstance(document, dict) else []
    if not all(isinstance(value, str) for value in values):
        return ()
    return tuple(value.encode("utf-8", "surrogatepass") for value in (values if values[-1:] != [""] else values[:-1]))


_LONGEST_PEM: Final = 64 * 1024  # bytes of PEM: a chain and a key
_MOST_CONTEXTS: Final = 16


class Identity:
    """Client certificate with its chain and its private key; caches the OpenSSL contexts that use it."""

    __slots__ = ("_contexts", "chain", "key", "secret")

    def __init__(self, secret: "Secret", pem: bytes) -> None:
        """Parse PEM. Raises ValueError, whose text has no part of it."""
        from cryptography import x509  # few tasks have one
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        if len(pem) > _LONGEST_PEM:
            raise ValueError(f"it has to be at most {_LONGEST_PEM // 1024} KB of PEM")
        try:
            self.chain: list[Certificate] = x509.load_pem_x509_certificates(pem)
        except ValueError:
            raise ValueError("it has to be PEM, and has no certificate that can be read") from None
        try:
            key = load_pem_private_key(pem, None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise ValueError("it has no private key (PEM) that can be read without a passphrase") from None
        if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey):
            raise ValueError(  # noqa: TRY004 - the file's content is invalid
                "its private key is of none of the kinds RSA, elliptic curve and Ed25519"
            )
        if self.chain[0].public_key() != key.public_key():
            raise ValueError("its private key isn't that of its first certificate")
        self.secret = secret
        self.key = key
        self._contexts: dict[tuple[bytes, ...], Context] = {}

    def __repr__(self) -> str:
        """Show nothing."""
        return f"Identity({self.secret.id}, ...)"

    def __reduce__(self) -> str:
        """Prevent pickling, so that no secret leaves the process by accident."""
        raise TypeError("a secret is not to be pickled")

    def context(self, authorities: tuple[bytes, ...], make: "Callable[[], Context]") -> "Context":
        """Return a context with this certificate that trusts `authorities`; `make` creates one without it."""
        context = self._contexts.get(authorities)
        if context is None:
            context = make()
            context.use_certificate(self.chain[0])
            for certificate in self.chain[1:]:
                context.add_extra_chain_cert(certificate)
            context.use_privatekey(self.key)
            if len(self._contexts) >= _MOST_CONTEXTS:
                self._contexts.clear()
            self._contexts[authorities] = context
        return context
