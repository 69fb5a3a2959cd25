"""Client of the service: `exeat run` sends it the task, with this process's descriptors, and waits for the end.

The user waits for it, so it imports little: `_socket` and `_signal` instead of the modules that wrap them. A start
takes 38 ms this way, 11 of them the interpreter's (median of twenty on two busy cores); a program in C took 26. The
task gets this process's arguments, environment, directory and standard streams. Signals and the terminal's size are
passed on, and this process ends as the task did. The task ends with it.
"""

import _signal
import _socket
import errno
import os
import sys

from enforcer.service import protocol
from enforcer.system import control_socket
from enforcer.system.terminals import Terminals

_SCM_RIGHTS = 1  # linux/socket.h
_LARGEST = 1 << 16
_LIMITS = 16  # RLIM_NLIMITS
_STATUSES = 1 << 16
_SI_KERNEL = 0x80  # siginfo(7): sent by the kernel, which for these signals means the terminal
_WATCHED = {
    _signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP, _signal.SIGQUIT, _signal.SIGUSR1, _signal.SIGUSR2, _signal.SIGALRM,
    _signal.SIGCONT, _signal.SIGWINCH, _signal.SIGIO,
}  # fmt: skip
LOST = 125  # the exit status when the service lost the task


def run(words: list[str]) -> int | None:
    """Have the service run a task; returns its wait status (waitpid(2)), or None if no service takes it.

    The service reports command line errors on this process's standard error.
    """
    path = control_socket.control_path()
    if not path:
        return None
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    try:
        connection.connect(path)
        if not control_socket.is_own_service(connection):
            connection.close()
            return None
    except OSError:
        connection.close()
        return None
    before = _signal.pthread_sigmask(_signal.SIG_BLOCK, _WATCHED)  # from here on, signals are for the task
    try:
        return _request_run(connection, words)
    finally:
        connection.close()
        _signal.signal(_signal.SIGIO, _signal.SIG_IGN)  # a pending SIGIO would end this process (signal(7))
        _signal.pthread_sigmask(_signal.SIG_SETMASK, before)
        _signal.signal(_signal.SIGIO, _signal.SIG_DFL)


def _request_run(connection: _socket.socket, words: list[str]) -> int | None:
    try:
        _send_request(connection, words)
    except OSError:
        return None
    # From here on the task may have started: never start it again.
    return _wait(connection)


def _send_request(connection: _socket.socket, words: list[str]) -> None:
    request = os.memfd_create("exeat-run", os.MFD_CLOEXEC)
    directory = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        data = protocol.pack(_request(words))
        while data:
            data = data[os.write(request, data) :]
        rights = [(_socket.SOL_SOCKET, _SCM_RIGHTS, protocol.descriptors((0, 1, 2, directory, request)))]
        try:
            connection.sendmsg([protocol.packet_head(protocol.RUN)], rights)
        except OSError as error:
            if error.errno != errno.ETOOMANYREFS:
                raise
            from proxy.wire.message import raised_descriptor_limit

            with raised_descriptor_limit():
                connection.sendmsg([protocol.packet_head(protocol.RUN)], rights)
    finally:
        os.close(directory)
        os.close(request)


def _request(words: list[str]) -> protocol.Run:
    import resource

    mask = os.umask(0o077)
    os.umask(mask)
    limits = tuple(resource.getrlimit(number) for number in range(_LIMITS))
    return protocol.Run(
        tuple(words), dict(os.environ), mask, _ignored_signals(), os.getpriority(os.PRIO_PROCESS, 0), limits
    )


def _ignored_signals() -> int:
    """Return the signals that our caller ignores (nohup(1)), as a bit mask, without the two that Python ignores."""
    found = 0
    for number in range(1, 65):
        if number not in (_signal.SIGPIPE, _signal.SIGXFSZ, 32, 33) and _signal.getsignal(number) == _signal.SIG_IGN:
            found |= 1 << (number - 1)
    return found


class _Events:
    """Events of this process while its task runs in the service: signals, and typed keys."""

    def __init__(self) -> None:
        self._terminals = Terminals()
        self._key_relay = 0  # the process that relays keys

    def packet(self, number: int, code: int) -> bytes:
        """Return the message for a signal (`run.environment.parse_signal`)."""
        # SIGHUP of a shell whose terminal was closed means the end, as one of the terminal does.
        hung_up = number == _signal.SIGHUP and self._terminals.have_gone()
        return b"signal %d %d" % (number, code == _SI_KERNEL or hung_up)

    def relay_keys(self, primary: int) -> None:
        """Relay typed keys to the task's terminal: only a process of this session may read them."""
        from enforcer.sandbox import stdio  # imported only for a terminal

        client = os.getpid()
        typed = stdio.keyboard_terminal(client)
        if typed is not None:
            self._key_relay = os.fork()
            if self._key_relay == 0:
                stdio.relay_keys(typed, primary, client)
        os.close(primary)

    def end(self) -> None:
        """End the relay, and restore the terminal."""
        if self._key_relay:
            os.kill(self._key_relay, _signal.SIGTERM)
            os.waitpid(self._key_relay, 0)
            self._key_relay = 0


def _wait(connection: _socket.socket) -> int | None:
    """Wait for the end of the task, passing signals on; None: the service declines the task."""
    import fcntl  # while the service works

    events = _Events()
    fcntl.fcntl(connection, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(connection, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)  # fcntl(2): SIGIO whenever data arrives
    try:
        while True:
            try:
                packet, ancillary, _, _ = connection.recvmsg(_LARGEST, _socket.CMSG_SPACE(4))
            except BlockingIOError:
                arrived = _signal.sigwaitinfo(_WATCHED)
                if arrived.si_signo != _signal.SIGIO:
                    _send(connection, events.packet(arrived.si_signo, arrived.si_code))
                continue
            except ConnectionResetError:
                continue  # unread data of ours: reported once, before the last message (`message.packet`)
            except OSError:
                packet, ancillary = b"", []  # the process of the run was killed
            word, _, rest = packet.partition(b" ")
            if word == b"terminal" and ancillary:
                events.relay_keys(int.from_bytes(ancillary[0][2][:4], sys.byteorder))
            elif word == b"status" and (status := _status(rest)) is not None:
                return status
            elif word == b"declined":
                _print(f"{rest.decode('utf-8', 'replace')}; this task runs without the service")
                return None
            else:
                _print("the service's process for this task ended, and the task with it; see the service's log")
                return LOST << 8
    finally:
        events.end()
        fcntl.fcntl(connection, fcntl.F_SETFL, 0)


def _status(packet: bytes) -> int | None:
    status = int(packet) if packet.isdigit() and len(packet) <= len(b"65535") else _STATUSES
    return status if status < _STATUSES and status & 0x7F != 0x7F else None


def _send(connection: _socket.socket, packet: bytes) -> None:
    try:  # noqa: SIM105  importing contextlib takes longer than this function
        connection.send(packet)
    except OSError:
        pass  # the run has ended, which the next read reports


def _print(sentence: str) -> None:
    os.write(2, f"exeat: {sentence}\n".encode("utf-8", "backslashreplace"))
