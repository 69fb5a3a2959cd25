"""Certificate authority of the lab; issues good certificates and invalid ones."""

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


class Authority:
    """A CA with its own key; all leaf certificates share one key."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self.key, self.certificate = key, certificate
        self._leaf_key = ec.generate_private_key(ec.SECP256R1())

    @classmethod
    def make(cls, name: str = "exeat lab CA") -> "Authority":
        """Create a CA with a new key."""
        key, subject, now = ec.generate_private_key(ec.SECP256R1()), _named(name), datetime.now(UTC)
        usage = {name: name in {"key_cert_sign", "crl_sign"} for name in _USAGES}
        certificate = (
            x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=30))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(x509.KeyUsage(**usage), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(key, certificate)

    def save(self, path: Path) -> None:
        """Write key and certificate to one file."""
        path.touch(0o600)
        path.write_bytes(_pem(self.key) + self.pem())

    @classmethod
    def load(cls, path: Path) -> "Authority":
        """Read the file that `save` wrote."""
        content = path.read_bytes()
        return cls(serialization.load_pem_private_key(content, None), x509.load_pem_x509_certificate(content))

    def pem(self) -> bytes:
        """Return the CA certificate as PEM."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def leaf(self, *names: str, kind: str = "good") -> bytes:
        """Return key and chain for these names or addresses; `kind` as in `Name.certificate`."""
        issuer = Authority.make("nobody's CA") if kind == "self-signed" else self
        names = ("wrong.invalid",) if kind == "wrong-name" else names
        now = datetime.now(UTC)
        ends = now - timedelta(hours=1) if kind == "expired" else now + timedelta(days=7)
        key_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key())
        certificate = (
            x509.CertificateBuilder(
                issuer.certificate.subject, _named(names[0]), self._leaf_key.public_key(), x509.random_serial_number()
            )
            .not_valid_before(now - timedelta(days=2))
            .not_valid_after(ends)
            .add_extension(x509.SubjectAlternativeName([_alternative(name) for name in names]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(key_id, critical=False)
            .sign(issuer.key, hashes.SHA256())
        )
        return _pem(self._leaf_key) + certificate.public_bytes(serialization.Encoding.PEM)


_USAGES = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
    "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
)  # fmt: skip


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
