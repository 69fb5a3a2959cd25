"""Passes file descriptors to another process, within the kernel's limit on descriptors in flight.

The kernel counts descriptors that were sent and not received yet for each user, and limits each sender to its own soft
limit of open files (unix(7), ETOOMANYREFS). With the usual soft limit, sending fails while another program of the same
user has as many in flight. A task's hard limit is lower than ours (`enforcer.limits.resource_limits`), so our hard
limit always leaves room.
"""

import contextlib
import errno
import resource
import socket
from collections.abc import Iterator, Sequence


def send(channel: socket.socket, data: bytes, descriptors: Sequence[int]) -> None:
    """Send one packet with descriptors. Raises OSError."""
    try:
        socket.send_fds(channel, [data], list(descriptors))
    except OSError as error:
        if error.errno != errno.ETOOMANYREFS:
            raise
        with all_that_may_be():
            socket.send_fds(channel, [data], list(descriptors))


@contextlib.contextmanager
def all_that_may_be() -> Iterator[None]:
    """Raise the soft limit of open files to the hard limit for a moment. For a process with one thread."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # a confined worker can't, and has them all already
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
