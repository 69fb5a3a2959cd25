"""Extended attributes in real sandboxes: what means something to the host is refused, and the rest is set as anywhere."""

import json
import os
import struct
import sys
from pathlib import Path

import pytest

from tests.support import harness

PYTHON = Path(sys.base_prefix) / "bin" / "python3"
CAPABILITY = struct.pack("<IIIII", 0x02000001, 0xFFFFFFFF, 0, 0, 0)
ACL = struct.pack("<I" + "HHI" * 5, 2, 1, 6, 2**32 - 1, 4, 4, 2**32 - 1, 0x10, 4, 2**32 - 1, 0x20, 4, 2**32 - 1,
                  0x20, 4, 2**32 - 1)[:36]  # fmt: skip
# What a host takes a file for: SELinux's and Smack's labels, which their owner may set, and the rest of their kind.
REFUSED = [
    "security.selinux", "security.SMACK64", "security.SMACK64EXEC", "security.apparmor", "security.ima", "security.evm",
    "security.capability", "security.of-next-year", "trusted.overlay.opaque", "system.nfs4_acl", "unknown.kind",
]  # fmt: skip
INSIDE = """
import contextlib, errno, json, os, sys, threading
refused, said = json.loads(sys.argv[1]), {}
os.mkdir("d"); open("f", "w").close(); os.symlink("f", "l")
def tried(act, *words, **more):
    try:
        return act(*words, **more) or "done"
    except OSError as error:
        return errno.errorcode[error.errno]
for path in ("f", "d", "l", os.path.abspath("f"), "/tmp"):
    for name in refused:
        for follow in (False, True):
            said[f"{path} {name} {follow}"] = tried(os.setxattr, path, name, b"x", follow_symlinks=follow)
file = os.open("f", os.O_RDONLY)
for name in refused:
    said[f"descriptor {name}"] = tried(os.setxattr, file, name, b"x")
# A name that is harmless when it is looked at, and is not when the kernel reads it.
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
name, over = ctypes.create_string_buffer(b"user.race\\0\\0\\0\\0\\0\\0\\0\\0"), threading.Event()
def swap():
    while not over.is_set():
        ctypes.memmove(name, b"security.selinux\\0", 17)
        ctypes.memmove(name, b"user.race\\0", 10)
thread = threading.Thread(target=swap); thread.start()
for _ in range(300):
    libc.setxattr(b"f", name, b"x", ctypes.c_size_t(1), 0)
over.set(); thread.join()
said["raced"] = "SET" if "security.selinux" in os.listxattr("f") else "EPERM"
print(json.dumps(said))
"""
ALLOWED = """
import errno, json, os, sys
acl, said = bytes.fromhex(sys.argv[1]), {}
def tried(what, act):
    try:
        said[what] = act()
    except OSError as error:
        said[what] = errno.errorcode[error.errno]
def had(path, name):
    return os.getxattr(path, name).hex()[:8]
open("f", "w").close(); os.mkdir("d"); os.symlink("f", "l"); file = os.open("f", os.O_RDONLY)
tried("set", lambda: (os.setxattr("f", "user.a", b"1"), had("f", "user.a"))[1])
tried("made twice", lambda: os.setxattr("f", "user.a", b"1", os.XATTR_CREATE))
tried("replaced", lambda: (os.setxattr("f", "user.a", b"2", os.XATTR_REPLACE), had("f", "user.a"))[1])
tried("by a descriptor", lambda: (os.setxattr(file, "user.b", b"3"), had("f", "user.b"))[1])
tried("through a link", lambda: (os.setxattr("l", "user.c", b"4"), had("f", "user.c"))[1])
tried("of a directory", lambda: (os.setxattr("d", "user.d", b"5" * 3000), had("d", "user.d"))[1])
tried("a list of rights", lambda: os.setxattr("f", "system.posix_acl_access", acl))
tried("removed", lambda: (os.removexattr("f", "user.a"), os.removexattr(file, "user.b"))[0])
tried("removed twice", lambda: os.removexattr("f", "user.a"))
tried("nothing there", lambda: os.setxattr("none", "user.a", b"1"))
tried("too long", lambda: os.setxattr("f", "user." + "n" * 300, b"1"))
tried("too much", lambda: os.setxattr("f", "user.a", b"1" * 70000))
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def flagged(flags):
    libc.setxattr(b"f", b"user.a", b"1", ctypes.c_size_t(1), ctypes.c_uint(flags))
    return errno.errorcode[ctypes.get_errno()]
said["flags of no meaning"] = sorted({flagged(flags) for flags in (4, 1 << 31, 0xFFFFFFFF)})
os.chmod("f", 0o400)
tried("not to be written", lambda: os.setxattr("f", "user.e", b"1"))
tried("read-only", lambda: os.setxattr("/usr/bin/env", "user.e", b"1"))
said["left"] = sorted(name for name in os.listxattr("f") if name.startswith("user."))
print(json.dumps(said))
"""
EXPECTED = {
    "set": "31", "made twice": "EEXIST", "replaced": "32", "by a descriptor": "33", "through a link": "34",
    "of a directory": "35353535", "a list of rights": None, "removed": None, "removed twice": "ENODATA",
    "nothing there": "ENOENT", "too long": "ERANGE", "too much": "E2BIG", "flags of no meaning": ["EINVAL"], "not to be written": "EACCES",
    "read-only": "EROFS", "left": ["user.c"],
}  # fmt: skip


@pytest.fixture
def inside(someone):
    rules = someone.write(someone.home / "rules.yaml", "version: 1\nname: nothing\nrules: []\n")

    def run(script, word):
        options = ("run", "--quiet", "--rules", rules, "--read", sys.base_prefix, "--", PYTHON, "-c")
        done = someone.exeat(*options, script, word)
        assert done.returncode == 0, done.stderr.decode()
        return json.loads(done.stdout)

    return run


def test_security_attributes_are_denied(someone, inside):
    said = inside(INSIDE, json.dumps(REFUSED))
    assert {what: came for what, came in said.items() if came != "EPERM"} == {}
    for path in someone.work.rglob("*"):
        labels = {name for name in os.listxattr(path, follow_symlinks=False) if not name.startswith("user.")}
        assert labels <= {"security.selinux"}, "where the host labels files, it has done so itself"
        assert b"x" not in {os.getxattr(path, name, follow_symlinks=False) for name in labels}


def test_user_attributes_are_set(inside):
    assert inside(ALLOWED, ACL.hex()) == EXPECTED


def test_existing_label_is_kept(someone, inside):
    harness.needs_root()
    labelled = someone.write(someone.work / "labelled", "")
    os.setxattr(labelled, "security.selinux", b"host")
    script = (
        "import json, os, sys\n"
        "try: os.removexattr('labelled', 'security.selinux'); print(json.dumps('REMOVED'))\n"
        "except OSError as error: print(json.dumps(error.errno))\n"
    )
    assert inside(script, "") == 1
    assert os.getxattr(labelled, "security.selinux").rstrip(b"\0") == b"host"
