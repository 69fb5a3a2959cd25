"""Device nodes that a task may be given: `devices` of `sandbox`, a closed list by name, below /dev.

What is in no list is refused: a device that isn't known to be harmless may lead to the host's memory, disks, keyboards
or networks. Names only; which of them a host has is for who can look.
"""

import re
from fnmatch import fnmatchcase
from typing import Final

from rules.problems import quoted

GPU: Final = "gpu"  # every node of a graphics or compute card that the host has
_CARDS: Final = re.compile(r"dri/renderD\d{1,3}|kfd|nvidia\d{1,3}|nvidiactl|nvidia-uvm|accel/accel\d{1,3}")
_OTHERS: Final = frozenset({"kvm"})
_ONE: Final = "`dri/renderD128`, `kfd`, `nvidia0`, `nvidiactl`, `nvidia-uvm`, `accel/accel0`"
KNOWN: Final = f"`kvm`, `gpu`, or one node of a card ({_ONE})"

# Why a task gets none of these, by globs of names; the first that matches is said.
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


def device(text: str) -> str:
    """Read the name of a device, with or without `/dev/`. Raises ValueError with the reason why a task gets none."""
    name = text.removeprefix("/dev/")
    if name == GPU or name in _OTHERS or _CARDS.fullmatch(name):
        return name
    reasons = (why for why, globs in _REFUSED.items() if any(fnmatchcase(name, glob) for glob in globs.split()))
    why = next(reasons, "it is none of those that are known to be harmless")
    raise ValueError(f"{quoted('/dev/' + name)} can't be given to a task: {why}; it can have {KNOWN}")


def is_card(name: str) -> bool:
    """Whether a name is that of a node of a graphics or compute card."""
    return _CARDS.fullmatch(name) is not None


def covered(name: str, by: tuple[str, ...]) -> bool:
    """Whether a list of devices has one in it, by its name or as one of all cards."""
    return name in by or (GPU in by and is_card(name))
