"""Java trust store: the same roots as in the bundle, in a PKCS #12 file without a password.

Java has no variable for a PEM bundle, and looks at nothing but such a file. Every certificate carries the attribute by
which Java knows that it is trusted (keytool's `trustedCertEntry`); nothing in it is a secret, so nothing is encrypted.
"""

import re
import warnings
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import NoEncryption, pkcs12

_CERTIFICATE: Final = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


def java(bundle: bytes) -> bytes:
    """Return a trust store of the certificates in a PEM bundle that can be read; empty: there are none."""
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
