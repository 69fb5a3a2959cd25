"""Signing keys of the journal: ed25519 (RFC 8032), the current one and earlier ones.

Private keys are files (0600) in a directory (0700) that workers and sandboxes never see (invariant 8). Without root the
directory belongs to the user: any process of that user can sign, and only checkpoints exported to another machine
expose it (docs/reference/telemetry.md). The id of a key is the first 16 hex digits of the SHA-256 of its public half.
"""

import contextlib
import os
from base64 import b64decode, b64encode
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

if TYPE_CHECKING:
    from pathlib import Path

_CURRENT: Final = "current"
_SUFFIX: Final = ".pem"
_ALGORITHM: Final = "ed25519 "
# A private key in PKCS #8 without its 32 bytes (RFC 8410 section 7). Parsing it here saves each run the 10 ms of
# importing `serialization`.
_PKCS8_PREFIX: Final = bytes.fromhex("302e020100300506032b657004220420")
_SECRET_BEGIN, _SECRET_END = "-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----"
_BEGIN, _END = "-----BEGIN PUBLIC KEY-----", "-----END PUBLIC KEY-----"


class SigningKeyError(Exception):
    """A signing key is missing or can't be used."""


class Signer:
    """Private key and its id."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = key.public_key()
        self.id = key_id(self.public)

    def sign(self, data: bytes) -> bytes:
        """Return the signature of `data`: 64 bytes."""
        return self._key.sign(data)


def key_id(key: Ed25519PublicKey) -> str:
    """Return the id of a key."""
    return sha256(key.public_bytes_raw()).hexdigest()[:16]


def load_signer(directory: "Path") -> Signer:
    """Return the current signing key; create the first one. Raises SigningKeyError."""
    try:
        return Signer(_load_private_key(directory, current_key_id(directory)))
    except FileNotFoundError:
        with contextlib.suppress(FileExistsError):
            return create_key(directory)
        return load_signer(directory)  # another process created it meanwhile


def create_key(directory: "Path") -> Signer:
    """Create the first key. Raises FileExistsError if there is one, SigningKeyError if it can't be stored."""
    return _store_new_key(directory, replace=False)


def rotate_key(directory: "Path") -> tuple[Signer, Signer]:
    """Create a new signing key; return the old and the new one. Raises SigningKeyError, FileNotFoundError."""
    before = Signer(_load_private_key(directory, current_key_id(directory)))
    return before, _store_new_key(directory, replace=True)


def current_key_id(directory: "Path") -> str:
    """Return the id of the current signing key. Raises FileNotFoundError, SigningKeyError."""
    try:
        return (directory / _CURRENT).read_text("ascii").strip()
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise SigningKeyError(f"cannot read `{directory / _CURRENT}`: {error}") from error


def load_public_keys(directory: "Path") -> "dict[str, Ed25519PublicKey]":
    """Return the public halves of all stored keys, the oldest first. Raises SigningKeyError."""
    try:
        files = sorted(directory.glob(f"*{_SUFFIX}"), key=lambda path: path.stat().st_mtime_ns)
    except OSError as error:
        raise SigningKeyError(f"cannot read `{directory}`: {error.strerror}") from error
    keys = (_load_private_key(directory, path.stem).public_key() for path in files)
    return {key_id(key): key for key in keys}


def to_pem(key: Ed25519PublicKey) -> str:
    """Return a public key as PEM, for `--key` and other tools."""
    from cryptography.hazmat.primitives import serialization

    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()


def read_public(text: str) -> "dict[str, Ed25519PublicKey]":
    """Return the public keys in PEM text. Raises SigningKeyError without one, or for another kind of key."""
    from cryptography.hazmat.primitives import serialization

    found = {}
    for part in text.split(_BEGIN)[1:]:
        block = f"{_BEGIN}{part.partition(_END)[0]}{_END}\n"
        try:
            key = serialization.load_pem_public_key(block.encode())
        except ValueError as error:
            raise SigningKeyError(f"no public key can be read from it: {error}") from error
        if not isinstance(key, Ed25519PublicKey):
            raise SigningKeyError("it holds a key that is not ed25519")
        found[key_id(key)] = key
    if not found:
        raise SigningKeyError("it holds no public key (PEM)")
    return found


def format_public_key(key: Ed25519PublicKey) -> str:
    """Return a public key as the ledger writes it when one key signs the next."""
    return f"{_ALGORITHM}{b64encode(key.public_bytes_raw()).decode()}"


def parse_public_key(text: str) -> Ed25519PublicKey | None:
    """Parse the result of `format_public_key`; None for any other text."""
    try:
        return Ed25519PublicKey.from_public_bytes(b64decode(text.removeprefix(_ALGORITHM), validate=True))
    except ValueError:
        return None


def is_signature_valid(key: Ed25519PublicKey, signature: bytes, data: bytes) -> bool:
    """Whether a signature (Base64) over `data` is valid."""
    try:
        key.verify(b64decode(signature, validate=True), data)
    except (InvalidSignature, ValueError):
        return False
    return True


def _load_private_key(directory: "Path", name: str) -> Ed25519PrivateKey:
    path = directory / f"{name}{_SUFFIX}"
    try:
        status = path.lstat()
        if status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise SigningKeyError(f"`{path}` can be read by others or isn't yours: run `exeat log keys rotate`")
        first_line, *words, last_line = path.read_text("ascii").split("\n")[:3]
        data = b64decode("".join(words), validate=True)
        if (first_line, last_line) != (_SECRET_BEGIN, _SECRET_END) or not data.startswith(_PKCS8_PREFIX):
            raise SigningKeyError(f"`{path}` is not an ed25519 key")
        return Ed25519PrivateKey.from_private_bytes(data.removeprefix(_PKCS8_PREFIX))
    except (OSError, ValueError) as error:
        raise SigningKeyError(f"cannot read the key `{path}`: {error}") from error


def _store_new_key(directory: "Path", *, replace: bool) -> Signer:
    """Create a key, store it and make it the current one."""
    key = Ed25519PrivateKey.generate()
    new_signer = Signer(key)
    text = f"{_SECRET_BEGIN}\n{b64encode(_PKCS8_PREFIX + key.private_bytes_raw()).decode()}\n{_SECRET_END}\n".encode()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write_private(directory / f"{new_signer.id}{_SUFFIX}", text)
        name = directory / f".{_CURRENT}.{new_signer.id}"
        _write_private(name, f"{new_signer.id}\n".encode())
        if replace:
            name.replace(directory / _CURRENT)
        else:
            try:
                os.link(name, directory / _CURRENT)  # unlike rename(2), fails if it exists
            finally:
                name.unlink()
    except FileExistsError:
        (directory / f"{new_signer.id}{_SUFFIX}").unlink(missing_ok=True)
        raise
    except OSError as error:
        raise SigningKeyError(f"cannot store a key in `{directory}`: {error.strerror}") from error
    return new_signer


def _write_private(path: "Path", data: bytes) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.write(file, data)
        os.fsync(file)
    finally:
        os.close(file)
