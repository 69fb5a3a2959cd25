"""The list of attempts, and how each is set apart in the journal.

Before and after each attempt a name that stands for it is looked up, so that the journal itself says which events are
whose. Each attempt gets a host of its own, so that a packet at that host's address is its own doing and nobody else's.
"""

import socket
from dataclasses import dataclass, field

MARKS = "mark.example"  # begin--ATTEMPT.mark.example, end--ATTEMPT.mark.example

EVERY = {}


@dataclass(frozen=True)
class Attempt:
    """One attempt: a function of its host that returns what the client saw."""

    name: str
    zone: str  # which rule its host is under
    function: object
    addresses: tuple = ()  # the host's, where they matter; else one public address of its own
    turns: tuple = field(default=())

    @property
    def host(self):
        return f"{self.name.replace('_', '-')}.{self.zone}.example"


def attempt(zone="allowed", addresses=(), turns=(), name=None):
    """Put a function on the list."""

    def put(function):
        called = name or function.__name__
        assert called not in EVERY, called
        EVERY[called] = Attempt(called, zone, function, tuple(addresses), tuple(turns))
        return function

    return put


def mark(word, which):
    """Leave a mark in the journal."""
    socket.getaddrinfo(f"{word}--{which.replace('_', '-')}.{MARKS}", None, socket.AF_INET, socket.SOCK_STREAM)


def run(which):
    """Try it, and return what the client saw as a value that JSON can carry."""
    one = EVERY[which]
    mark("begin", which)
    try:
        return one.function(one.host)
    except OSError as error:
        return {"error": reason(error)}
    finally:
        mark("end", which)


def reason(error):
    """Name an error as the kernel or OpenSSL does."""
    import errno
    import ssl

    if isinstance(error, ssl.SSLError):
        return error.reason or type(error).__name__
    if isinstance(error, socket.gaierror):
        return f"EAI {error.errno}"
    return errno.errorcode.get(error.errno, type(error).__name__)
