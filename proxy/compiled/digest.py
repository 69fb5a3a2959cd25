"""SHA-256 for compiled code: OpenSSL's, the one that hashlib has loaded already or else the system's."""

import contextlib
import ctypes
import hashlib
import sys
from typing import Final

_LIBRARIES: Final = ("libcrypto.so.3", "libcrypto.so.1.1")
_SIZE: Final = 32  # bytes


class Digest(ctypes.Structure):
    """One way of hashing, called again and again (struct digest)."""

    _fields_ = (
        ("context", ctypes.c_void_p),
        ("begin", ctypes.c_void_p),  # EVP_DigestInit_ex(3)
        ("update", ctypes.c_void_p),
        ("finish", ctypes.c_void_p),
    )


def _sha256() -> Digest | None:
    """Find it, and try it. None: there is none."""
    # An interpreter that has OpenSSL within itself shows nobody its functions, and one may be without.
    loaded = getattr(sys.modules.get("_hashlib"), "__file__", None)
    for place in (loaded, *_LIBRARIES):
        with contextlib.suppress(AttributeError, OSError):
            if place is not None and (found := _of(ctypes.CDLL(place))) is not None:
                return found
    return None


def _of(library: ctypes.CDLL) -> Digest | None:
    library.EVP_MD_CTX_new.restype = library.EVP_sha256.restype = ctypes.c_void_p
    begin, update, finish = library.EVP_DigestInit_ex, library.EVP_DigestUpdate, library.EVP_DigestFinal_ex
    begin.argtypes = [ctypes.c_void_p] * 3
    update.argtypes = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t
    finish.argtypes = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p
    context = library.EVP_MD_CTX_new()
    if not context or begin(context, library.EVP_sha256(), None) != 1:
        return None
    for text in (b"", b"abc" * 100):  # the second time as it is called later
        made = ctypes.create_string_buffer(_SIZE)
        done = begin(context, None, None), update(context, text, len(text)), finish(context, made, None)
        if done != (1, 1, 1) or made.raw != hashlib.sha256(text).digest():
            return None
    return Digest(context, *(ctypes.cast(each, ctypes.c_void_p).value for each in (begin, update, finish)))


SHA256: Final = _sha256()
