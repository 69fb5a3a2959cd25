"""Certificate authority of the installation, and the leaf certificates that it signs for inspected connections.

Leaf certificates have their own key pair (`leaf_certificates.py`), so the worker, which uses it for every handshake,
doesn't have the CA's key. `authority_file.py` stores the CA.
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
RENEWED_BEFORE = timedelta(days=30)  # before the CA expires: it must stay valid for the whole life of a task
LEAF_LIFE = timedelta(days=3)  # short, since leaf certificates can't be revoked
BACKDATED = timedelta(days=1)  # a task's clock may differ (faketime, a restored VM)
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
        """The CA certificate that a sandbox trusts (PEM)."""
        return self._certificate.public_bytes(Encoding.PEM)

    @property
    def certificate_der(self) -> bytes:
        """The CA certificate as DER, for clients that need it."""
        return self._certificate.public_bytes(Encoding.DER)

    @property
    def name(self) -> str:
        """Its subject, as lists of trusted certificates show it (RFC 4514)."""
        return self._certificate.subject.rfc4514_string()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate, in hexadecimal, as other tools show it: upper case, with colons."""
        return self._certificate.fingerprint(SHA256()).hex(":").upper()

    @property
    def made(self) -> datetime:
        """When the CA was created (UTC)."""
        return self._certificate.not_valid_before_utc + BACKDATED

    @property
    def expires(self) -> datetime:
        """When the CA's certificate expires (UTC)."""
        return self._certificate.not_valid_after_utc

    @property
    def is_due(self) -> bool:
        """Whether the CA expires soon, so that the next start creates a new one."""
        return self.expires - datetime.now(UTC) <= RENEWED_BEFORE

    def bundle(self, system_bundle: bytes) -> bytes:
        """Return the host's roots and this CA as one PEM bundle: the trust store of a sandbox."""
        roots = system_bundle.rstrip(b"\n")
        return (roots + b"\n" if roots else b"") + self.certificate_pem

    def sign(self, host: str, public: ec.EllipticCurvePublicKey) -> x509.Certificate:
        """Return a leaf certificate for one host: a normalised name or an address."""
        now = datetime.now(UTC)
        alternative: x509.GeneralName
        try:
            alternative = x509.IPAddress(IPv6Address(host) if ":" in host else IPv4Address(host))
        except ValueError:
            alternative = x509.DNSName(host)
        fits_common_name = len(host) <= LONGEST_COMMON_NAME
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)] if fits_common_name else [])
        return (
            _certificate(subject, self._certificate.subject, public, now, LEAF_LIFE)
            # RFC 5280 section 4.2.1.6: critical when the subject is empty
            .add_extension(x509.SubjectAlternativeName([alternative]), critical=not fits_common_name)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, SHA256())
        )


def create() -> Authority:
    """Return a new authority. Its name differs between machines, to tell CAs apart in a trust store."""
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
    """Return the CA of `directory`; creates it on the first call, and again shortly before it expires.

    Safe with concurrent processes: the directory is locked, and the file is replaced atomically. Raises AuthorityError
    if another user could have read or replaced the file.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(directory) as folder:
            data = read(folder, directory / FILE)
            if data is not None:
                authority = _parse_file(data, directory / FILE)
                if not authority.is_due:
                    return authority
            authority = create()
            write(folder, authority.to_pem())
            return authority
    except OSError as error:
        raise unusable(directory, error) from error


def existing(directory: "Path") -> Authority | None:
    """Return the CA of `directory`; None: there is none yet. Creates nothing. Raises AuthorityError."""
    try:
        with locked(directory) as folder:
            data = read(folder, directory / FILE)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unusable(directory, error) from error
    return None if data is None else _parse_file(data, directory / FILE)


def rotate(directory: "Path") -> Authority:
    """Replace the CA of `directory` by a new one, atomically; raises AuthorityError.

    The old file needn't be readable, and its key is deleted. Running processes keep the old CA in memory.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(directory) as folder:
            authority = create()
            write(folder, authority.to_pem())
            return authority
    except OSError as error:
        raise unusable(directory, error, "replaced") from error


def _parse_file(data: bytes, path: "Path") -> Authority:
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
    """Return the readable certificates of a PEM bundle as a Java trust store (PKCS #12); empty: there are none.

    Java can't read PEM bundles. It trusts entries with keytool's attribute. The store has no secret and no encryption.
    """
    found: dict[bytes, x509.Certificate] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old roots violate newer rules
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
