"""Where compiled code has SHA-256 from."""

import ctypes
import hashlib
import sys
import types

import pytest

from proxy.compiled import digest
from tests import harness


def made(found, text):
    """What it makes of a text, called as compiled code calls it."""
    three = (ctypes.c_void_p,) * 3
    begin, update, finish = (
        ctypes.CFUNCTYPE(ctypes.c_int, *of)(at)
        for at, of in (
            (found.begin, three),
            (found.update, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t)),
            (found.finish, three),
        )
    )
    into = ctypes.create_string_buffer(32)
    assert begin(found.context, None, None) == update(found.context, text, len(text)) == 1
    assert finish(found.context, ctypes.addressof(into), None) == 1
    return into.raw


@pytest.mark.parametrize("within", [types.SimpleNamespace(), None], ids=["in the interpreter", "without OpenSSL"])
def test_an_interpreter_that_has_none_to_show_uses_the_system_s(monkeypatch, within):
    monkeypatch.setitem(sys.modules, "_hashlib", within)
    found = digest._sha256()
    if found is None:
        harness.missing("OpenSSL's library")
    for text in (b"", b"a line", bytes(100_000)):
        assert made(found, text) == hashlib.sha256(text).digest()


@pytest.mark.parametrize("places", [(), ("libnobody.so.9",), ("libc.so.6",)], ids=["none", "not there", "another"])
def test_without_one_there_is_none(monkeypatch, places):
    monkeypatch.setitem(sys.modules, "_hashlib", None)
    monkeypatch.setattr(digest, "_LIBRARIES", places)
    assert digest._sha256() is None
