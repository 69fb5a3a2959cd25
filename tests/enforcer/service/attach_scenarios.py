"""What a service is handed to attach that it can't serve: it says so, and nothing of it stays anywhere."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from enforcer.service import warm_pool
from enforcer.service.control_client import send_request
from enforcer.service.rule_sets import policy_in_memory
from enforcer.system.errors import ExeatError
from rules.matching.policy import Policy
from tests.enforcer.service.service_lab import Up
from tests.soak import leftovers
from tests.support.waiting import wait_until

TIMES = 8


def handed():
    """A process that has ended, what is none, and sockets that aren't a sandbox's: several times each."""
    up = Up("--workers", "1")
    policy, worker = policy_in_memory(Policy(())), up.status()["workers"][0]["pid"]

    def attach(number, names, process=(), pid=0):
        wanted = {
            "what": "attach", "sandbox": f"sandbox-{number}", "id": f"{number}", "name": "box", "labels": {},
            "files": [], "asked": [], "seen": "", "system": "/nonexistent", "attached": f"/box-{number}", "pid": pid,
            "sockets": names, "event": "e",
        }  # fmt: skip
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in names]
        try:
            return send_request(wanted, [policy, *(sock.fileno() for sock in sockets), *process])
        except ExeatError as error:
            return str(error)
        finally:
            for sock in sockets:
                sock.close()

    def there():
        wait_until(lambda: not up.listed())
        # For each empty sandbox it has a channel open.
        wait_until(
            lambda: sum(bool(leftovers.children(pid)) for pid in leftovers.children(up.process.pid)) == warm_pool.MOST
        )
        processes = (up.status()["pid"], worker) if os.geteuid() == 0 else ()  # what they have open is root's to know
        return [len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in processes]

    ended = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = os.pidfd_open(ended.pid)
    ended.communicate(b"\n")
    attach("first", ["tcp"])
    before = there()
    said = [attach(f"ended-{number}", ["tcp"], (process,), ended.pid) for number in range(TIMES)]
    said += [attach(f"none-{number}", ["tcp"], (policy,), os.getpid()) for number in range(TIMES)]
    for number in range(TIMES):
        attach(f"few-{number}", ["tcp"])
    return {
        "said": sorted(
            {text.replace(str(pid), "PID") for text in said for pid in (ended.pid, os.getpid()) if str(pid) in text}
        ),
        "more": [now - then for now, then in zip(there(), before, strict=True)],
        "same": up.status()["workers"][0]["pid"] == worker,
        "ended": up.end(),
    }
