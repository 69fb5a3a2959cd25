"""SHA-256 for compiled code: OpenSSL's, where hashlib has loaded that already, so that nobody links to another one."""

import contextlib
import ctypes
import hashlib
from typing import Final

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
    """Find it, and try it. None: this interpreter's is another."""
    with contextlib.suppress(ImportError, AttributeError, OSError):
        import _hashlib

        library = ctypes.CDLL(_hashlib.__file__)
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
    return None


SHA256: Final = _sha256()
