"""Scenarios in which a service, a worker or a run is killed: what goes on, and that nothing of it is left."""

import contextlib
import os
import shlex
import signal
import subprocess
from pathlib import Path

from tests.enforcer.service.cast import (
    KNOCK,
    LOG,
    PATIENCE,
    Up,
    begin,
    descendants,
    run,
    scraped,
    shown,
    started,
    until,
)


def crash():
    """A worker is killed: its tasks wait for the next one, and the others don't."""
    up = Up("--metrics", "127.0.0.1:0")
    scrape = f"http://127.0.0.1:{up.said.rstrip().rpartition(':')[2]}/metrics"
    tasks = [begin("--task", f"task-{number}", "--", "python3", "-c", KNOCK) for number in range(2)]
    for task in tasks:
        assert (first := task.stdout.readline()) == "403\n", first
    where = {each["name"]: each["worker"] for each in up.listed()}
    before = {worker["number"]: worker["pid"] for worker in shown("status")["workers"]}
    victim = where["task-0"]
    os.kill(before[victim], signal.SIGKILL)
    after = until(lambda: (found := up.status())["restarts"] and all(w["pid"] for w in found["workers"]) and found)
    answers = [[task.stdout.readline().strip() for _ in range(30)] for task in tasks]
    wanted = {"exeat_worker_restarts_total 1.0", "exeat_sandboxes 2.0", "exeat_rules_valid 1.0"}
    until(lambda: wanted <= set((numbers := scraped(scrape)).splitlines()) and "service" in numbers, "a scrape")
    for task in tasks:
        task.terminate()
        task.wait(PATIENCE)
    until(lambda: not up.listed())
    until(
        lambda: {"exeat_sandboxes 0.0", 'exeat_tasks_total{outcome="passed"} 2.0'} <= set(scraped(scrape).splitlines())
    )
    return {
        "apart": where["task-0"] != where["task-1"],
        "answers": [sorted(set(each)) for each in answers],
        "replaced": [worker["number"] for worker in after["workers"] if worker["pid"] != before[worker["number"]]],
        "victim": victim,
        "signed": _without_key_holder(up),
        "ended": up.end(),
    }


def _without_key_holder(up):
    """Each worker shows a page under a certificate; the key holder is killed, and they do again."""
    first = up.status()["keyholder"]
    page = ["curl", "-sk", "-m", str(PATIENCE), "-o", "/dev/null", "-w", "%{http_code}"]
    waiting = begin(
        "--task",
        "waiting",
        "--",
        "sh",
        "-c",
        f"{shlex.join(page)} https://one.example; echo; read -r line",
        stdin=subprocess.PIPE,
    )
    assert (shown := waiting.stdout.readline()) == "403\n", shown
    pages = [run("--quiet", "--", *page, "https://two.example")["out"]]
    os.kill(first, signal.SIGKILL)
    until(lambda: "the key holder is gone (its process ended)" in LOG.read_text(), "what is said of it")
    pages.append(run("--quiet", "--", *page, "https://three.example")["out"])
    waiting.communicate("\n")
    return {"pages": pages, "first": first, "next": up.status()["keyholder"]}


def killed():
    """The service is killed with all it has; the next one begins anew."""
    up = Up()
    task = begin("--", "python3", "-c", KNOCK)
    assert task.stdout.readline() == "403\n"
    had = descendants(up.process.pid)
    up.process.kill()
    up.process.wait()
    status = task.wait(PATIENCE)
    until(lambda: not [each for each in had if started(each[0]) == each[1]], "the end of all processes")
    again = Up()
    return {"had": len(had), "status": status, "again": run("--", "true")["status"], "ended": again.end()}


def faults():
    """Each kind of process is killed in turn while tasks run; then nothing of any of them is left."""
    up = Up()
    before = set(Path("/proc/self/mountinfo").read_text().splitlines())
    seen = {"left": [], "ends": []}

    def tasks():
        """The processes below the service that are no worker's: runs, and what they have made."""
        workers = {worker["pid"] for worker in up.status()["workers"]}
        ours = {each["pid"] for each in up.listed()}
        return [sorted(each for each, _ in descendants(pid)) for pid in ours if pid not in workers]

    for depth in range(4):
        group = [begin("--", "sh", "-c", "echo up; sleep 300 & wait") for _ in range(3)]
        for task in group:
            assert task.stdout.readline() == "up\n"
        chains = tasks()
        ours = {pid for chain in chains for pid in chain} | {each["pid"] for each in up.listed()}
        had = [each for each in descendants(up.process.pid) if each[0] in ours]  # others wait for the next run
        for chain in chains:
            victim = chain[min(depth - 1, len(chain) - 1)] if depth else None
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim or next(each["pid"] for each in up.listed()), signal.SIGKILL)
        for task in group:
            task.terminate()
        seen["ends"] += [task.wait(PATIENCE) for task in group]
        until(lambda: not up.listed())
        until(lambda had=had: not [pid for pid, since in had if started(pid) == since], "the end of all of it")
    many = [begin("--", "true") for _ in range(12)]
    seen["many"] = [task.wait(PATIENCE) for task in many]
    until(lambda: not up.listed())
    seen["descriptors"] = len(os.listdir(f"/proc/{up.process.pid}/fd"))
    seen["mounts"] = set(Path("/proc/self/mountinfo").read_text().splitlines()) == before
    seen["groups"] = [str(path) for path in Path("/sys/fs/cgroup").rglob(f"*{up.process.pid:x}-*")]
    seen["ended"] = up.end()
    return seen
