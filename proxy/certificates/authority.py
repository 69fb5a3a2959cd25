"""Certificate authority of the installation, and the leaf certificates that it signs for inspected connections.

Leaves have a key pair of their own (`leaves`): what the TLS library handles a thousand times a second is not what
signs, and is in another process. Where the CA is kept is `authority_file`'s business.
"""

import re
import warnings
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
    pkcs12,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from proxy.certificates.authority_file import FILE, AuthorityError, locked, read, unusable, write

if TYPE_CHECKING:
    from pathlib import Path

LIFE = timedelta(days=730)
RENEWED_BEFORE = timedelta(days=30)  # of a CA's end: a task that starts now must not outlive its trust
LEAF_LIFE = timedelta(days=3)  # nobody revokes them; they just end
BACKDATED = timedelta(days=1)  # a task may run under a clock of its own (faketime, a restored VM)
_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
LONGEST_COMMON_NAME = 64  # ub-common-name, RFC 5280 appendix A.1


class Authority:
    """Signs leaf certificates. Only the certificate signer uses it (`signer`)."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self._certificate = certificate
        self._key = key

    @classmethod
    def from_pem(cls, data: bytes) -> "Authority":
        """Return the authority that `to_pem` wrote; raises AuthorityError."""
        try:
            key = load_pem_private_key(data, password=None)
            certificate = x509.load_pem_x509_certificate(data)
        except (ValueError, TypeError) as error:
            raise AuthorityError(f"not a certificate with its key: {error}") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise AuthorityError("the certificate and the key don't belong together")
        return cls(certificate, key)

    def to_pem(self) -> bytes:
        """Return the key and the certificate: a secret."""
        return _private_pem(self._key) + self.certificate_pem

    @property
    def certificate_pem(self) -> bytes:
        """The certificate that a sandbox is to trust."""
        return self._certificate.public_bytes(Encoding.PEM)

    @property
    def certificate_der(self) -> bytes:
        """The same, for clients that want it so."""
        return self._certificate.public_bytes(Encoding.DER)

    @property
    def name(self) -> str:
        """Its subject, as it stands in lists of trusted certificates (RFC 4514)."""
        return self._certificate.subject.rfc4514_string()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate, in hexadecimal, as other tools show it: upper case, with colons."""
        return self._certificate.fingerprint(SHA256()).hex(":").upper()

    @property
    def made(self) -> datetime:
        """When it was made (UTC)."""
        return self._certificate.not_valid_before_utc + BACKDATED

    @property
    def expires(self) -> datetime:
        """When the CA's certificate ends (UTC)."""
        return self._certificate.not_valid_after_utc

    @property
    def is_due(self) -> bool:
        """Whether the next start makes a new one."""
        return self.expires - datetime.now(UTC) <= RENEWED_BEFORE

    def bundle(self, system_bundle: bytes) -> bytes:
        """Return the host's roots and this CA as one PEM bundle: what a sandbox sees as its trust store."""
        roots = system_bundle.rstrip(b"\n")
        return (roots + b"\n" if roots else b"") + self.certificate_pem

    def sign(self, host: str, public: ec.EllipticCurvePublicKey) -> x509.Certificate:
        """Return a certificate for `host`, a normalised name or an address in its usual spelling, and nothing else."""
        now = datetime.now(UTC)
        alternative: x509.GeneralName
        try:
            alternative = x509.IPAddress(IPv6Address(host) if ":" in host else IPv4Address(host))
        except ValueError:
            alternative = x509.DNSName(host)
        named = len(host) <= LONGEST_COMMON_NAME
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)] if named else [])
        return (
            _certificate(subject, self._certificate.subject, public, now, LEAF_LIFE)
            # RFC 5280 section 4.2.1.6: critical when the subject is empty
            .add_extension(x509.SubjectAlternativeName([alternative]), critical=not named)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, SHA256())
        )


def create() -> Authority:
    """Return a new authority. The name tells two machines' CAs apart in a trust store."""
    key = ec.generate_private_key(ec.SECP256R1())
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Exeat"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"Exeat gate {identifier.digest.hex()[:12]}"),
        ]
    )
    certificate = (
        _certificate(name, name, key.public_key(), datetime.now(UTC), LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(key_cert_sign=True), critical=True)
        .add_extension(identifier, critical=False)
        .sign(key, SHA256())
    )
    return Authority(certificate, key)


def load_or_create(directory: "Path") -> Authority:
    """Return the CA kept in `directory`, made there on the first call and again shortly before it ends.

    Safe against other processes doing the same: the directory is locked, and the file appears whole or not at all.
    Raises AuthorityError when what is there could have been read or replaced by somebody else.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(directory) as folder:
            data = read(folder, directory / FILE)
            if data is not None:
                authority = _checked(data, directory / FILE)
                if not authority.is_due:
                    return authority
            authority = create()
            write(folder, authority.to_pem())
            return authority
    except OSError as error:
        raise unusable(directory, error) from error


def existing(directory: "Path") -> Authority | None:
    """Return the CA kept in `directory`; None: there is none yet. Makes nothing. Raises AuthorityError."""
    try:
        with locked(directory) as folder:
            data = read(folder, directory / FILE)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unusable(directory, error) from error
    return None if data is None else _checked(data, directory / FILE)


def rotate(directory: "Path") -> Authority:
    """Put a new CA in the place of whatever was kept in `directory`, in one step; raises AuthorityError.

    Who runs with the old one has it in memory and goes on with it; the old file need not even be readable. Its key is
    gone with it.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(directory) as folder:
            authority = create()
            write(folder, authority.to_pem())
            return authority
    except OSError as error:
        raise unusable(directory, error, "replaced") from error


def _checked(data: bytes, path: "Path") -> Authority:
    try:
        return Authority.from_pem(data)
    except AuthorityError as error:
        raise AuthorityError(f"`{path}` is damaged ({error}); move it away and start again") from error


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, life: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + life)
    )


def java_truststore(bundle: bytes) -> bytes:
    """Return the certificates of a PEM bundle that can be read as a trust store (PKCS #12); empty: there are none.

    Java reads no PEM bundle. It trusts what carries keytool's attribute; nothing in it is secret, or encrypted.
    """
    found: dict[bytes, x509.Certificate] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # roots that are older than the rules for them
        for block in _CERTIFICATE.findall(bundle):
            try:
                certificate = x509.load_pem_x509_certificate(block)
            except ValueError:
                continue
            found[certificate.fingerprint(SHA256())] = certificate
    entries = [pkcs12.PKCS12Certificate(each, name.hex().encode()) for name, each in found.items()]
    return pkcs12.serialize_java_truststore(entries, NoEncryption()) if entries else b""


def _key_usage(*, digital_signature: bool = False, key_cert_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=key_cert_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
