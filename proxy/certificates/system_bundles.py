"""Paths of the host's bundle of trusted root certificates, for each distribution."""

import os

# golang.org/src/crypto/x509/root_linux.go, in that order
BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
)


def bundle_path() -> str | None:
    """Return the path of the host's bundle; None: there is none."""
    import ssl  # 5 ms, and every run imports this module

    own = ssl.get_default_verify_paths().cafile  # honours SSL_CERT_FILE
    return next((path for path in (own, *BUNDLES) if path and os.path.isfile(path)), None)
