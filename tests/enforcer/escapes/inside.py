"""Runs inside a sandbox and tries to get out. Prints one JSON object: attempt -> what happened. `places` is run, and
imports this and `doors`.

`refused: ERRNO` is what every attempt should say; anything else says what was got.
"""

import contextlib
import ctypes
import errno
import fcntl
import glob
import json
import os
import signal
import socket
import stat
import struct
import sys

TRIALS = {}
libc = ctypes.CDLL(None, use_errno=True)
X86 = os.uname().machine == "x86_64"


def trial(function=None, *, name=""):
    if function is None:
        return lambda made: trial(made, name=name)
    TRIALS[name or function.__name__] = function
    return function


def call(number, *arguments):
    result = libc.syscall(ctypes.c_long(number), *(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


@trial
def read_init_memory():
    with open("/proc/1/mem", "rb", 0) as memory:
        return memory.read(1)


@trial
def list_init_descriptors():
    return os.listdir("/proc/1/fd")


@trial
def look_through_init_s_root():
    return os.listdir("/proc/1/root/")


@trial
def steal_a_descriptor_of_init():
    handle = call(434, 1, 0)  # pidfd_open
    try:
        return call(438, handle, 0, 0)  # pidfd_getfd
    finally:
        os.close(handle)


@trial
def trace_init():
    return call(101 if X86 else 117, 16, 1, 0, 0)  # PTRACE_ATTACH


@trial
def write_init_memory_from_afar():
    buffer = ctypes.create_string_buffer(8)
    vector = struct.pack("PN", ctypes.addressof(buffer), 8)
    remote = struct.pack("PN", 4096, 8)
    return call(311 if X86 else 271, 1, vector, 1, remote, 1, 0)


@trial
def end_init():
    os.kill(1, signal.SIGKILL)
    os.kill(1, signal.SIGTERM)
    with open("/proc/1/stat") as file:  # still there, so it was refused without an errno
        if file.read():
            raise OSError(errno.EPERM, "init ignored it")


@trial
def own_the_core_pattern():
    with open("/proc/sys/kernel/core_pattern", "w") as file:
        return file.write("|/bin/true")


@trial
def press_a_magic_key():
    with open("/proc/sysrq-trigger", "w") as file:
        return file.write("h")


@trial
def have_the_kernel_run_a_helper():
    return call(249 if X86 else 218, b"dns_resolver\0", b"example.com\0", b"\0", 0)


@trial
def a_namespace_of_one_s_own():
    return call(272 if X86 else 97, 0x10000000)


@trial
def a_network_of_one_s_own():
    return call(272 if X86 else 97, 0x40000000)


@trial
def enter_init_s_network():
    return call(308 if X86 else 268, os.open("/proc/1/ns/net", os.O_RDONLY), 0)


@trial
def a_ring():
    os.close(call(425, 4, ctypes.create_string_buffer(256)))
    return "a ring"


@trial
def a_virtual_machine_socket():
    return socket.socket(40, socket.SOCK_STREAM).fileno()


@trial
def a_raw_socket():
    return socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).fileno()


@trial
def a_packet_socket():
    return socket.socket(17, socket.SOCK_RAW, 0x0300).fileno()


@trial
def a_ping_socket():
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 1).fileno()


@trial
def an_sctp_socket():
    return socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132).fileno()


@trial
def another_interface():
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as netlink:
        name = b"dummy0\0\0"
        attribute = struct.pack("=HH", 4 + len(name), 3) + name
        info = struct.pack("=HH", 4 + 9 + 3, 1) + b"bridge\0\0\0\0\0\0"
        linkinfo = struct.pack("=HH", 4 + len(info), 18) + info
        body = struct.pack("=BxHiII", 0, 0, 0, 0, 0) + attribute + linkinfo
        netlink.send(struct.pack("=IHHII", 16 + len(body), 16, 0x605, 1, 0) + body)
        kind, number = struct.unpack_from("=4xH10xi", netlink.recv(4096))
        if kind == 2 and number:
            raise OSError(-number, os.strerror(-number))
        return "an interface"


@trial
def flush_the_ruleset():
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12).fileno()


@trial
def be_transparent():
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_IP, 19, 1)
        return "IP_TRANSPARENT"


@trial
def mark_packets():
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 1)
        return "SO_MARK"


@trial
def mount_something():
    if libc.mount(b"none", b"/tmp", b"tmpfs", 0, None) < 0:
        raise OSError(ctypes.get_errno(), "mount")
    return "a mount"


@trial
def take_a_cover_away():
    if libc.umount2(b"/proc/sys", 2) < 0:
        raise OSError(ctypes.get_errno(), "umount")
    return "an umount"


@trial
def a_device_node():
    os.mknod("disk", stat.S_IFBLK | 0o666, os.makedev(254, 0))
    return "a disk"


@trial
def a_setuid_program_on_the_host_s_disk():
    with open("program", "w") as file:
        file.write("#!/bin/sh\n")
    os.chmod("program", 0o6755)
    return "a setuid file"


@trial
def become_root():
    os.setresuid(0, 0, 0)
    return os.getuid()


@trial
def gain_by_a_setuid_program():
    """su, mount, ...: no_new_privs must hold, and the file system must say nosuid."""
    with open("/proc/self/status") as file:
        status = dict(line.split(":", 1) for line in file if ":" in line)
    if (
        status["NoNewPrivs"].strip() == "1"
        and int(status["CapBnd"], 16) == 0
        and os.statvfs("/usr").f_flag & os.ST_NOSUID
    ):
        raise OSError(errno.EPERM, "no new privileges, no bounding set, nosuid")
    return status["CapBnd"]


@trial
def capabilities():
    with open("/proc/self/status") as file:
        held = [line.split()[1] for line in file if line.startswith("Cap")]
    if all(int(word, 16) == 0 for word in held):
        raise OSError(errno.EPERM, "none in any set")
    return held


@trial
def descriptors_left_open():
    left = [d for d in map(int, os.listdir("/proc/self/fd")) if d > 2]
    left = [
        d for d in left if os.path.exists(f"/proc/self/fd/{d}") and os.readlink(f"/proc/self/fd/{d}") != "/proc/self/fd"
    ]
    left = [d for d in left if not os.readlink(f"/proc/self/fd/{d}").startswith("/proc/")]
    if not left:
        raise OSError(errno.EBADF, "none")
    return [os.readlink(f"/proc/self/fd/{d}") for d in left]


@trial
def push_into_the_terminal():
    try:
        terminal = os.open("/dev/tty", os.O_RDWR)
    except OSError:
        terminal = os.openpty()[1]
    fcntl.ioctl(terminal, 0x5412, b"x")
    return "TIOCSTI"


@trial
def write_system_files():
    with open("/usr/bin/exeat-was-here", "w") as file:
        return file.name


@trial
def write_etc():
    with open("/etc/resolv.conf", "a") as file:
        return file.write("nameserver 9.9.9.9\n")


@trial
def write_the_root():
    os.mkdir("/exeat-was-here")
    return "a directory in /"


@trial
def read_shadow():
    with open("/etc/shadow") as file:
        return len(file.read())


def is_reached(path):
    """Whether somebody is at the other end of a socket or FIFO."""
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return False
    reached = []
    if stat.S_ISSOCK(mode) or path.endswith(("sock", "socket")):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            with socket.socket(socket.AF_UNIX, kind) as sock, contextlib.suppress(OSError):
                sock.connect(path)
                reached.append(kind)
    if stat.S_ISFIFO(mode) or path.endswith(".fifo"):
        with contextlib.suppress(OSError):
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
            reached.append(path)
    return bool(reached)


@trial
def host_sockets_and_pipes():
    """Everything the outside put where a task can see it: each must lead nowhere. In each place is something to see."""
    reached = []
    for place in sys.argv[2:]:
        if not os.listdir(place):
            return f"{place} is not shown"
        reached += [path for path in [place, *glob.glob(f"{place}/**", recursive=True)] if is_reached(path)]
    if not reached:
        raise OSError(errno.ECONNREFUSED, "none reached")
    return reached


@trial
def an_abstract_socket_of_the_host():
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect("\0" + os.environ.get("EXEAT_ABSTRACT", "exeat-escape-test"))
        return "connected"


@trial
def host_processes():
    seen = [pid for pid in os.listdir("/proc") if pid.isdigit()]
    if len(seen) < 12:
        raise OSError(errno.ESRCH, "only the sandbox's own")
    return seen


PACKAGES = """
    alternatives aspell dictionaries-common dpkg emacsen-common gems ghc ghostscript ispell ocaml pacman rpm sgml-base
    tex-common texmf texlive xml-core
"""


@trial
def other_users_files():
    services = [f"/var/lib/{name}" for name in os.listdir("/var/lib")]
    services = [path for path in services if os.path.basename(path) not in PACKAGES.split() or os.access(path, os.W_OK)]
    found = [p for p in ("/root", "/home", *services, "/srv", "/mnt", "/boot") if os.path.isdir(p) and os.listdir(p)]
    found = [p for p in found if not (p == "/home" and set(os.listdir(p)) <= {os.path.basename(os.environ["HOME"])})]
    found = [p for p in found if not os.getcwd().startswith(p) and not sys.prefix.startswith(p)]
    if not found:
        raise OSError(errno.ENOENT, "none shown")
    return found


@trial
def secrets_in_the_environment():
    if "EXEAT_TEST_SECRET" not in os.environ:
        raise OSError(errno.ENOENT, "not passed on")
    return os.environ["EXEAT_TEST_SECRET"]


def main():
    wanted = json.loads(sys.argv[1])
    said = {}
    for name in wanted or TRIALS:
        try:
            said[name] = f"GOT {TRIALS[name]()!r}"
        except OSError as error:
            said[name] = f"refused: {errno.errorcode.get(error.errno, error.errno)}"
    print(json.dumps(said))
