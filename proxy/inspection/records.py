"""Bytes through one TLS connection that has no socket: what came in, what goes out, and what they say.

pyOpenSSL takes a buffer of its own for every call and raises an exception, with its traceback, whenever there is
nothing more to read, which is the usual end of every step. Here one buffer serves all, and nothing more to read is an
answer; what goes wrong is raised by pyOpenSSL as ever, with what its callbacks have to say. For one thread.
"""

from typing import Final

from OpenSSL import SSL

from proxy.inspection.openssl import FFI, LIB

_PIECE: Final = 65536  # bytes; a record has 16 KB at most
_BUFFER: Final = FFI.new("char[]", _PIECE)
_WANT_READ: Final = LIB.SSL_ERROR_WANT_READ
_read, _write, _error, _handshake = LIB.SSL_read, LIB.SSL_write, LIB.SSL_get_error, LIB.SSL_do_handshake
_bio_read, _bio_write, _contents = LIB.BIO_read, LIB.BIO_write, FFI.buffer


def put(tls: SSL.Connection, data: bytes) -> None:
    """Take what the peer has sent. Raises MemoryError: nothing else keeps it out of OpenSSL's memory."""
    if data and _bio_write(tls._into_ssl, data, len(data)) != len(data):  # noqa: SLF001
        raise MemoryError("OpenSSL didn't take what a peer has sent")


def taken(tls: SSL.Connection) -> bytes:
    """Return all that is to be sent to the peer; mostly there is nothing."""
    size = _bio_read(tls._from_ssl, _BUFFER, _PIECE)  # noqa: SLF001
    if size <= 0:
        return b""
    pieces = [_contents(_BUFFER, size)[:]]
    while size == _PIECE and (size := _bio_read(tls._from_ssl, _BUFFER, _PIECE)) > 0:  # noqa: SLF001
        pieces.append(_contents(_BUFFER, size)[:])
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def shakes_hands(tls: SSL.Connection) -> bool:
    """Go on with the handshake; returns whether more of it has to come first. Raises SSL.Error."""
    result = _handshake(tls._ssl)  # noqa: SLF001
    if result == 1:
        return False
    if _error(tls._ssl, result) == _WANT_READ:  # noqa: SLF001
        return True
    _fail(tls, result)
    raise AssertionError("a handshake failed without an error")


def decrypted(tls: SSL.Connection, pieces: list[bytes]) -> None:
    """Add all that can be read now to `pieces`. Raises SSL.Error, ZeroReturnError where the peer has ended."""
    ssl = tls._ssl  # noqa: SLF001
    while (size := _read(ssl, _BUFFER, _PIECE)) > 0:
        pieces.append(_contents(_BUFFER, size)[:])
    if _error(ssl, size) != _WANT_READ:
        _fail(tls, size)


def encrypt(tls: SSL.Connection, data: bytes) -> None:
    """Make records of `data`, for `taken`. Raises SSL.Error."""
    ssl = tls._ssl  # noqa: SLF001
    size, done = len(data), 0
    with FFI.from_buffer(data) as start:
        while done < size:  # a record a call: pyOpenSSL's contexts have SSL_MODE_ENABLE_PARTIAL_WRITE
            result = _write(ssl, start + done, size - done)
            if result <= 0:
                _fail(tls, result)
            done += result


def _fail(tls: SSL.Connection, result: int) -> None:
    tls._raise_ssl_error(tls._ssl, result)  # noqa: SLF001
