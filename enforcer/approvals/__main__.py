"""Runs the approvals server: `python -m enforcer.approvals DIRECTORY`, with an inherited lock and listener.

It ends by itself when nobody has needed it for a minute. What it keeps is in its store: the next one goes on with it.
"""

import asyncio
import contextlib
import os
import resource
import signal
import socket
import sys
import time
from collections import deque
from pathlib import Path
from typing import Final

from enforcer.approvals import client
from enforcer.approvals.app import App
from enforcer.approvals.server import Server, turn_away
from enforcer.system import linux
from enforcer.system.errors import ExeatError

IDLE: Final = 60.0  # seconds
_LOOK: Final = 1.0  # seconds between looks at whether it is needed, and whether anything has changed on the disk
_MOST_TOLD: Final = 20
_CAP_SYS_PTRACE: Final = 1 << 19  # capabilities(7)


class Log:
    """Log of the approvals server; the latest lines are in `exeat status`."""

    def __init__(self) -> None:
        self.latest: deque[str] = deque(maxlen=_MOST_TOLD)

    def say(self, sentence: str) -> None:
        """Write a line, once if it repeats."""
        if self.latest and self.latest[-1] == sentence:
            return
        self.latest.append(sentence)
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        with contextlib.suppress(OSError):
            os.write(2, f"{stamp} {sentence}\n".encode("utf-8", "backslashreplace"))


def main() -> None:
    """Run the approvals server until it is idle, then end the process."""
    directory = Path(sys.argv[1])
    linux.disable_core_dumps()
    # Of root's rights the one to see which namespaces a peer is in: it reads what workers say, who read hostile bytes
    linux.drop_capabilities(_CAP_SYS_PTRACE if os.geteuid() == 0 else 0)
    linux.prctl(linux.PR_SET_DUMPABLE, 0)  # nobody of the same user looks into it
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # whoever started it may have had few
    for descriptor in (client.LOCK, client.LISTENER):
        os.set_inheritable(descriptor, False)
    os.ftruncate(client.LOCK, 0)
    os.pwrite(client.LOCK, f"{os.getpid()}\n".encode(), 0)
    log = Log()
    try:
        asyncio.run(_serve(directory, socket.socket(fileno=client.LISTENER), log))
    except ExeatError as error:
        log.say(str(error))
    finally:
        os._exit(0)  # threads that wait for somebody's receiver are not waited for


async def _serve(directory: Path, listener: socket.socket, log: Log) -> None:
    loop = asyncio.get_running_loop()
    ending = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)
    loop.set_exception_handler(lambda _loop, context: log.say(_unexpected(context)))
    try:
        app = App(directory, log.say)
        await app.open()
    except ExeatError as error:
        log.say(str(error))
        await turn_away(listener, str(error))
        return
    server = Server(app, log.latest)
    try:
        server.listen(listener)
        since = loop.time()
        while not ending.is_set():
            await app.turn()
            try:
                server.listen_host(wanted=app.others)
            except ExeatError as error:
                log.say(str(error))
            if _is_gone(directory):
                break
            since = loop.time() if server.is_needed else since
            if loop.time() - since > IDLE and server.is_alone(directory):
                break
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ending.wait(), min(_LOOK, app.registry.next_due() or _LOOK))
    finally:
        server.close()
        await app.close(sign=not _is_gone(directory))


def _is_gone(directory: Path) -> bool:
    """Whether our lock is no more what others would look at: then another one may serve, and this one must not."""
    try:
        there, ours = os.stat(directory / client.LOCK_FILE), os.fstat(client.LOCK)
    except OSError:
        return True
    return (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino)


def _unexpected(context: dict[str, object]) -> str:
    error = context.get("exception")
    return str(context.get("message", "")) if error is None else f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    main()
