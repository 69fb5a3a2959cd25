"""Runs inside a sandbox: /proc, /dev, /sys and files as ways out; what is observed is told as an errno."""

import contextlib
import ctypes
import errno
import fcntl
import json
import mmap
import os
import resource
import signal
import stat
import struct
import sys
from pathlib import Path

import doors  # these run alone, copied into a sandbox
import inside
from inside import trial

OF_INIT = """
    auxv clear_refs cwd environ exe fd/0 io map_files maps mem ns/cgroup ns/ipc ns/mnt ns/net ns/pid ns/user ns/uts pagemap
    personality root smaps stack syscall
"""
NODES = """
    autofs btrfs-control console cpu/0/msr cpu_dma_latency cuse dri/card0 fb0 fuse hpet hwrng input/event0 kmem kmsg kvm
    log loop-control loop0 mapper/control mei0 mem net/tun nvme0n1 nvram port ppp ptp0 rfkill rtc0 sda sev sgx_enclave
    snd/seq snapshot sr0 tty0 tty1 ttyS0 udmabuf uhid uinput userfaultfd usbmon0 vboxguest vcs vda vfio/vfio vga_arbiter
    vhost-net vhost-vsock video0 vport0p1 vsock watchdog xen/xenbus zfs
"""


def opened(paths, flags=os.O_RDONLY):
    """Which of some files can be opened, or read as links; the errno of the others counts for nothing."""
    found = []
    for path in paths:
        for act in (lambda path: os.close(os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)), os.readlink):
            try:
                act(path)
                found.append(path)
            except OSError:
                pass
    return found


def none(found, error, why="none"):
    if found:
        return found
    raise OSError(error, why)


@trial
def all_of_init_in_proc():
    paths = [f"/proc/1/{name}" for name in OF_INIT.split()]
    return none(opened(paths), errno.EACCES)


@trial
def overwrite_the_program_of_init():
    """What runc once let be done (CVE-2019-5736)."""
    return os.open("/proc/1/exe", os.O_WRONLY)


@trial
def settings_of_the_kernel():
    """Every file in /proc that isn't a process's: none may be opened to be written."""
    found = []
    for top in sorted(os.listdir("/proc")):
        if top.isdigit() or top in {"self", "thread-self", "net", "mounts"}:
            continue
        paths = [f"/proc/{top}"]
        paths += [os.path.join(at, name) for at, _, names in os.walk(f"/proc/{top}") for name in names]
        found += opened((path for path in paths if not os.path.islink(path)), os.O_WRONLY)
    return none(found, errno.EROFS)


@trial
def what_only_the_host_should_read():
    names = "kcore keys key-users kallsyms kmsg timer_list sched_debug kpagecount kpageflags vmallocinfo slabinfo"
    return none(
        [path for name in names.split() if (path := f"/proc/{name}") in opened([path]) and size(path)], errno.EACCES
    )


# What may be read of /proc that is no process's, and of /proc/sys that sets nothing: neither counts what others do.
SHOWN = """
    cmdline config.gz cpuinfo devices filesystems loadavg meminfo mounts net self stat swaps sys sysvipc thread-self tty
    uptime version version_signature
"""
CONSTANT = """
    kernel/arch kernel/bootloader_type kernel/bootloader_version kernel/cap_last_cap kernel/core_modes kernel/msg_next_id
    kernel/ngroups_max kernel/nmi_watchdog kernel/osrelease kernel/ostype kernel/random/boot_id kernel/random/poolsize
    kernel/random/entropy_avail kernel/random/uuid kernel/seccomp/actions_avail kernel/sem_next_id kernel/shm_next_id
    kernel/version
"""


@trial
def counts_of_the_host():
    """A number that one sandbox moves and another reads tells it something. Those in net/ are the sandbox's own."""
    found = [
        name
        for name in os.listdir("/proc")
        if not name.isdigit() and name not in SHOWN.split() and (opened([f"/proc/{name}"]) or listed(f"/proc/{name}"))
    ]
    constant = {f"/proc/sys/{name}" for name in CONSTANT.split()}
    for at, _, names in os.walk("/proc/sys"):
        paths = {os.path.join(at, name) for name in names} - constant
        if not at.startswith("/proc/sys/net"):
            found += opened(path for path in paths if not os.stat(path).st_mode & 0o222)
    return none(found, errno.EACCES)


def listed(path):
    try:
        return os.listdir(path)
    except OSError:
        return []


@trial
def all_terminals_of_the_machine():
    held = []
    try:
        while len(held) < 900:
            held.append(os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY))
    finally:
        for each in held:
            os.close(each)
    return len(held)


def size(path):
    try:
        with open(path, "rb") as file:
            return len(file.read(1))
    except OSError:
        return 0


@trial
def ids_and_clocks_of_one_s_own():
    names = ("uid_map", "gid_map", "projid_map", "setgroups", "timens_offsets")
    lines = {"setgroups": b"allow", "timens_offsets": b"monotonic 1 0"}
    done = []
    for name in names:
        try:
            place = os.open(f"/proc/self/{name}", os.O_WRONLY)
            os.write(place, lines.get(name, b"0 0 4294967295"))
            done.append(name)
        except OSError:
            pass
    return none(done, errno.EPERM)


@trial
def namespaces_above():
    """ioctl_ns(2): NS_GET_USERNS and NS_GET_PARENT name what lies outside, or nothing."""
    got = []
    for name in os.listdir("/proc/self/ns"):
        with open(f"/proc/self/ns/{name}") as file:
            for request in (0xB701, 0xB702):
                with contextlib.suppress(OSError):
                    got.append((name, hex(request), fcntl.ioctl(file, request)))
    return none(got, errno.EPERM)


@trial
def above_the_root():
    """The classic: keep a directory, look above the root through it."""
    place = os.open("/", os.O_RDONLY)
    os.fchdir(place)
    work = os.environ["PWD"] if os.path.isdir(os.environ.get("PWD", "")) else sys.path[0]
    try:
        above = os.stat("../../../../../../..")
        root = os.stat("/proc/self/root/..")
        same = {(status.st_dev, status.st_ino) for status in (above, root, os.stat("/"))}
    finally:
        os.chdir(work)
    return none(len(same) > 1, errno.ENOENT)


@trial
def old_roots():
    """What the view was made of: the host's tree, layers, stages, room."""
    names = ("old", "new", "stage", "layers", "room", ".oldroot", ".pivot_root", "host", "rootfs", "mnt/host")
    return none([name for name in names if os.path.lexists(f"/{name}")], errno.ENOENT)


@trial
def layers_named_in_mountinfo():
    found = []
    with open("/proc/self/mountinfo") as file:
        for word in file.read().replace(",", " ").split():
            for option in ("upperdir=", "workdir=", "lowerdir="):
                if word.startswith(option):
                    found += [path for path in word[len(option) :].split(":") if path and os.path.lexists(path)]
    return none(found, errno.ENOENT)


@trial
def kernel_file_systems():
    """cgroup's release_agent, uevent_helper, debugfs, binfmt_misc's register, EFI variables."""
    found = [os.path.join(top, name) for top, directories, names in os.walk("/sys") for name in directories + names]
    copied = ("/sys/devices", "/sys/devices/system", "/sys/devices/system/cpu")
    own = [
        p for p in found if (p in copied or p.startswith(copied[2] + "/")) and os.lstat(p).st_dev == os.stat("/").st_dev
    ]
    return none(
        sorted(set(found) - set(own)) + opened(["/proc/sys/fs/binfmt_misc/register"], os.O_WRONLY), errno.ENOENT
    )


@trial
def groups_of_processes_above():
    with open("/proc/self/cgroup") as file:
        return none([line for line in file.read().split() if not line.endswith(":/")], errno.ENOENT)


@trial
def device_nodes():
    return none([name for name in NODES.split() if os.path.lexists(f"/dev/{name}")], errno.ENOENT)


@trial
def devices_made_anywhere():
    made = []
    for place in (".", "/tmp", "/dev/shm", os.environ["HOME"], "/var/tmp", "/run"):
        for kind, major, minor in ((stat.S_IFCHR, 1, 1), (stat.S_IFCHR, 10, 229), (stat.S_IFBLK, 8, 0)):
            path = f"{place}/node-{major}-{minor}"
            try:
                os.mknod(path, kind | 0o666, os.makedev(major, minor))
                made.append(path)
            except OSError:
                pass
    return none(made, errno.EPERM)


@trial
def shared_devices_changed():
    done = []
    for act in (lambda: os.chmod("/dev/null", 0o600), lambda: os.chown("/dev/null", 1, 1), lambda: os.unlink("/dev/null"),
                lambda: os.rename("/dev/null", "/dev/other"), lambda: os.setxattr("/dev/null", "user.x", b"x")):  # fmt: skip
        with contextlib.suppress(OSError):
            done.append(act())
    return none(done, errno.EROFS)


@trial
def attributes_that_give_rights():
    open("attributed", "w").close()
    done = []
    capability = struct.pack("<IIIII", 0x02000001, 0xFFFFFFFF, 0, 0, 0)
    for name, value in (("security.capability", capability), ("trusted.overlay.opaque", b"y"), ("security.ima", b"x")):
        with contextlib.suppress(OSError):
            done.append((name, os.setxattr("attributed", name, value)))
    return none(done, errno.EPERM)


@trial
def set_id_bits_by_any_call():
    done = []
    open("plain", "w").close()
    acts = {
        "chmod": ("plain", 0o4755), "fchmod": (os.open("plain", os.O_RDONLY), 0o2755),
        "fchmodat": (-100, "plain", 0o6755), "fchmodat2": (-100, "plain", 0o6755, 0), "creat": ("made1", 0o4755),
        "open": ("made2", os.O_CREAT | os.O_WRONLY, 0o4755), "openat": (-100, "made3", os.O_CREAT | os.O_WRONLY, 0o4755),
        "mknod": ("made4", stat.S_IFREG | 0o4755, 0), "mknodat": (-100, "made5", stat.S_IFREG | 0o4755, 0),
    }  # fmt: skip
    high = {"chmod": 1, "fchmod": 1, "fchmodat": 2, "fchmodat2": 2}
    for name, arguments in acts.items():
        words = [word.encode() if isinstance(word, str) else word for word in arguments]
        for upper in (0, doors.HIGH):
            if name in high:
                words[high[name]] |= upper
            try:
                doors.by_number(name, *words)
                done.append(name)
            except OSError:
                pass
    done += [name for name in os.listdir(".") if os.path.isfile(name) and os.stat(name).st_mode & 0o6000]
    return none(done, errno.EPERM)


@trial
def a_set_id_program_by_a_link():
    return os.link("/usr/bin/su" if os.path.exists("/usr/bin/su") else "/usr/bin/env", "su")


@trial
def a_program_in_memory():
    """memfd_create(2) and fexecve(3) run what no file holds; the walls are the process's and stay."""
    program = os.memfd_create("cat")
    with open("/bin/cat", "rb") as file:
        os.write(program, file.read())
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.dup2(write, 1)
        os.execve(program, ["cat", "/proc/self/status"], {})
    os.close(write)
    with open(read) as file:
        lines = dict(line.split(":", 1) for line in file if ":" in line)
    os.waitpid(pid, 0)
    walls = {name: lines[name].strip() for name in ("NoNewPrivs", "Seccomp", "CapBnd", "CapEff")}
    return none(
        walls["NoNewPrivs"] != "1" or walls["Seccomp"] != "2" or (int(walls["CapBnd"], 16) and walls), errno.EPERM
    )


@trial
def write_what_is_only_mapped():
    """/proc/self/mem writes where no mapping may be written: to a copy, never to the file."""
    with open("/usr/bin/env", "rb") as file:
        before = file.read()
        mapped = mmap.mmap(file.fileno(), 4096, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
        reach = ctypes.pythonapi.PyObject_GetBuffer
        view = (ctypes.c_char * 256)()
        reach(ctypes.py_object(mapped), ctypes.byref(view), 0)
        address = ctypes.c_void_p.from_buffer(view).value
        try:
            with open("/proc/self/mem", "r+b", buffering=0) as memory:
                memory.seek(address)
                memory.write(b"changed")
        finally:
            ctypes.pythonapi.PyBuffer_Release(ctypes.byref(view))
        file.seek(0)
        return none(file.read() != before, errno.EROFS)


@trial
def doors_in_the_environment():
    """Each was there when the run was asked for."""
    return none([name for name in json.loads(Path("variables.json").read_text()) if name in os.environ], errno.ENOENT)


@trial
def sockets_of_others():
    """Abstract sockets and memory, by what the kernel lists of them."""
    with open("/proc/net/unix") as file:
        found = [line.split()[-1] for line in file.readlines()[1:] if line.split()[-1].startswith("@")]
    for kind in ("shm", "sem", "msg"):
        with open(f"/proc/sysvipc/{kind}") as file:
            found += file.readlines()[1:]
    with open("/proc/net/dev") as file:
        found += [line for line in file.readlines()[2:] if not line.strip().startswith("lo:")]
    return none(found, errno.ENOENT)


@trial
def signals_to_others():
    """Every id there may be: only the sandbox's own take even signal 0."""
    reached = []
    for pid in range(2, 4096):
        try:
            os.kill(pid, 0)
            reached.append(pid)
        except OSError:
            pass
    return none([pid for pid in reached if not os.path.exists(f"/proc/{pid}")] or os.getppid() != 1, errno.ESRCH)


@trial
def end_init_by_other_calls():
    handle = doors.by_number("pidfd_open", 1, 0)
    for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV, signal.SIGUSR1):
        for attempt in (lambda n=number: doors.by_number("pidfd_send_signal", handle, n, 0, 0),
                        lambda n=number: doors.by_number("tgkill", 1, 1, n),
                        lambda n=number: doors.by_number("rt_sigqueueinfo", 1, n, bytes(128))):  # fmt: skip
            with contextlib.suppress(OSError):
                attempt()
    with open("/proc/1/stat") as file:
        return none(file.read().rpartition(")")[2].split()[0] in "TtZX", errno.EPERM)


@trial
def groups_one_is_not_in():
    return os.setgroups([0])


@trial
def somebody_else_s_files():
    open("given", "w").close()
    return os.chown("given", 1, 1)


@trial
def a_core_for_the_host_s_helper():
    """A pattern with a pipe runs a program of the host's on each crash; a limit of 1 byte means none is run (core(5))."""
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    return none([] if most in {0, 1} else [most], errno.EPERM)  # 0: it was, before


if __name__ == "__main__":
    inside.main()
