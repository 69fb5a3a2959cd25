"""Run in a sandbox whose workspace is reviewed: everything that a task could try to get out of its overlay."""

import ctypes
import json
import os
import shutil
import socket
import stat
import sys
from pathlib import Path

libc = ctypes.CDLL(None, use_errno=True)


def attempt(name, call):
    try:
        said = call()
    except OSError as error:
        return f"refused: {error.errno}"
    return "did it" if said is None else str(said)


def xattr(path, name):
    os.setxattr(path, name, b"y")
    return "stored" if name in os.listxattr(path) else "hidden"


def whiteout():
    os.mknod("whiteout", stat.S_IFCHR, 0)


def rename_whiteout():
    if libc.renameat2(-100, b"plain", -100, b"renamed", 4) < 0:
        raise OSError(ctypes.get_errno(), "")


def device():
    os.mknod("null", stat.S_IFCHR | 0o666, os.makedev(1, 3))


def set_id():
    os.chmod("plain", 0o6755)


def mounted():
    """Whether anything of the layers can be seen in this view."""
    with open("/proc/self/mountinfo") as file:
        words = file.read()
    upper = next(word for word in words.replace(",", " ").split() if word.startswith("upperdir="))
    return "reachable" if os.path.exists(upper.partition("=")[2]) else "not there"


def host_socket():
    """A socket that a host process listens on, seen through the overlay."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect("host.sock")


def deep():
    """Nest directories deeper than any path is long."""
    start = os.open(".", os.O_RDONLY)
    for _ in range(30):
        os.mkdir("d" * 200)
        os.chdir("d" * 200)
    with open("bottom", "w") as file:
        file.write("x")
    os.fchdir(start)


os.mkdir("planted")
open("plain", "w").close()
results = {
    "opaque": attempt("opaque", lambda: xattr("planted", "user.overlay.opaque")),
    "trusted": attempt("trusted", lambda: xattr("planted", "trusted.overlay.opaque")),
    "redirect": attempt("redirect", lambda: xattr("planted", "user.overlay.redirect")),
    "metacopy": attempt("metacopy", lambda: xattr("plain", "user.overlay.metacopy")),
    "xwhiteout": attempt("xwhiteout", lambda: xattr("plain", "user.overlay.whiteout")),
    "whiteout": attempt("whiteout", whiteout),
    "rename whiteout": attempt("rename whiteout", rename_whiteout),
    "device": attempt("device", device),
    "set-id": attempt("set-id", set_id),
    "layers": attempt("layers", mounted),
    "host socket": attempt("host socket", host_socket),
    "secret through a link": attempt("secret", lambda: Path("to-outside").read_text()),
    "lower's redirect": attempt("redirect", lambda: sorted(os.listdir("lower-redirect"))),
    "lower's metacopy": attempt("metacopy", lambda: Path("lower-metacopy").read_text().strip()),
    "deep": attempt("deep", deep),
}
os.symlink("../../../../../etc/passwd", "out")
os.mkdir("name with\nnewline")
open(b"not-utf8-\xff", "w").close()
shutil.move("moved", "moved-away")
os.link("edited", "second-name")
with open("edited", "a") as file:
    file.write("the task's\n")
os.unlink("deleted")
os.chmod("mode", 0o000)
os.mkfifo("fifo")
print(json.dumps(results), file=sys.stderr)
