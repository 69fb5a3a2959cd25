"""A scenario in which somebody asks who isn't to be served, and one who is tries to get out of a sandbox of the service's."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

from tests.enforcer.service.service_lab import Up, begin, run
from tests.support.waiting import PATIENCE, wait_until

NOBODY = 65534  # a uid


def strangers():
    """Who is not served: another user namespace; and what is nonsense does no harm."""
    up = Up()
    path = os.environ["EXEAT_CONTROL"]
    for name in Path("..").glob("*.*"):  # what `escapes.table.put` has put there
        if name.suffix in {".py", ".json"}:
            shutil.copy(name, ".")
    words = [
        "--read",
        sys.base_prefix,
        "--env",
        "EXEAT_ABSTRACT=nobody-listens",
        "--",
        f"{sys.base_prefix}/bin/python3",
    ]
    escaping = begin(*words, "places.py", "[]")
    wait_until(up.listed, "a task that tries to escape")
    ask = f"import socket; s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.connect({path!r}); print(s.recv(999))"
    apart = subprocess.run(["unshare", "-U", sys.executable, "-c", ask], capture_output=True, text=True, check=False)
    other = subprocess.run(
        ["unshare", "-Un", "-r", sys.executable, "-c", ask], capture_output=True, text=True, check=False
    )
    said = []
    for packet in (
        b"",
        b"nonsense",
        b"exeat 999 run",
        b"exeat 1 run",
        b"exeat 1 ask[",
        b"exeat 1 ask{}",
        b"exeat 1 ask[1]",
    ):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.connect(path)
            if packet:
                connection.send(packet)
                said.append(connection.recv(999).split(b" ")[0].decode())
    crowd = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(300)]
    for connection in crowd:
        connection.connect(path)
    done = run("--", "true")["status"]
    for connection in crowd:
        connection.close()
    return {"apart": apart.stdout + other.stdout, "said": said, "done": done,
            "escapes": json.loads(escaping.communicate(timeout=PATIENCE)[0]),
            "uid": _of_another_uid(path, ask), "ended": up.end()}  # fmt: skip


def _of_another_uid(path, ask):
    """What somebody is told who isn't root, where root's socket has been opened to everybody."""
    if os.geteuid() != 0:
        return "refused, which only root can try"
    os.chmod(os.path.dirname(path), 0o755)
    os.chmod(path, 0o666)
    # The interpreter is imported by now: whether it can be read by others is not what is asked here.
    reads, writes = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        os.dup2(writes, 1)
        exec(ask)
        sys.stdout.flush()
        os._exit(0)
    os.close(writes)
    os.waitpid(pid, 0)
    with open(reads, encoding="ascii") as said:
        return said.read()
