"""More tasks than the service's workers have descriptors for: a further worker serves them."""

import resource
import subprocess

from tests.enforcer.service.service_lab import FILE, IMPATIENT, RULES, Up, begin
from tests.support.waiting import PATIENCE, wait_until

FEW = 300  # descriptors: a worker has enough for one sandbox
LOOK_UP = "import socket; print(socket.gethostbyname('allowed.example'), flush=True); input()"


def full():
    """Three tasks where two workers have room for one each; then all of them end."""
    FILE.write_text(RULES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (FEW, FEW))
    up = Up(program=IMPATIENT)

    def sandboxes():
        return sorted(each["sandboxes"] for each in up.status()["workers"])

    seen = {"began": sandboxes()}
    tasks = [begin("--task", f"task-{n}", "--", "python3", "-c", LOOK_UP, stdin=subprocess.PIPE) for n in range(3)]
    seen["named"] = [task.stdout.readline() != "" for task in tasks]
    wait_until(lambda: sum(sandboxes()) == len(tasks), "the count of the three sandboxes")  # counted a moment later
    seen["served"] = sandboxes()
    for task in tasks:
        task.communicate("\n", timeout=PATIENCE)
    wait_until(lambda: sandboxes() == seen["began"], "the end of the further worker")
    return {**seen, "statuses": [task.returncode for task in tasks], "ended": up.end()}
