"""Runs inside a sandbox: one end of every channel that two sandboxes could have, by lines on standard input.

A line is `ACT CHANNEL PLACE`; the answer is one JSON value. Who watches does `before` and then `seen`, who speaks does
`speak` in between and `let_go` after it.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import select
import struct
import sys

AT = 6_210_279  # the byte that a lock is on: what it says
libc = ctypes.CDLL(None, use_errno=True)
held = []
state = {}


def opened(place):
    """Open a place in each way that it can be: by its path, or the stream that isn't used (standard error, /dev/null)."""
    if place == "stream":
        return 2
    for flags in (os.O_RDWR, os.O_RDONLY):
        try:
            return os.open(place, flags | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError as error:
            problem = error
    raise problem


def lock(command, file, kind):
    """Take or ask for a record lock: what the kernel says of it."""
    asked = struct.pack("hhqqi4x", kind, os.SEEK_SET, AT, 7, 0)
    try:
        return struct.unpack("hhqqi4x", fcntl.fcntl(file, command, asked))
    except OSError as error:
        return error.errno


def speak_record_lock(place):
    file = opened(place)
    kind = fcntl.F_WRLCK if fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE else fcntl.F_RDLCK
    held.append(file)
    return [lock(fcntl.F_OFD_SETLK, file, kind), lock(fcntl.F_SETLK, file, kind)]


def seen_record_lock(place):
    found = [lock(command, opened(place), fcntl.F_WRLCK) for command in (fcntl.F_OFD_GETLK, fcntl.F_GETLK)]
    return any(isinstance(each, tuple) and each[0] != fcntl.F_UNLCK for each in found)


def speak_flock(place):
    held.append(opened(place))
    fcntl.flock(held[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)


def seen_flock(place):
    file = opened(place)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(file, fcntl.LOCK_UN)
    except BlockingIOError:
        return True
    return False


def speak_list_of_locks(place):
    """Hold a lock on a file of one's own: `place` is none."""
    held.append(os.open("/tmp/own", os.O_RDWR | os.O_CREAT))
    return lock(fcntl.F_OFD_SETLK, held[-1], fcntl.F_WRLCK)


def seen_list_of_locks(place):
    try:
        with open("/proc/locks") as file:
            return str(AT) in file.read()
    except OSError:
        return False


def before_watch(place):
    state[place] = libc.inotify_init1(os.O_NONBLOCK)
    path = "/proc/self/fd/2" if place == "stream" else place
    if libc.inotify_add_watch(state[place], path.encode(), 0xFFF) < 0:
        raise OSError(ctypes.get_errno(), "inotify_add_watch")


def speak_watch(place):
    file = os.dup(2) if place == "stream" else opened(place)
    try:
        os.read(file, 1)
        os.write(file, b"x")
    except OSError:
        pass
    os.close(file)


def seen_watch(place):
    return bool(select.select([state[place]], [], [], 0.05)[0])


def times(place):
    status = os.stat(2 if place == "stream" else place)
    return status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns, status.st_mode, status.st_nlink


def before_time_stamp(place):
    state[place] = times(place)


def speak_time_stamp(place):
    speak_watch(place)
    for act in (lambda: os.utime(2 if place == "stream" else place), lambda: os.utime(place, (1, 1)),
                lambda: os.chmod(place, 0o600), lambda: os.setxattr(place, "user.said", b"x"),
                lambda: os.link(place, "/tmp/link"), lambda: os.listdir(place)):  # fmt: skip
        with contextlib.suppress(OSError, TypeError):
            act()


def seen_time_stamp(place):
    return times(place) != state[place]


def speak_lease(place):
    file = os.open("/dev/null" if place == "stream" else place, os.O_RDONLY | os.O_NONBLOCK)
    held.append(file)
    fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)


def seen_lease(place):
    """Whether a file can't be opened for writing, or is known to be leased."""
    try:
        return fcntl.fcntl(opened(place), fcntl.F_GETLEASE) != fcntl.F_UNLCK
    except OSError:
        return False


def let_go(_):
    """Let go of all that was held to speak."""
    while held:
        file = held.pop()
        fcntl.flock(file, fcntl.LOCK_UN)
        for command in (fcntl.F_OFD_SETLK, fcntl.F_SETLK):
            lock(command, file, fcntl.F_UNLCK)
        if file != 2:
            os.close(file)


def main():
    for line in iter(sys.stdin.readline, ""):
        act, channel, place = line.split()
        try:
            answer = (let_go if act == "let_go" else globals().get(f"{act}_{channel}", lambda _: None))(place)
        except OSError as error:
            answer = os.strerror(error.errno)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
