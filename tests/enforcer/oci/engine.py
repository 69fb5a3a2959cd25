"""Containers as podman and docker make them by default, of this host's own files: no image, and no engine but crun.

A container's root is an overlay with /usr, the interpreter and the project mounted in it, read-only; /etc/hosts,
/etc/resolv.conf and /etc/hostname are mounts, /proc and /sys are masked, and cgroups can't be written. Its network is
the lab's. All that is made lies in namespaces and in a directory that end with it.
Sources: OCI runtime specification 1.0.2, config.md and config-linux.md; podman-run(1), docker-run(1).
"""

import errno
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.enforcer.oci.rootless import FIRST
from tests.support import harness, homes

USER = 54321
HOMES = {0: "/root", USER: "/home/someone"}
EXEAT = Path(sys.executable).with_name("exeat")
CAPABILITIES = (
    "AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "NET_RAW",
    "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT",
)  # fmt: skip
MASKED = (
    "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi",
    "/proc/timer_list", "/proc/timer_stats", "/sys/dev/block", "/sys/firmware", "/sys/fs/selinux",
)  # fmt: skip
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
# What is refused without a capability that isn't given: podman's filter leaves user namespaces, and docker's doesn't.
REFUSED = (
    "bpf", "fanotify_init", "kcmp", "lookup_dcookie", "open_by_handle_at", "perf_event_open", "process_madvise",
    "quotactl", "setdomainname", "sethostname", "userfaultfd", "vhangup",
)  # fmt: skip
REFUSED_BY_DOCKER = (
    *REFUSED, "add_key", "fsconfig", "fsmount", "fsopen", "fspick", "io_uring_setup", "keyctl", "mount",
    "mount_setattr", "move_mount", "open_tree", "pidfd_getfd", "pivot_root", "request_key", "setns", "syslog",
    "umount2", "unshare",
)  # fmt: skip
# The root is an overlay of its own, in memory. crun knows no mix of cgroups' versions: it is shown the second alone.
_START = """
set -e
cd "$1"
mount -t tmpfs -o mode=755 made made
cp -R --no-dereference --preserve=mode image made/image
mkdir made/upper made/work made/state
chown 54321:54321 made/image/home/someone
mount -t overlay -o lowerdir=made/image,upperdir=made/upper,workdir=made/work,userxattr overlay root
[ -e /sys/fs/cgroup/cgroup.controllers ] || mount -t cgroup2 cgroup2 /sys/fs/cgroup
exec crun --root "$1/made/state" --cgroup-manager=disabled run --bundle "$2" box
"""
# With whoever waits for it ends all that it has begun, the container too, which isn't ended by its runtime's death.
_APART = ("unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child")


@dataclass(frozen=True)
class Kind:
    """What is asked of an engine for a container; as it stands, what Exeat needs from podman, and nothing more."""

    uid: int = USER
    more: tuple[str, ...] = ()  # capabilities
    unmasked: bool = True
    refused: tuple[str, ...] = REFUSED  # system calls, with EPERM
    no_new_privileges: bool = False
    read_only: bool = False  # its root; /tmp is in memory then
    by: tuple[str, ...] = ()  # program and arguments that run the runtime
    owner: int = 0  # its uid 0, on the host


def rootless(more="", **options):
    """What a rootless engine makes; `more` user namespaces can be made in it, or as many as the host allows."""
    by = (sys.executable, "-m", "tests.enforcer.oci.rootless", more)
    return Kind(by=by, owner=FIRST, **options)


class Engine:
    """Runs programs in a lab, each in a container of its own that has a volume."""

    def __init__(self, lab, directory, lived_in):
        self.lab, self.directory, self.image, self.lived_in = lab, directory, directory / "image", lived_in
        for name in ("image", "made", "root"):
            (directory / name).mkdir()
        self._count = 0
        self._fill(self.image)

    def run(self, argv, kind):
        """Run it to its end, whose status is the container's. Returns that, and where its volume lies."""
        self._count += 1
        bundle, volume = (self.directory / f"{name}-{self._count}" for name in ("bundle", "volume"))
        bundle.mkdir()
        for path in (volume, volume / "work"):
            path.mkdir()
            os.chown(path, kind.owner + kind.uid, kind.owner + kind.uid)
        homes.furnish(volume, self.lived_in, kind.owner + kind.uid)
        (bundle / "config.json").write_text(json.dumps(self._config([str(word) for word in argv], kind, volume)))
        start = [*kind.by, *_APART, "sh", "-c", _START, "sh", self.directory, bundle]
        return self.lab.run(start, env={"PYTHONPATH": str(harness.PROJECT)}), volume

    def _fill(self, image):
        """Make what an image has, but for /usr: accounts, roots of trust, and places to mount on."""
        for name in (
            "dev",
            "etc/ssl/certs",
            "home/someone",
            "proc",
            "root",
            "run",
            "srv",
            "sys",
            "tmp",
            "usr",
            "volume",
        ):
            (image / name).mkdir(parents=True)
        (image / "tmp").chmod(0o1777)
        for entry in os.scandir("/"):
            if entry.is_symlink() and os.readlink(entry.path).startswith("usr/"):
                os.symlink(os.readlink(entry.path), image / entry.name)
        accounts = {"root": 0, "someone": USER}
        for name, fields in (("passwd", "{0}:x:{1}:{1}::{2}:/bin/sh\n"), ("group", "{0}:x:{1}:\n")):
            lines = [fields.format(who, uid, HOMES[uid]) for who, uid in accounts.items()]
            (image / "etc" / name).write_text("".join(lines))
        (image / "etc/nsswitch.conf").write_text("hosts: files dns\n")
        etc = self.lab.directory / "etc"
        shutil.copy(etc / "ca-certificates.crt", image / "etc/ssl/certs")
        for name in ("hosts", "resolv.conf"):
            shutil.copy(etc / name, self.directory)
        (self.directory / "hostname").write_text("box\n")

    def _config(self, argv, kind, volume):
        held = [f"CAP_{name}" for name in (*CAPABILITIES, *kind.more)]
        effective = held if kind.uid == 0 else []  # execve(2) by an ordinary user has taken them
        variables = {
            "PATH": f"{EXEAT.parent}:{os.defpath}:/usr/sbin", "HOME": HOMES[kind.uid], "TERM": "xterm",
            "XDG_STATE_HOME": "/volume/.local/state",
        }  # fmt: skip
        in_memory = [_mount("tmpfs", "/tmp", "nodev", "mode=1777")] if kind.read_only else []
        return {
            "ociVersion": "1.0.2",
            "hostname": "box",
            "root": {"path": str(self.directory / "root"), "readonly": kind.read_only},
            "process": {
                "user": {"uid": kind.uid, "gid": kind.uid},
                "args": argv,
                "env": [f"{name}={value}" for name, value in variables.items()],
                "cwd": HOMES[kind.uid],
                "capabilities": {"bounding": held, "effective": effective, "permitted": effective},
                "noNewPrivileges": kind.no_new_privileges,
            },
            "mounts": [*_KERNELS, *in_memory, *self._binds(volume)],
            "linux": {
                "namespaces": [{"type": name} for name in ("cgroup", "ipc", "mount", "pid", "uts")],
                "maskedPaths": [] if kind.unmasked else list(MASKED),
                "readonlyPaths": [] if kind.unmasked else list(READ_ONLY),
                "seccomp": {
                    "defaultAction": "SCMP_ACT_ALLOW",
                    "syscalls": [{"names": kind.refused, "action": "SCMP_ACT_ERRNO", "errnoRet": errno.EPERM}],
                },
            },
        }

    def _binds(self, volume):
        needed = [Path(one).resolve() for one in (sys.base_prefix, sys.prefix, harness.PROJECT)]
        shown = ["/usr", *(str(path) for path in dict.fromkeys(needed) if not path.is_relative_to("/usr"))]
        etc = {f"/etc/{name}": self.directory / name for name in ("hosts", "hostname", "resolv.conf")}
        return [
            *({"destination": path, "source": path, "type": "bind", "options": ["rbind", "ro"]} for path in shown),
            *({"destination": to, "source": str(path), "type": "bind", "options": ["bind"]}
              for to, path in {"/volume": volume, **etc}.items()),
        ]  # fmt: skip


def _mount(kind, at, *options):
    return {"destination": at, "type": kind, "source": kind, "options": ["nosuid", "noexec", *options]}


_KERNELS = (
    _mount("proc", "/proc", "nodev"),
    {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755"]},
    _mount("devpts", "/dev/pts", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
    _mount("tmpfs", "/dev/shm", "nodev", "mode=1777", "size=65536k"),
    _mount("mqueue", "/dev/mqueue", "nodev"),
    _mount("sysfs", "/sys", "nodev", "ro"),
    _mount("cgroup", "/sys/fs/cgroup", "nodev", "relatime", "ro"),
)
