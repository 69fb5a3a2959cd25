"""Where this host keeps the certificates that its programs trust."""

import os
import ssl

# Every place where a distribution keeps its bundle (golang.org/src/crypto/x509/root_linux.go)
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
    own = ssl.get_default_verify_paths().cafile  # honours SSL_CERT_FILE
    return next((path for path in (own, *BUNDLES) if path and os.path.isfile(path)), None)
