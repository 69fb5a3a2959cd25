"""What tests of work in slices have in common."""

import threading
from types import SimpleNamespace

import pytest

from proxy.inspection.stages.secret_scan import SecretScan


@pytest.fixture
def slowly(monkeypatch):
    """Have pieces of bodies looked through in slices, until `let` is set."""
    slow = SimpleNamespace(begun=threading.Event(), let=threading.Event())
    real = SecretScan.send

    def send(stage, part):
        slow.begun.set()
        while not slow.let.is_set():
            yield
        return (yield from real(stage, part))

    monkeypatch.setattr(SecretScan, "send", send)
    yield slow
    slow.let.set()


def post(place, connection):
    connection.sendall(f"POST / HTTP/1.1\r\nHost: {place.host}\r\nContent-Length: 5\r\n\r\nhello".encode())
