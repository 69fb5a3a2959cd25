"""The file name under which OpenSSL finds a CA certificate in a directory of certificates (openssl-rehash(1))."""

import hashlib

from cryptography import x509


def lookup_name(certificate_pem: bytes) -> str:
    """Return `HHHHHHHH.0` for a PEM certificate: the hash of its subject's canonical form.

    The form (OpenSSL, crypto/x509/x_name.c, x509_name_canon): every value as a UTF8String in lower case, with runs of
    spaces made one, each relative name a SET, the whole without its outer SEQUENCE; the hash is SHA-1's first four
    bytes, little-endian. SHA-1 names the file here and protects nothing.
    """
    subject = x509.load_pem_x509_certificate(certificate_pem).subject
    canonical = b"".join(
        _tlv(0x31, b"".join(sorted(_attribute(attribute) for attribute in relative))) for relative in subject.rdns
    )
    digest = hashlib.sha1(canonical, usedforsecurity=False).digest()
    return f"{int.from_bytes(digest[:4], 'little'):08x}.0"


def _attribute(attribute: "x509.NameAttribute[str | bytes]") -> bytes:
    value = attribute.value
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    # Only ASCII is folded: OpenSSL lowers A to Z alone.
    folded = "".join(c.lower() if c.isascii() else c for c in " ".join(text.split()))
    return _tlv(0x30, _oid(attribute.oid.dotted_string) + _tlv(0x0C, folded.encode()))


def _oid(dotted: str) -> bytes:
    first, second, *rest = map(int, dotted.split("."))
    out = bytearray([first * 40 + second])
    for number in rest:
        groups = [number & 0x7F]
        while number := number >> 7:
            groups.append(0x80 | (number & 0x7F))
        out += bytes(reversed(groups))
    return _tlv(0x06, bytes(out))


def _tlv(tag: int, content: bytes) -> bytes:
    size = len(content)
    length = bytes([size]) if size < 0x80 else (b"\x81" + bytes([size]) if size < 0x100 else b"\x82" + size.to_bytes(2))
    return bytes([tag]) + length + content
