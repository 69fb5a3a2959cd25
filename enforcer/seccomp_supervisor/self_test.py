"""Whether system calls can be watched on this machine, found by doing it to a process of our own."""

import errno
import os
import select
import socket

from enforcer.sandbox.seccomp import watching
from enforcer.seccomp_supervisor import task_memory
from enforcer.seccomp_supervisor.listener import Listener
from enforcer.system import linux

_PATIENCE = 5.0  # seconds
_PROGRAM = "/nowhere"


def try_watching() -> str:
    """Hold a program and read its words. Raises OSError where the kernel, or whoever confines us, forbids either."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        _be_held(theirs)
    theirs.close()
    ours.settimeout(_PATIENCE)
    said, descriptors, _, _ = socket.recv_fds(ours, 256, 1)
    if not descriptors:
        os.waitpid(pid, 0)
        raise OSError(said.decode() or "the process to be watched ended")
    listener = Listener(descriptors[0])
    select.select([listener.descriptor], [], [], _PATIENCE)
    try:
        call = listener.receive()
        if call is None:
            raise OSError("the kernel doesn't ask")
        path = task_memory.text(call.thread, call.arguments[0], task_memory.PATH_MAX)
        listener.refuse(call, errno.EACCES)
    finally:
        listener.close()  # whoever still waits goes on with ENOSYS
        _, status = os.waitpid(pid, 0)
    if path != os.fsencode(_PROGRAM) or os.waitstatus_to_exitcode(status) != errno.EACCES:
        raise OSError("what was read, or answered, is something else")
    return "programs can be held, and their words read"


def _be_held(channel: socket.socket) -> None:
    try:
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
        listener = linux.load_seccomp_with_listener(watching(commands=True).program)
    except OSError as error:
        channel.send(str(error.strerror).encode())
        os._exit(0)
    socket.send_fds(channel, [b"l"], [listener])
    os.close(listener)
    try:
        os.execv(_PROGRAM, [_PROGRAM])
    except OSError as error:
        os._exit(error.errno or 0)
