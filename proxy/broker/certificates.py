"""Client certificates: what the gate proves to a server that it is the task's, in a handshake of its own.

The task has nothing of it, and no placeholder: whoever may send requests to the secret's hosts sends them under it, and
rules say which requests those are. The private key is in the worker's memory and signs handshakes; nothing sends it.
"""

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from cryptography.x509 import Certificate
    from OpenSSL.SSL import Context

    from rules.secrets import Secret

LONGEST: Final = 64 * 1024  # bytes of PEM: a chain and a key
_MOST_CONTEXTS: Final = 16


class Identity:
    """A client certificate with its chain and its private key; keeps the OpenSSL contexts that have it."""

    __slots__ = ("_contexts", "chain", "key", "secret")

    def __init__(self, secret: "Secret", pem: bytes) -> None:
        """Read PEM. Raises ValueError with what is wrong with it, and nothing of it."""
        from cryptography import x509  # few tasks have one
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        if len(pem) > LONGEST:
            raise ValueError(f"it has to be at most {LONGEST // 1024} KB of PEM")
        try:
            self.chain: list[Certificate] = x509.load_pem_x509_certificates(pem)
        except ValueError:
            raise ValueError("it has to be PEM, and has no certificate that can be read") from None
        try:
            key = load_pem_private_key(pem, None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise ValueError("it has no private key (PEM) that can be read without a passphrase") from None
        if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey):
            raise ValueError(  # noqa: TRY004 - it is what is in the file that is wrong
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
        """Refuse to be pickled: no secret gets anywhere by accident."""
        raise TypeError("a secret is not to be pickled")

    def context(self, authorities: tuple[bytes, ...], make: "Callable[[], Context]") -> "Context":
        """Return the context that shows it and trusts `authorities`; `make` makes one without it. It is one task's."""
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
