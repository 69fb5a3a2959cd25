"""Values of the `sandbox` section: what a task is shown, its devices, limits and commands."""

import re
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Final, NamedTuple

from rules.decision import ApprovalTerms
from rules.problems import quote
from rules.values.patterns import TaskSelector
from rules.verdicts import Verdict

GPU: Final = "gpu"  # every node of a graphics or compute card that the host has
_CARDS: Final = re.compile(r"dri/renderD\d{1,3}|kfd|nvidia\d{1,3}|nvidiactl|nvidia-uvm|accel/accel\d{1,3}")
_OTHERS: Final = frozenset({"kvm"})
_ONE: Final = "`dri/renderD128`, `kfd`, `nvidia0`, `nvidiactl`, `nvidia-uvm`, `accel/accel0`"
KNOWN: Final = f"`kvm`, `gpu`, or one node of a card ({_ONE})"

# Devices that no task gets, as globs of names, with the reason; the first match counts.
# Sources in the kernel's Documentation: admin-guide/devices.txt; of what isn't there, the file named beside the reason.
_REFUSED: Final = {
    "every task has its own": "null zero full random urandom tty ptmx pts pts/* shm shm/* fd fd/* stdin stdout stderr",
    "it leads to the host's memory or kernel": "mem kmem port nvram cpu/* mcelog kmsg crash snapshot",
    # userspace-api/dma-buf-heaps.rst, drivers/dma-buf/udmabuf.c
    "its memory can't be swapped, or no limit counts it": "udmabuf dma_heap*",
    # admin-guide/mm/userfaultfd.rst
    "it stops the kernel itself where it reads a task's memory, which helps attacks on it": "userfaultfd",
    # admin-guide/binderfs.rst
    "it leads to processes of the host": "binder* hwbinder* vndbinder*",
    "a disk holds the files of the host, past every protection": "loop* sd* hd* vd* xvd* nvme*n* mmcblk* dm-* md* "
    "mapper/* disk/* block/* sr* ram* zram* nbd* rbd* btrfs-control device-mapper zfs raw* fd[0-9]* bcache* pmem*",
    "it controls hardware of the host": "vfio* iommu uio* i2c-* spi* gpio* bus/* usb* tpm* watchdog* rtc* hpet "
    "ipmi* mei* rfkill sg[0-9]* bsg/* nvme* ng[0-9]* megaraid* parport* lp[0-9]* st[0-9]* nst[0-9]* switchtec* isst* "
    "sev sgx*",
    "a task can't mount anything, so it would be of no use": "fuse cuse autofs",
    "it leads out past the gate": "net/* tap* tun vhost* vsock ppp vmci infiniband/* ttyUSB* ttyACM* rfcomm*",
    "it is a keyboard, mouse or screen of the host": "tty* console vcs* input/* uinput uhid hidraw* fb*",
    "it hears or sees what is around the host": "snd/* dsp* mixer* audio* video* media* v4l* dvb/* cec* lirc*",
    "its clients find each other's buffers by number; name its render node, as in `dri/renderD128`": "dri/*",
    "it sets displays, or looks into the work of others": "nvidia*",
}


def parse_device(text: str) -> str:
    """Parse the name of a device, with or without `/dev/`. Raises ValueError with the reason if no task may have it."""
    name = text.removeprefix("/dev/")
    if name == GPU or name in _OTHERS or _CARDS.fullmatch(name):
        return name
    reasons = (why for why, globs in _REFUSED.items() if any(fnmatchcase(name, glob) for glob in globs.split()))
    why = next(reasons, "it is none of those that are known to be harmless")
    raise ValueError(f"{quote('/dev/' + name)} can't be given to a task: {why}; it can have {KNOWN}")


def is_card(name: str) -> bool:
    """Whether a name is that of a node of a graphics or compute card."""
    return _CARDS.fullmatch(name) is not None


def includes_device(name: str, by: tuple[str, ...]) -> bool:
    """Whether a list of devices includes one, by name or through `gpu`."""
    return name in by or (GPU in by and is_card(name))


class WorkspaceMode(StrEnum):
    """How changes of a task reach its workspace, strictest first."""

    REVIEW = "review"  # its changes stay separate until a user accepts them
    DIRECT = "direct"


class SandboxUser(StrEnum):
    """User that a task sees itself as, strictest first. Neither has any privileges."""

    TASK = "task"
    ROOT = "root"  # uid 0 inside, the same unprivileged id to the kernel


class MergeTerms(NamedTuple):
    """What one file wants before protected changes are merged: the `approval` of its `sandbox`."""

    cite: str  # `file:sandbox.approval`, which no rule is called
    terms: ApprovalTerms

    def __str__(self) -> str:
        """Describe the terms."""
        whom = f" of {self.terms.by}" if self.terms.by is not None else ""
        own = ", also by the user who started the task" if self.terms.by_self else ""
        return f"{self.cite} wants {self.terms.needed}{whom}{own}, held {self.terms.hold:g}s, open {self.terms.open:g}s"


class SandboxSettings(NamedTuple):
    """The `sandbox:` of a policy. None or an empty tuple: not set."""

    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    hide: tuple[str, ...] = ()  # paths, and `**/` before globs of names
    workspace: WorkspaceMode | None = None
    protected: tuple[str, ...] = ()  # globs relative to the workspace
    approval: tuple[MergeTerms, ...] = ()  # all are required to merge protected files; empty: none
    caches: tuple[tuple[str, str], ...] = ()  # name and where it lies in the sandbox, in the order of names
    devices: tuple[str, ...] = ()  # names below /dev of `rules.sandbox`
    keep: tuple[str, ...] = ()  # globs over names of the caller's variables
    variables: tuple[tuple[str, str], ...] = ()  # `set` in a rule file; ordered by name
    user: SandboxUser | None = None
    hostname: str | None = None
    timeout: float | None = None  # seconds of wall time
    memory: int | None = None  # bytes
    cpu: float | None = None  # cores
    processes: int | None = None
    files: int | None = None  # open at the same time, a process
    disk: int | None = None  # bytes in all that is writable and not the host's


NO_SANDBOX_SETTINGS = SandboxSettings()


class SandboxFloor(NamedTuple):
    """Sandbox settings of layers, which no other file and no option of `exeat run` can loosen."""

    box: SandboxSettings = NO_SANDBOX_SETTINGS
    stated: frozenset[str] = frozenset()  # fields that a layer sets, even to an empty value
    by: tuple[tuple[str, str], ...] = ()  # which file does, by field


NO_SANDBOX_FLOOR = SandboxFloor()


@dataclass(frozen=True, slots=True, eq=False)  # no two are one, whatever they say
class Command:
    """One entry of `commands:`. `action` is deny, ask or flag."""

    id: str
    cite: str  # `file:id`
    words: tuple[str, ...]  # globs: the program's name or path, then its arguments
    action: Verdict
    why: str = ""
    for_: TaskSelector | None = None
    approval: ApprovalTerms | None = None  # of an ask
